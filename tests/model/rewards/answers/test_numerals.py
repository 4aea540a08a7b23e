"""Which texts are numbers, and which: exactly, in several spellings, or not at all."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.rewards.answers.numerals import number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", Fraction(18)),
        ("+18.50", Fraction(37, 2)),
        (".5", Fraction(1, 2)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1{,}234", Fraction(1234)),
        ("1\\,234", Fraction(1234)),
        ("-\\dfrac{3}{4}", Fraction(-3, 4)),
        ("\\frac{-3}{4}", Fraction(-3, 4)),
        ("\\frac12", Fraction(1, 2)),
        ("6 / 4", Fraction(3, 2)),
        ("-\\$18", Fraction(-18)),
        ("60^{\\circ}", Fraction(60)),
        ("3 \\times 10^{-2}", Fraction(3, 100)),
        ("1.5e3", Fraction(1500)),
        ("1 1/2", Fraction(3, 2)),
        ("-1\\frac{1}{2}", Fraction(-3, 2)),
        ("2\\frac34", Fraction(11, 4)),
        ("1 3/2", None),  # not a proper fraction: no mixed number
        ("0 1/2", None),
        ("11 2/", None),
        ("1.234.567", Fraction(1234567)),
        ("1.234,5", Fraction(2469, 2)),
        ("1 234 567,5", Fraction(2469135, 2)),
        ("1'234", Fraction(1234)),
        ("1.234", Fraction(617, 500)),
        ("0,111", None),
        ("1,23", None),
        ("1/0", None),
        ("1e101", None),
        ("10%", None),
        ("2:30", None),
        ("x", None),
        ("7" * 401, None),
        ("", None),
    ],
)
def test_numbers_are_read_exactly_or_not_at_all(text: str, value: Fraction | None) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,22", Fraction(61, 50)),
        ("0,111", Fraction(111, 1000)),
        ("1,234", Fraction(1234)),
        ("1,2,3", None),
        ("1, 2", None),
    ],
)
def test_a_decimal_comma_is_read_on_request(text: str, value: Fraction | None) -> None:
    assert number(text, has_decimal_comma=True) == value


@given(st.integers(0, 10**9), st.integers(1, 999), st.integers(1, 999))
def test_a_mixed_number_is_the_sum_of_its_parts(whole: int, one: int, other: int) -> None:
    top, bottom = sorted((one, other))
    expected = whole + Fraction(top, bottom) if whole and top < bottom else None
    assert number(f"{whole} {top}/{bottom}") == number(rf"{whole}\frac{{{top}}}{{{bottom}}}") == expected


@given(st.fractions(max_denominator=10**6))
def test_a_fraction_equals_its_latex(value: Fraction) -> None:
    sign = "-" if value < 0 else ""
    latex = f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    assert number(latex) == value == number(f"{value.numerator}/{value.denominator}")
