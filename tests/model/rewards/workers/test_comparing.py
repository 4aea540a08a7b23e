"""Samples compared in several processes: the same judgements, and what is told when a process dies."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from model.errors import StillhouseError
from model.rewards.check import Judgement, Scored
from model.rewards.duplicate import Earlier, judge_samples
from model.rewards.settings import DuplicateSettings
from model.rewards.workers import comparing
from model.rewards.workers.comparing import Comparers, Group, judge_groups

SETTINGS = DuplicateSettings()
TEXTS = ["three and four are seven", "count on from three by four", "three and four  are seven", "it is seven \ud800"]


def group(number: int) -> Group:
    """Some of the texts, the first of them made before; of every third problem there is no sample."""
    items = [Scored(f"{text} {number}", sample_id=f"{number}.{at}") for at, text in enumerate(TEXTS)]
    return Group(items[: number % 3 * 2], [Earlier("before", f"{TEXTS[0]} {number}")] if number % 2 else [])


GROUPS = [group(number) for number in range(7)]


def judgements(found: Sequence[Sequence[tuple[Judgement, float]]]) -> list[list[Judgement]]:
    return [[judgement for judgement, _ in timed] for timed in found]


def test_processes_say_what_one_call_after_the_other_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "_CHARACTERS", 1)
    expected = [judge_samples(one.items, one.earlier, SETTINGS) for one in GROUPS]
    assert {word.reason for words in expected for word in words} >= {"first_made", "same_text", "unlike"}
    assert judgements(Comparers(SETTINGS, 3).judge(GROUPS)) == expected
    assert judgements(judge_groups(GROUPS, SETTINGS)) == expected


@pytest.mark.parametrize(("workers", "characters"), [(1, 1), (4, 10_000_000)])
def test_little_work_and_one_worker_need_no_process(
    workers: int, characters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "_CHARACTERS", characters)
    monkeypatch.delattr(subprocess, "run")
    assert len(Comparers(SETTINGS, workers).judge(GROUPS)) == len(GROUPS)
    assert Comparers(SETTINGS, workers).judge([]) == []


def test_a_process_that_dies_says_nothing_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, -9, b"", b"Traceback\nMemoryError\n")

    monkeypatch.setattr(comparing, "_CHARACTERS", 1)
    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(StillhouseError, match="status -9: MemoryError") as caught:
        Comparers(SETTINGS, 2).judge(GROUPS)
    assert caught.value.retryable
