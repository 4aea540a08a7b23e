"""Checks for tests only: one that has trouble until a file exists, and one of the second form that rests on it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from model.records import Status
from model.rewards.check import Judgement, Scored, errored, passed
from model.rewards.settings import CheckSettings
from model.rewards.workers.worker import Timed
from tasks.shard_checks import ShardWork

MENDED = "STILLHOUSE_TEST_MENDED"  # path of a file; until it exists there is trouble
TROUBLE = "STILLHOUSE_TEST_TROUBLE"  # of this kind: raise, sleep, die
SLOW = "STILLHOUSE_TEST_SECONDS"  # that every verdict takes


def troubled(sample_id: str) -> bool:
    """Whether a sample is one of those that meet trouble: about every second one."""
    return int(sample_id[-1], 16) % 2 == 0


class FlakyCheck:
    """Its reason says whether the sample had trouble before."""

    name = "flaky"
    version = "1"

    def __init__(self, settings: CheckSettings) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def __call__(self, item: Scored) -> Judgement:
        time.sleep(float(os.environ.get(SLOW, "0")))
        if not troubled(item.sample_id):
            return passed("sound", detail=item.text)
        if not Path(os.environ[MENDED]).exists():
            _trouble(os.environ.get(TROUBLE, "raise"))
        return passed("mended", detail=item.text)


def _trouble(kind: str) -> None:
    if kind == "sleep":
        time.sleep(60)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("not mended yet")


class EchoCheck:
    """Says of each sample what the check `flaky` said; an error where that is one. Keeps what it was shown."""

    name = "echo"
    version = "1"

    def __init__(self, after_all: bool = False) -> None:
        self.after_all = after_all
        self.shown: list[tuple[int, list[str]]] = []

    def judge_shard(self, work: ShardWork) -> list[Timed]:
        self.shown.append((work.shard, [item.sample_id for item in work.items]))
        return [(self._echo(said), 1.0) for said in work.verdicts["flaky"]]

    def _echo(self, said: Judgement) -> Judgement:
        return errored("no_word") if said.verdict is Status.ERROR else passed(said.reason)
