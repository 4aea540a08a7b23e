"""One poisoned sample of each kind changes nothing for the samples around it, and no text costs more than its length.

All checks that look at one sample are run, in a real pool. A shard of a thousand healthy samples is judged twice, once
with a poisoned one after every so many; the healthy ones' verdicts must be the same. Parquet cannot store lone
surrogates, so those meet the checks only where these are called directly (as rewards); they are judged all the same.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from model.rewards.check import Judgement, Scored
from model.rewards.registry import CHECKS, build_checks
from model.rewards.settings import CheckSettings, ContaminationSettings
from model.rewards.workers.pool import VerifierPool

HEALTHY = 1000
QUOTED = "A shepherd counts seven times as many sheep as dogs, and there are four dogs; how many legs is that?"
NAMES = [name for name in CHECKS if name != "code"]  # programs are the sandbox's, with attacks of their own
TEXT_CHECKS = [
    "format", "language", "mixed_language", "repetition", "long_paragraph", "code_block", "contamination", "length",
]  # fmt: skip


def healthy(number: int) -> Scored:
    thought = f"We add {number} and one to see what the sum of these two numbers is, and so we find it."
    if number % 5 == 0:
        thought += "\nDas ist nun aber wirklich nicht die Sprache, in der gefragt worden war."
    if number % 40 == 1:
        thought += f"\n{QUOTED}"
    text = f"<think>\n{thought}\n</think>\n<answer>{number + 1}</answer>"
    prompt = f"What is the sum of {number} and one?"
    return Scored(text=text, gold=str(number + (number % 7 != 0)), reasoning=thought, prompt=prompt)


def answering(answer: str, gold: str = "7") -> Scored:
    return Scored(text=f"<think>\nhm\n</think>\n<answer>{answer}</answer>", gold=gold, reasoning="hm")


def thinking(thought: str) -> Scored:
    return Scored(text=f"<think>{thought}</think><answer>7</answer>", gold="7", reasoning=thought)


# Each with what `math` has to say; None: whatever it is.
POISON: dict[str, tuple[Scored, str | None]] = {
    "NUL bytes": (answering("7\0"), "equal_string"),
    "a megabyte of NUL bytes": (thinking("\0" * 1_000_000), "equal_string"),
    "lone surrogates": (answering("7 \ud800"), None),
    "a chain of lone surrogates": (thinking("so\udfff we\ud800 " * 20_000), "equal_string"),
    "right-to-left marks": (answering("\u202e7\u202c"), "equal_string"),
    "a chain of right-to-left marks": (thinking("\u202e\u202c" * 500_000), "equal_string"),
    "ten to the nine to the nine": (answering("10^9^9"), "out_of_bounds"),
    "LaTeX bomb": (answering("\\frac{1}{" * 500 + "2" + "}" * 500), "out_of_bounds"),
    "open braces": (answering("{" * 1900), "out_of_bounds"),
    "ten thousand thoughts": (Scored(text="<think>" * 10_000, gold="7"), "no_answer"),
    "ten thousand closed thoughts": (Scored(text="<think></think>" * 10_000 + "7", gold="7"), "equal_string"),
    "fifty megabytes": (Scored(text="x" * 50_000_000 + "</think> 7", gold="7"), "equal_string"),
    "megabytes of digits": (Scored(text="7" * 5_000_000, gold="7"), "out_of_bounds"),
    "megabytes of boxes": (Scored(text="\\boxed{" * 1_000_000, gold="7"), "no_answer"),
    "many dollars": (Scored(text="$" * 1_000_000, gold="7"), None),
    "a gold that explodes": (answering("7", gold="9^{9^{9^9}}"), "gold_out_of_bounds"),
    "factorials that explode": (answering("(((9!)!)!)!"), "timed_out"),
    "a word in every script by turns": (thinking("ab 中 вг αβ עב กข " * 50_000), "equal_string"),
    "accents upon accents": (thinking("a" + "\u0301" * 1_000_000), "equal_string"),
    "a loop without end": (thinking("the " * 500_000), "equal_string"),
    "a million fences": (thinking("```\n" * 1_000_000), "equal_string"),
    "environments that never end": (thinking("\\begin{" * 500_000), "equal_string"),
    "a megabyte of blanks and tabs": (thinking(" \t" * 500_000 + "if"), "equal_string"),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> CheckSettings:
    """With a benchmark that one healthy sample in forty quotes."""
    file: Path = tmp_path_factory.mktemp("bench") / "bench.jsonl"
    file.write_text(json.dumps({"question": QUOTED}))
    return CheckSettings(contamination=ContaminationSettings(files=(str(file),)))


@pytest.fixture(scope="module")
def shards(settings: CheckSettings) -> tuple[list[list[Judgement]], list[list[Judgement]], list[list[Judgement]]]:
    """The healthy samples' judgements alone, the same in poisoned company, and those of the poison."""
    items = [healthy(number) for number in range(HEALTHY)]
    step = HEALTHY // len(POISON)
    mixed: list[Scored] = []
    for number, (poison, _) in enumerate(POISON.values()):
        mixed += [*items[number * step : (number + 1) * step], poison]
    mixed += items[len(POISON) * step :]
    with VerifierPool(NAMES, settings, workers=2, timeout_seconds=5.0) as pool:
        rows = [[judgement for judgement, _ in row] for row in pool.run(mixed)]
        alone = [[judgement for judgement, _ in row] for row in pool.run(items)]
    places = {(step + 1) * number + step for number in range(len(POISON))}
    company = [row for place, row in enumerate(rows) if place not in places]
    return alone, company, [row for place, row in enumerate(rows) if place in places]


def test_the_healthy_samples_are_judged_as_ever(shards: Any) -> None:
    alone, company, _ = shards
    assert len(alone) == HEALTHY
    assert company == alone


def test_the_healthy_samples_are_not_all_alike(shards: Any) -> None:
    reasons = {name: {row[place].reason for row in shards[0]} for place, name in enumerate(NAMES)}
    assert reasons["language"] == {"target_language", "other_language"}
    assert reasons["mixed_language"] == {"one_language", "mixed_languages"}
    assert reasons["math"] == {"equal_string", "not_equal"}
    assert reasons["contamination"] == {"overlap", "no_overlap"}


@pytest.mark.parametrize("kind", POISON)
def test_a_poisoned_sample_gets_verdicts_with_reasons(kind: str, shards: Any) -> None:
    row = shards[2][list(POISON).index(kind)]
    reasons = [judgement.reason for judgement in row]
    expected = POISON[kind][1]
    assert expected is None or reasons[NAMES.index("math")] == expected
    assert [reason for reason in reasons if reason in ("timed_out", "worker_died", "raised", "out_of_memory")] == (
        ["timed_out"] if expected == "timed_out" else []
    )


def test_what_is_repeated_without_end_is_told(shards: Any) -> None:
    row = shards[2][list(POISON).index("a loop without end")]
    assert row[NAMES.index("repetition")].reason == "loop"
    row = shards[2][list(POISON).index("fifty megabytes")]
    assert row[NAMES.index("long_paragraph")].reason == "long_paragraph"


# Patterns that a careless regular expression takes quadratic time for.
PATTERNS = [
    "x", " ", "\n", "a ", "$", "$a", "<", "<a", "\\", "\\begin{", "\\begin{\\end{", "`", "```\n", "```math\n", "~~~",
    "    if a:", "    x = f\n", "https://", "a'", ". ", "1 ", "_", "a\u0301", "ab 中 ", "\0", "\ud800", "\u202e",
    "((", "{",
]  # fmt: skip


@pytest.mark.parametrize("name", TEXT_CHECKS)
def test_no_text_takes_more_than_its_length(name: str, settings: CheckSettings) -> None:
    """In quadratic time each of these texts would take hours, and the suite's time limit would end this test."""
    (check,) = build_checks([name], settings)
    check.warm_up()
    for pattern in PATTERNS:
        text = f"start {pattern * (200_000 // len(pattern))}\nend"
        assert re.fullmatch("[a-z_]+", check(Scored(text=text, prompt="What is this?")).reason)
