"""Comparison without algebra: what it decides, and what it leaves undecided."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.records import Status
from model.rewards.literal import canonical, choice, compare_literally, number, peel, words


@pytest.mark.parametrize(
    ("text", "core"),
    [
        (" $18$. ", "18"),
        ("**\\boxed{18}**", "18"),
        ("The final answer is: $\\text{odd}$", "odd"),
        ("$a$ and $b$", "$a$ and $b$"),
        ("\\boxed{1} + \\boxed{2}", "\\boxed{1} + \\boxed{2}"),
        ("\u200e5\u202c\0", "5"),
        ("−5", "-5"),
        (".", "."),
        ("", ""),
    ],
)
def test_peel_takes_off_what_surrounds_an_answer(text: str, core: str) -> None:
    assert peel(text) == core


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
        ("1 1/2", None),
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
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("Option (B)", "B"),
        ("B) 42", "B"),
        ("(B) 42", "B"),
        ("42", None),
        ("Bob", None),
    ],
)
def test_choice_letters(text: str, letter: str | None) -> None:
    assert choice(text) == letter


def test_words_are_short_and_only_words() -> None:
    assert words("Not  Divisible") == "not divisible"
    assert [words(text) for text in ("x", "pi", "3 apples", "\\infty", "one two three four five")] == [None] * 5


def test_spaces_between_digits_are_kept_and_others_are_not() -> None:
    assert canonical("( 1 , 2 )") == "(1,2)"
    assert canonical("1 1/2") != canonical("11/2")


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("0.5", "1/2", "equal_number"),
        ("0.500001", "1/2", None),  # within Math-Verify's rounding or not: its decision
        ("0.500003", "1/2", "not_equal"),
        ("10%", "0.1", None),
        ("x+1", "1+x", None),
        ("7 apples", "7", "equal_number"),
        ("7.0 apples", "7", "equal_number"),
        ("7 dozen", "7", None),
        ("7 cats", "7 dogs", None),
        ("stop", "post", "not_equal"),
        ("42", "B", "not_equal"),
        ("B", "B", "equal_string"),
        ("\u200e", "\u200f", None),  # nothing is not equal to nothing
    ],
)
def test_comparison(answer: str, gold: str, outcome: str | None) -> None:
    judgement = compare_literally(answer, gold)
    assert (judgement and judgement.reason) == outcome


SPELLINGS = st.sampled_from(["{}", "${}$", "\\boxed{{{}}}", "**{}**", "The answer is {}.", " {} ", "\\({}\\)"])


@given(st.integers(-(10**12), 10**12), SPELLINGS, SPELLINGS)
def test_a_number_equals_itself_in_any_dress(value: int, answer: str, gold: str) -> None:
    judgement = compare_literally(answer.format(f"{value:,}"), gold.format(value))
    assert judgement is not None
    assert judgement.verdict is Status.PASS


@given(st.integers(-(10**12), 10**12), st.data())
def test_a_changed_digit_fails(value: int, data: st.DataObject) -> None:
    digits = str(abs(value))
    place = data.draw(st.integers(0, len(digits) - 1))
    other = data.draw(st.sampled_from([digit for digit in "0123456789" if digit != digits[place]]))
    changed = digits[:place] + other + digits[place + 1 :]
    judgement = compare_literally(changed, digits)
    assert judgement is not None
    assert judgement.reason == "not_equal"


@given(st.fractions(max_denominator=10**6))
def test_a_fraction_equals_its_latex(value: Fraction) -> None:
    sign = "-" if value < 0 else ""
    latex = f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    assert number(latex) == value == number(f"{value.numerator}/{value.denominator}")


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_makes_it_raise(answer: str, gold: str) -> None:
    compare_literally(answer, gold)
