"""Repeated n-grams and loops, counted by hand on small texts."""

from __future__ import annotations

from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.records import Status
from model.rewards.check import Scored
from model.rewards.repetition import RepetitionCheck, judge_repetition, repetition
from model.rewards.settings import CheckSettings, RepetitionSettings


def words(number: int, start: int = 0) -> list[str]:
    """Distinct words of letters."""
    return [f"w{'abcdefghij'[n // 100 % 10]}{'abcdefghij'[n // 10 % 10]}{'abcdefghij'[n % 10]}"
            for n in islice(count(start), number)]  # fmt: skip


def test_distinct_words_repeat_nothing() -> None:
    found = repetition(" ".join(words(200)))
    assert (found.share, found.loop, found.span) == (0.0, 0, None)


def test_the_share_is_that_of_ngrams_seen_before() -> None:
    # 30 + 10 + 30 words make 66 5-grams, of which the 26 of the second copy are known.
    text = " ".join([*words(30), *words(10, 500), *words(30)])
    found = repetition(text, ngram=5)
    assert found.share == 26 / 66
    assert found.loop == 0
    assert found.span is not None
    assert found.span.startswith("waaa waab")


@pytest.mark.parametrize(("unit", "copies"), [(1, 40), (3, 20), (25, 3), (70, 4)])
def test_a_loop_is_measured_whatever_its_period(unit: int, copies: int) -> None:
    loop = repetition(" ".join([*words(50, 500), *(words(unit) * copies), *words(50, 700)])).loop
    assert loop == unit * copies


def test_twice_is_no_loop() -> None:
    assert repetition(" ".join(words(100) * 2)).loop == 0


@pytest.mark.parametrize(("text", "reason"), [
    ("the " * 61, "loop"), ("Wait, let me check that again.\n" * 11, "loop"), ("x" * 10_000, "loop"),
    ("所以答案是七。" * 20, "loop"), (" ".join([*words(100), *words(20, 500), *words(100)]), "repeated"),
    ("the " * 60, "repeated"), ("0 1 0 1 " * 500, "varied"), ("- " * 500, "varied"), ("", "varied"),
])  # fmt: skip
def test_reasons(text: str, reason: str) -> None:
    assert judge_repetition(text).reason == reason


def test_same_steps_with_other_numbers_are_no_repetition() -> None:
    steps = "\n".join(f"Now we multiply {n} by {n + 1} and get {n * (n + 1)} in this step." for n in range(200))
    assert judge_repetition(steps).reason == "varied"


def test_a_loop_at_the_end_of_a_long_chain_is_found() -> None:
    numbered = " ".join(f"{word}{n}" for n, word in enumerate(words(1000) * 5))
    assert repetition(numbered).share == 0.0
    judgement = judge_repetition(f"{numbered} {'and so on ' * 30}")
    assert (judgement.verdict, judgement.reason) == (Status.FAIL, "loop")
    assert judgement.detail is not None
    assert "loop of 90 words: and so on and so on" in judgement.detail


@given(st.lists(st.sampled_from(["ab", "cd", "ef", "7"]), max_size=60), st.integers(2, 5))
def test_the_share_agrees_with_counting(chosen: list[str], ngram: int) -> None:
    grams = [tuple(chosen[i : i + ngram]) for i in range(len(chosen) - ngram + 1)]
    seen = sum(gram in grams[:i] and any(w.isalpha() for w in gram) for i, gram in enumerate(grams))
    expected = seen / len(grams) if len(grams) > 1 else 0.0
    assert repetition(" ".join(chosen), ngram).share == expected


def test_settings_reach_the_check() -> None:
    item = Scored(text="", reasoning="the " * 61)
    assert RepetitionCheck(CheckSettings())(item).reason == "loop"
    loose = RepetitionCheck(CheckSettings(repetition=RepetitionSettings(most_share=1.0, most_loop=100)))
    assert loose(item).verdict is Status.PASS
    assert loose.version.startswith("1+")
