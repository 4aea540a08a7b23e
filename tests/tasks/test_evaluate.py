"""From judged answers to rows of `evaluations`, worked out by hand."""

from __future__ import annotations

import pytest

from model.records import problem_id
from model.templates import PromptTemplate
from tasks.engine import EngineSpec
from tasks.evaluate import Answer, Contestant, Suite, evaluation_key, measure

TEMPLATE = PromptTemplate("t")
CONTESTANT = Contestant("sft", 12, EngineSpec("folder"), "revision", TEMPLATE)
SUITE = Suite(
    problems=(),
    replicas=2,
    max_tokens=8,
    temperature=0.7,
    top_p=1.0,
    k=(1, 2),
    require=("math",),
    confidence=0.95,
    bootstrap=200,
    seed=0,
)


def answer(problem: str, replica: int, correct: bool | None, text: str, source: str = "sums") -> Answer:
    key = problem_id("math", problem, None)
    return Answer(f"{key}{replica}", key, replica, "sft", 12, source, correct, "", text, 5, text)


def values(answers: list[Answer]) -> dict[tuple[str, str], float]:
    return {(row.suite, row.metric): row.value for row in measure("key", answers, CONTESTANT, SUITE)}


def test_pass_at_k_and_consensus_by_hand() -> None:
    """Problem a: one of two right, tied vote. Problem b: both right. pass@1 = (1/2 + 1)/2, pass@2 = 1, cons = 3/4."""
    found = values(
        [answer("a", 0, True, "1"), answer("a", 1, False, "2"), answer("b", 0, True, "3"), answer("b", 1, True, "3")]
    )
    assert found == {("sums", "pass@1"): 0.75, ("sums", "pass@2"): 1.0, ("sums", "cons@2"): 0.75}


def test_what_could_not_be_judged_is_left_out() -> None:
    """An error is never a wrong answer: problem a has one judged sample, so it has no pass@2."""
    found = values(
        [answer("a", 0, True, "1"), answer("a", 1, None, "2"), answer("b", 0, False, "3"), answer("b", 1, False, "4")]
    )
    assert found[("sums", "pass@1")] == 0.5
    assert found[("sums", "pass@2")] == 0.0


def test_several_sources_give_a_suite_each_and_one_for_all() -> None:
    found = values([answer("a", 0, True, "1", "easy"), answer("b", 0, False, "3", "hard")])
    assert (found[("easy", "pass@1")], found[("hard", "pass@1")], found[("all", "pass@1")]) == (1.0, 0.0, 0.5)


def test_an_answer_in_the_wrong_format_still_votes_for_what_is_right() -> None:
    found = values([answer("a", 0, False, "7"), answer("a", 1, True, "7")])
    assert found[("sums", "cons@2")] == 1.0


@pytest.mark.parametrize(
    "change", [{"replicas": 3}, {"temperature": 1.0}, {"require": ("math", "format")}, {"seed": 1}]
)
def test_the_key_names_everything_that_the_numbers_depend_on(change: dict[str, object]) -> None:
    from dataclasses import replace

    other = replace(SUITE, **change)
    assert evaluation_key(CONTESTANT, SUITE, {"math": "1"}) != evaluation_key(CONTESTANT, other, {"math": "1"})
    assert evaluation_key(CONTESTANT, SUITE, {"math": "1"}) != evaluation_key(CONTESTANT, SUITE, {"math": "2"})
    assert evaluation_key(CONTESTANT, SUITE, {"math": "1"}) == evaluation_key(CONTESTANT, SUITE, {"math": "1"})
