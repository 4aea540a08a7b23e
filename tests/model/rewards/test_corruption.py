"""Corrupted answers: each case by hand, golds that must not yield one, and that none can be taken for its gold."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.rewards.answers.literal import compare_literally
from model.rewards.corruption import (
    Corruption,
    changed_line,
    corruptions,
    other_answer,
    spellings,
    surely_different,
    value,
    wrong_programs,
)
from model.rewards.programs.mutants import mutants


def made(gold: str, other: str | None = None) -> dict[str, str]:
    return {wrong.case: wrong.answer for wrong in corruptions(gold, other)}


@pytest.mark.parametrize(
    ("gold", "case", "answer"),
    [
        ("72", "sign_flipped", "-72"),
        ("-3", "sign_flipped", "3"),
        (r"\frac{\pi}{4}", "sign_flipped", r"-\frac{\pi}{4}"),
        ("x^2+1", "sign_flipped", "-(x^2+1)"),
        ("y = 2x+3", "sign_flipped", "y = -(2x+3)"),
        ("72", "digit_changed", "32"),
        ("1,234", "digit_changed", "6,234"),
        ("2^{10}", "digit_changed", "7^{10}"),
        ("(0, 3]", "digit_changed", "(5, 3]"),
        ("12:30", "digit_changed", "17:30"),
        ("72", "off_by_one", "73"),
        ("-1", "off_by_one", "0"),
        ("3.14", "off_by_one", "3.15"),
        ("-0.99", "off_by_one", "-0.98"),
        ("72", "ten_times", "720"),
        ("0.25", "ten_times", "2.5"),
        ("81", "hedged", "81 or 82"),
        ("2/3", "inverted", r"3/2"),
        (r"-\frac{2}{3}", "inverted", r"-\frac{3}{2}"),
        (r"\frac{\pi}{4}", "inverted", r"\frac{4}{\pi}"),
        ("1:2", "inverted", "2:1"),
        (r"8\pi", "pi_dropped", "8"),
        (r"\frac{\pi}{4}", "pi_dropped", r"\frac{1}{4}"),
        (r"2\sqrt{3}", "root_dropped", r"2 \cdot 3"),
        (r"\pm 3", "solution_dropped", "3"),
        (r"1 \pm \sqrt{19}", "solution_dropped", r"1 + \sqrt{19}"),
        ("x = 1, 2", "solution_dropped", "x = 1"),
        (r"\{1, 2, 5\}", "solution_added", r"\{1, 2, 5, 6\}"),
        (r"x \le -3", "relation_flipped", r"x \ge -3"),
        ("(1, 2)", "order_changed", "(2, 1)"),
        (r"\left(2, 2, 7\right)", "order_changed", "(2, 7, 2)"),
        ("[1,2)", "bracket_changed", "(1,2)"),
        (r"(-\infty, 5]", "bracket_changed", r"(-\infty, 5)"),
        (r"12\text{ cm}^2", "unit_changed", r"12\text{ mm}^2"),
        (r"5\text{ m}", "unit_changed", r"5\text{ cm}"),
        (r"60^\circ", "unit_changed", r"60\text{ radians}"),
        (r"\$5", "unit_changed", "€5"),
        ("2:30 p.m", "half_day", "2:30 a.m"),
        ("(B)", "other_choice", "C"),
        ("odd", "opposite", "even"),
        ("$18$", "off_by_one", "19"),
    ],
)
def test_a_case_by_hand(gold: str, case: str, answer: str) -> None:
    assert made(gold)[case] == answer


@pytest.mark.parametrize(
    ("gold", "case"),
    [
        ("0", "sign_flipped"),
        (r"\frac{0}{3}", "sign_flipped"),
        (r"\pm 3", "sign_flipped"),  # the same two numbers
        (r"k\pi", "sign_flipped"),  # the same family
        ("2:30", "sign_flipped"),
        ("1, 2", "sign_flipped"),
        (r"\binom{5}{2}", "digit_changed"),  # \binom{5}{3} is equal
        (r"\sin 0", "digit_changed"),  # \sin 180° is equal
        ("(C) 17", "digit_changed"),  # the letter decides
        ("z = 1 + 1 = 2", "digit_changed"),  # the last one decides
        ("0.333333", "off_by_one"),  # equal to six places
        ("1/1", "inverted"),
        ("-5/5", "inverted"),
        (r"\sqrt{1}", "root_dropped"),
        ("1,234", "solution_dropped"),  # one number
        ("(1, 2)", "solution_dropped"),
        ("(0.5, 1/2)", "order_changed"),
        ("1, 2", "order_changed"),  # solutions in any order
        (r"\{1, 2\}", "order_changed"),
        ("(1, 2)", "bracket_changed"),  # a point
        (r"10\%", "unit_changed"),
        ("5 m", "unit_changed"),  # a variable
        ("AC", "sign_flipped"),  # a label
        ("125 miles and 3", "sign_flipped"),
        ("72", "hedged"),  # one gold in ten
    ],
)
def test_no_corruption_that_may_mean_the_same(gold: str, case: str) -> None:
    assert case not in made(gold)


def test_a_bound_that_two_intervals_share_keeps_its_brackets() -> None:
    assert made(r"(-\infty,2]\cup[2,3]")["bracket_changed"] == r"(-\infty,2]\cup[2,3)"


@pytest.mark.parametrize("gold", ["She has five apples left over", r"\boxed{1}\boxed{2}", "x" * 301, r"\frac{1}{2"])
def test_golds_that_no_rule_reads_get_the_empty_answers_alone(gold: str) -> None:
    assert list(made(gold)) == ["empty", "only_in_thought"]
    assert spellings(gold) == []


def test_the_right_answer_in_the_thought_alone() -> None:
    assert Corruption("only_in_thought", "", r"So the answer is \boxed{7}.") in corruptions("7")


NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.integers(-(10**9), 10**9).map("{:,}".format),
    st.decimals(-10_000, 10_000, places=3).map(str),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
)
OTHERS = st.one_of(
    st.tuples(NUMBERS, NUMBERS).map(lambda pair: f"({pair[0]}, {pair[1]})"),
    st.tuples(st.sampled_from("(["), NUMBERS, NUMBERS, st.sampled_from(")]")).map(
        lambda parts: f"{parts[0]}{parts[1]}, {parts[2]}{parts[3]}"
    ),
    st.lists(NUMBERS, min_size=2, max_size=4).map(lambda items: rf"\{{{', '.join(items)}\}}"),
    st.tuples(NUMBERS, st.sampled_from([r"\text{ cm}", r"^\circ", r"\pi", r"\sqrt{7}", "x^2", " hours"])).map("".join),
    st.sampled_from(["A", "(D)", "odd", "x > 2", r"x \ne 2", r"\emptyset", "5 p.m."]),
    st.text(max_size=30),
)


@given(gold=st.one_of(NUMBERS, OTHERS), other=NUMBERS)
def test_no_corruption_reads_as_its_gold(gold: str, other: str) -> None:
    wrong = corruptions(gold, other)
    assert wrong == corruptions(gold, other)
    assert len({(w.case, w.answer, w.thought) for w in wrong}) == len(wrong)
    for corrupted in wrong:
        if gold.strip() and corrupted.answer:
            judgement = compare_literally(corrupted.answer, gold)
            assert judgement is None or judgement.verdict == "fail", corrupted


@given(number=st.fractions(max_denominator=1000))
def test_numbers_are_read_as_python_reads_them(number: Fraction) -> None:
    assert value(str(number)) == number
    assert value(rf"\frac{{{number.numerator}}}{{{number.denominator}}}") == number
    assert value("1,2") is value("0,111") is value("x") is value("1/0") is None


@given(gold=NUMBERS)
def test_a_number_respelled_is_the_same_number(gold: str) -> None:
    answers = {right.case: right.answer for right in spellings(gold)}
    assert answers["boxed"] == rf"The answer is $\boxed{{{gold}}}$."
    assert answers["respelled"] != gold
    assert value(answers["respelled"]) == value(gold)


def test_an_answer_of_another_problem_is_certainly_another() -> None:
    assert other_answer("50", ["50", "50.0", "0.5", r"\frac{1}{2}", "5,000", "x", "51"]) == "51"
    assert other_answer("yes", ["true", "Yes", "no"]) == "no"
    assert other_answer("7", ["7", "7.0"]) is None
    assert not surely_different("Ann", "Ann Lee")
    assert made("50", "7")["other_answer"] == "7"
    assert "other_answer" not in made("50", "50")


PROGRAM = """
def largest(values):
    best = values[0]
    for value in values[1:]:
        if value > best:
            best = value
    return best
"""


def test_wrong_programs_are_mutants_spread_over_the_source() -> None:
    wrong = wrong_programs(PROGRAM, most=3)
    assert [w.case.partition(":")[0] for w in wrong] == ["empty", "mutant", "mutant", "mutant"]
    assert len({w.answer for w in wrong}) == 4
    assert [w.answer for w in wrong[1:]] == [m.source for m in mutants(PROGRAM, most=3)]
    assert wrong_programs(PROGRAM, most=0) == [Corruption("empty", "")]
    assert len(wrong_programs(PROGRAM, most=1000)) > 4
    assert wrong_programs("this is no program", most=3) == [Corruption("empty", "")]


def test_one_more_in_the_last_place_by_hand() -> None:
    for gold, answer in (("9.99", "10.00"), ("-0.01", "0.00"), ("0", "1"), ("999", "1000")):
        assert made(gold)["off_by_one"] == answer
        assert math.isclose(float(answer) - float(gold), 10.0 ** -len(gold.partition(".")[2]), abs_tol=1e-9)


def test_the_line_in_which_a_mutant_differs() -> None:
    mutant = PROGRAM.replace("value > best", "value >= best").replace("(values)", "(values )")
    assert changed_line(PROGRAM, mutant) == "if value >= best:"
    assert changed_line("this is no program", "nor\nthis") == "nor"
