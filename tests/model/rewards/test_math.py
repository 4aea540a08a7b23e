"""The maths check: its reasons, the golden pairs, and gold answers judged against themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.records import Status
from model.rewards.check import Scored
from model.rewards.math import MathCheck, as_latex, judge_math, judge_symbolically
from model.rewards.settings import CheckSettings
from model.rewards.workers.pool import VerifierPool

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/rewards/math_pairs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("pair", GOLDEN["pairs"], ids=lambda pair: ascii(f"{pair['gold'][:20]}={pair['answer'][:20]}"))
def test_golden_pairs(pair: dict[str, str]) -> None:
    judgement = judge_math(pair["answer"], pair["gold"])
    assert (judgement.verdict, judgement.reason) == (pair["verdict"], pair["reason"])


def test_the_golden_pairs_cover_every_reason() -> None:
    assert {pair["reason"] for pair in GOLDEN["pairs"]} >= {
        "equal_string", "equal_number", "equivalent", "not_equal", "no_answer", "answer_unparseable",
        "other_unit", "out_of_bounds", "no_gold", "gold_unparseable", "gold_out_of_bounds",
    }  # fmt: skip


def test_the_check_judges_the_extracted_answer_and_says_which() -> None:
    check = MathCheck(CheckSettings())
    text = "<think>\\boxed{6}</think> It is \\boxed{7}."
    judgement = check(Scored(text=text, gold="7"))
    assert (judgement.verdict, judgement.reason, judgement.detail) == (
        Status.PASS,
        "equal_string",
        "boxed: 7",
    )
    assert check(Scored(text=text, gold=None)).reason == "no_gold"
    assert check(Scored(text="<think>7", gold="7")).reason == "no_answer"


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("x <= 2", "$x <= 2$"),
        ("(1,2)", "$(1,2)$"),
        ("odd", "$\\text{odd}$"),
        ("so $x=5$", "so $x=5$"),
        ("She has \\$5 left over", "She has 5 left over"),
        ("it is $5", "$it is 5$"),
        ("1-\\mathrm{e}", "$1-e$"),
        ("\\begin{pmatrix}1\\\\[2pt]2\\end{pmatrix}", "$\\begin{pmatrix}1\\\\2\\end{pmatrix}$"),
        ("a \\begin{array}{cc}1&2\\end{array} b", "$a \\begin{array}{cc}1&2\\end{array} b$"),
    ],
)
def test_math_verify_gets_what_it_reads_best(text: str, latex: str) -> None:
    assert as_latex(text) == latex


def test_a_program_is_no_answer() -> None:
    assert MathCheck(CheckSettings())(Scored(text="7", gold="7", domain="code")).reason == "other_domain"


def test_a_long_gold_is_a_solution_and_its_box_counts() -> None:
    solution = "We add. " * 400
    assert judge_math("7", solution + "\\boxed{7}").reason == "equal_string"
    assert judge_math("8", solution + "\\boxed{7}").reason == "not_equal"
    assert judge_math("7", solution).reason == "gold_out_of_bounds"


def test_an_expression_that_hangs_costs_its_time_out_and_no_other_sample() -> None:
    items = [Scored(text="\\boxed{\\frac{4}{2}+x}", gold="x+2") for _ in range(6)]
    items[2] = Scored(text="\\boxed{((9!)!)!}", gold="x+2")
    with VerifierPool(["math"], workers=1, timeout_seconds=1.5) as pool:
        judged = [row[0][0] for row in pool.run(items)]
    assert [judgement.reason for judgement in judged] == ["equivalent"] * 2 + ["timed_out"] + ["equivalent"] * 3
    assert judged[2].verdict is Status.ERROR


@pytest.mark.parametrize("gold", ["2^{-40}", "10^{-7}", "\\frac{1}{99999999}"])
@pytest.mark.parametrize(
    ("factor", "verdict"), [("1", Status.PASS), ("2", Status.FAIL), ("(1-\\frac{1}{99})", Status.FAIL)]
)
def test_small_numbers_are_compared_by_their_quotient(gold: str, factor: str, verdict: Status) -> None:
    assert judge_symbolically(f"{factor} \\cdot {gold}", gold).verdict is verdict


def test_gold_comes_first() -> None:
    """An inequality as gold accepts the interval that solves it; the reverse does not hold."""
    assert judge_math("(-\\infty, 2]", "x \\le 2").reason == "equivalent"
    assert judge_math("x \\le 2", "(-\\infty, 2]").reason == "not_equal"


NUMBERS = st.tuples(st.integers(-3, 3), st.integers(1, 4)).flatmap(
    lambda pair: st.sampled_from(
        [
            f"{pair[0]}",
            f"{pair[0]}.0",
            f"{pair[0]}.50",
            f"{pair[0]}/{pair[1]}",
            f"\\frac{{{pair[0]}}}{{{pair[1]}}}",
        ]
    )
)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS)
def test_numbers_are_judged_as_math_verify_judges_them(answer: str, gold: str) -> None:
    assert judge_math(answer, gold).verdict is judge_symbolically(answer, gold).verdict


POLYNOMIALS = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(
    lambda factors: "+".join(f"{factor}x^{{{power}}}" for power, factor in enumerate(factors, start=2))
)
GOLDS = st.one_of(
    st.integers(-1000, 1000).map(str),
    st.tuples(st.integers(1, 99), st.integers(2, 99)).map(lambda pair: f"\\frac{{{pair[0]}}}{{{pair[1]}}}"),
    st.integers(2, 99).map(lambda value: f"\\sqrt{{{value}}}"),
    st.tuples(st.integers(-9, 9), st.integers(10, 20)).map(lambda pair: f"({pair[0]}, {pair[1]}]"),
    POLYNOMIALS,
)


@settings(max_examples=40, deadline=None)
@given(GOLDS)
def test_every_gold_passes_against_itself_by_both_ways(gold: str) -> None:
    assert judge_math(gold, gold).reason == "equal_string"
    assert judge_symbolically(gold, gold).verdict is Status.PASS


@settings(max_examples=40, deadline=None)
@given(GOLDS, st.data())
def test_a_gold_with_a_changed_digit_fails(gold: str, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from([place for place, character in enumerate(gold) if character.isdigit()]))
    changed = gold[:place] + str(1 + int(gold[place]) % 9) + gold[place + 1 :]
    if changed != gold:
        assert judge_math(changed, gold).verdict is Status.FAIL
