"""Units of answers: one key for all spellings, and nothing taken for a unit that is a variable or a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.rewards.answers.units import NO_UNIT, split_unit, unit

SPELLINGS = {
    "cm": ["cm", "cm.", "centimeter", "centimetres", "Centimeters"],
    "cm^2": ["cm^2", "cm^{2}", "square centimeters", "sq. cm", "sq cm", "centimeters squared"],
    "m^3": ["m^3", "cubic meters", "cu. m", "metres cubed"],
    "km/h": ["km/h", "km / h", "kph", "kilometers per hour", "km/hr"],
    "mile/h": ["mph", "miles per hour", "mi/h"],
    "m/s^2": ["m/s^2", "meters per second squared"],
    "foot": ["ft", "feet", "foot"],
    "inch": ["in", "in.", "inches"],
    "dollar": ["dollars", "USD"],
    NO_UNIT: ["units", "unit", "square units", "cubic units", "units^2"],
}


@pytest.mark.parametrize(("key", "spelling"), [(key, text) for key, texts in SPELLINGS.items() for text in texts])
def test_all_spellings_of_a_unit_have_one_key(key: str, spelling: str) -> None:
    assert unit(spelling) == key


@pytest.mark.parametrize("text", ["apples", "", "x", "M", "sin x", "and", "cm dogs", "odd"])
def test_what_is_no_unit_of_ours_has_no_key(text: str) -> None:
    assert unit(text) is None


@pytest.mark.parametrize(
    ("core", "expected"),
    [
        ("12\\text{ cm}", ("12", "cm")),
        ("12\\,\\mathrm{cm}^{2}", ("12", "cm^2")),
        ("15\\mbox{ cm}^2", ("15", "cm^2")),
        ("2\\sqrt{3}\\text{ m}", ("2\\sqrt{3}", "m")),
        ("12 km/h", ("12", "km/h")),
        ("12cm", ("12", "cm")),
        ("5 m/s", ("5", "m/s")),
        ("\\frac{1}{2} hours", ("\\frac{1}{2}", "h")),
        ("\\$5.50", ("5.50", "dollar")),
        ("-€5", ("-5", "euro")),
        ("60^\\circ", ("60", "degree")),
        ("60^{\\circ}", ("60", "degree")),
        ("60 degrees", ("60", "degree")),
        ("20^\\circ\\text{C}", ("20", "celsius")),
        ("20^\\circ F", ("20", "fahrenheit")),
        ("3\\pi\\text{ square units}", ("3\\pi", NO_UNIT)),
    ],
)
def test_a_unit_is_split_off(core: str, expected: tuple[str, str]) -> None:
    assert split_unit(core) == expected


@pytest.mark.parametrize("core", ["5m", "5 m", "5 apples", "x cm", "\\text{odd}", "5\\text{ and }6", "2e5", ""])
def test_variables_and_words_stay(core: str) -> None:
    assert split_unit(core) == (core, None)


@given(st.text(max_size=60))
def test_no_text_makes_it_raise(text: str) -> None:
    split_unit(text)
