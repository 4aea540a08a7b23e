"""One poisoned sample of each kind changes nothing for the samples around it, and none of them takes long."""

from __future__ import annotations

import pytest

from model.rewards.check import Scored
from model.rewards.pool import VerifierPool

CHECKS = ["finish", "format", "math", "language", "length"]


def healthy(number: int) -> Scored:
    thought = f"We add {number} and one to see what the sum of these two numbers is, and so we find it."
    text = f"<think>\n{thought}\n</think>\n<answer>{number + 1}</answer>"
    return Scored(text=text, gold=str(number + 1), reasoning=thought)


def answering(answer: str, gold: str = "7") -> Scored:
    return Scored(text=f"<think>\nhm\n</think>\n<answer>{answer}</answer>", gold=gold, reasoning="hm")


POISON = {
    "NUL bytes": (answering("7\0"), "equal_string"),
    "lone surrogates": (answering("7 \ud800"), None),
    "right-to-left marks": (answering("\u202e7\u202c"), "equal_string"),
    "ten to the nine to the nine": (answering("10^9^9"), "out_of_bounds"),
    "LaTeX bomb": (answering("\\frac{1}{" * 500 + "2" + "}" * 500), "out_of_bounds"),
    "open braces": (answering("{" * 1900), "out_of_bounds"),
    "ten thousand thoughts": (Scored(text="<think>" * 10_000, gold="7"), "no_answer"),
    "ten thousand closed thoughts": (Scored(text="<think></think>" * 10_000 + "7", gold="7"), "equal_string"),
    "fifty megabytes": (Scored(text="x" * 50_000_000 + "</think> 7", gold="7"), "equal_string"),
    "megabytes of digits": (Scored(text="7" * 5_000_000, gold="7"), "out_of_bounds"),
    "megabytes of boxes": (Scored(text="\\boxed{" * 1_000_000, gold="7"), "no_answer"),
    "many dollars": (Scored(text="$" * 1_000_000, gold="7"), "no_answer"),
    "a gold that explodes": (answering("7", gold="9^{9^{9^9}}"), "gold_out_of_bounds"),
    "factorials that explode": (answering("(((9!)!)!)!"), "timed_out"),
}


@pytest.fixture(scope="module")
def shard() -> list[list[str]]:
    """The reasons of a shard in which every seventh sample is poisoned."""
    items: list[Scored] = []
    for number, (poison, _) in enumerate(POISON.values()):
        items += [healthy(6 * number + offset) for offset in range(6)]
        items.append(poison)
    with VerifierPool(CHECKS, workers=2, timeout_seconds=4.0) as pool:
        return [[judgement.reason for judgement, _ in row] for row in pool.run(items)]


def test_the_healthy_samples_are_judged_as_ever(shard: list[list[str]]) -> None:
    rows = [row for position, row in enumerate(shard) if position % 7 != 6]
    assert len(rows) == 6 * len(POISON)
    assert {tuple(row) for row in rows} == {("stopped", "full", "equal_string", "target_language", "measured")}


@pytest.mark.parametrize("kind", POISON)
def test_a_poisoned_sample_gets_a_verdict_with_a_reason(kind: str, shard: list[list[str]]) -> None:
    row = shard[7 * list(POISON).index(kind) + 6]
    expected = POISON[kind][1]
    assert expected is None or row[CHECKS.index("math")] == expected
    assert [reason for reason in row if reason in ("timed_out", "worker_died", "raised")] == (
        ["timed_out"] if expected == "timed_out" else []
    )
