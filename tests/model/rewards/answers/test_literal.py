"""Comparison without algebra: what it decides, and what it leaves undecided."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.records import Status
from model.rewards.answers.literal import canonical, choice, choices, compare_literally, peel, tidy, words


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
        ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("\\text{a} + \\text{b}", "\\text{a} + \\text{b}"),
        ("= 12", "12"),
        ("\\approx 12", "12"),
        ("≈12", "12"),
        ("=", "="),
        ("（１，２）", "(1,2)"),
        (".", "."),
        ("", ""),
    ],
)
def test_peel_takes_off_what_surrounds_an_answer(text: str, core: str) -> None:
    assert peel(text) == core


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("Option (B)", "B"),
        ("B) 42", "B"),
        ("(B) 42", "B"),
        ("\\text{(B)}", "B"),
        ("\\textbf{(B)}\\ 42", "B"),
        ("42", None),
        ("Bob", None),
    ],
)
def test_choice_letters(text: str, letter: str | None) -> None:
    assert choice(text) == letter


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("A, C", "AC"),
        ("C and A", "AC"),
        ("(A); (D)", "AD"),
        ("ACE", "ACE"),
        ("\\text{A}, \\text{B}", "AB"),
        ("A", None),
        ("AA", None),
        ("A, F", None),
        ("", None),
    ],
)
def test_several_choice_letters(text: str, letters: str | None) -> None:
    assert choices(text) == (None if letters is None else frozenset(letters))


@pytest.mark.parametrize("digits", ["٠١٢٣٤٥٦٧٨٩", "๐๑๒๓๔๕๖๗๘๙", "０１２３４５６７８９", "०१२३४५६७८९"])
def test_digits_of_any_script_are_digits(digits: str) -> None:
    assert tidy(digits) == "0123456789"


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
        ("28%", "28", "equal_number"),
        ("28%", "0.28", None),
        ("-7%", "-7", None),  # Math-Verify tells them apart
        ("x = 5", "5", "equal_number"),
        ("5", "x_1 = 5", "equal_number"),
        ("x = 5", "y = 5", None),
        ("2,74", "2.74", "equal_number"),
        ("1,2", "2,1", None),  # lists
        ("12 cm", "12\\text{ centimeters}", "equal_number"),
        ("12 cm", "13", "not_equal"),
        ("12 cm", "12 mm", "other_unit"),
        ("x\\text{ cm}", "x\\text{ m}", "other_unit"),
        ("x\\text{ cm}", "x", None),
        ("\\$5", "5 euros", "other_unit"),
        ("2:30 p.m.", "14:30", "equal_string"),
        ("1:15", "2:30", "not_equal"),
        ("6:4", "3:2", None),  # a ratio
        ("(B) 3", "(B) 4", "equal_string"),
        ("3", "(B) 3", None),
        ("A, B", "A", "not_equal"),
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


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_makes_it_raise(answer: str, gold: str) -> None:
    compare_literally(answer, gold)


@pytest.mark.parametrize("unit", [" ", "A ", "{", "1 ", "\\", "$", "\\text{a}", "\\text{", "1,", "cm ", "\\,", "x_1="])
def test_a_hostile_answer_costs_little(unit: str) -> None:
    answer = (unit * 2_000)[:2_000]
    started = time.perf_counter()
    for ending in ("", "7", "\\"):
        compare_literally(answer + ending, "7 cm")
    assert time.perf_counter() - started < 5.0  # exponential backtracking would not end; room for a busy machine
