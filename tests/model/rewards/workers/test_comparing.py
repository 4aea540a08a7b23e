"""Samples compared in several processes: the same judgements, and what is told when a process dies."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
    monkeypatch.delattr(subprocess, "Popen")
    assert len(Comparers(SETTINGS, workers).judge(GROUPS)) == len(GROUPS)
    assert Comparers(SETTINGS, workers).judge([]) == []


def test_two_calls_that_both_want_all_processes_both_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "_CHARACTERS", 1)
    comparers = Comparers(SETTINGS, 2)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(comparers.judge, [GROUPS] * 3))
    assert len({str(judgements(one)) for one in found}) == 1


DEATHS = [
    ("import os; os.kill(os.getpid(), 9)", r"was killed \(signal 9\), probably for memory: lower verify\.workers"),
    ("raise MemoryError", "ended with status 1: MemoryError"),
]


@pytest.mark.parametrize(("program", "said"), DEATHS)
def test_a_process_that_dies_says_nothing_of_the_samples(
    program: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = watched(monkeypatch, program)
    with pytest.raises(StillhouseError, match=said) as caught:
        Comparers(SETTINGS, 2).judge(GROUPS)
    assert caught.value.retryable
    assert all(process.returncode is not None for process in started)


def test_ctrl_c_ends_the_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As does any exception that another thread sets; and there is room for other processes afterwards."""
    comparers = Comparers(SETTINGS, 2)
    with monkeypatch.context() as slow:
        started = watched(slow, "import time; time.sleep(60)")
        threading.Timer(0.5, _thread.interrupt_main).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            comparers.judge(GROUPS)
        assert time.monotonic() - start < 5
        assert [process.returncode for process in started] == [-9, -9]
    monkeypatch.setattr(comparing, "_CHARACTERS", 1)
    assert judgements(comparers.judge(GROUPS)) == judgements(judge_groups(GROUPS, SETTINGS))


def watched(monkeypatch: pytest.MonkeyPatch, program: str) -> list[subprocess.Popen[bytes]]:
    """The processes that will be started, each with this program."""
    started: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **more: object) -> None:
            super().__init__(*arguments, **more)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(comparing, "_CHARACTERS", 1)
    monkeypatch.setattr(comparing, "COMMAND", [sys.executable, "-c", program])
    monkeypatch.setattr(subprocess, "Popen", Watched)
    return started
