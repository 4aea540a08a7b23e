"""The samples of many problems compared in several processes: the work of `duplicate`, nearly all of it Python's.

`Comparers` shares the problems out. A process (`python -m model.rewards.workers.comparing`) is given its share at once,
as a pickle on its standard input, answers with another, and ends; what is too little for two is done where it is.
A process ignores Ctrl-C, its parent's business, and outlives it by the seconds that are left of its share at most.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import model
from model.errors import StillhouseError
from model.rewards.check import Scored
from model.rewards.duplicate import Earlier, judge_samples
from model.rewards.settings import DuplicateSettings
from model.rewards.workers.worker import Timed

_CHARACTERS = 10_000_000  # for each process, at least: a second's work, to a start of a third of one


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of one problem, and those made before them."""

    items: Sequence[Scored]
    earlier: Sequence[Earlier]

    @property
    def characters(self) -> int:
        """Of all its texts."""
        return sum(len(item.text) for item in self.items) + sum(len(one.text) for one in self.earlier)


class Comparers:
    """At most `workers` processes, whatever number of threads ask for judgements."""

    def __init__(self, settings: DuplicateSettings, workers: int) -> None:
        self.settings, self._workers = settings, workers
        self._room = threading.BoundedSemaphore(workers)

    def judge(self, groups: Sequence[Group]) -> list[list[Timed]]:
        """Per group and item its judgement. StillhouseError when a process dies, which says nothing of the samples."""
        work = sum(group.characters for group in groups)
        processes = min(self._workers, len(groups), work // _CHARACTERS)
        if processes < 2:
            return judge_groups(groups, self.settings)
        judged: list[list[Timed]] = [[]] * len(groups)
        with ThreadPoolExecutor(processes) as threads:
            shares = threads.map(self._in_a_process, [groups[first::processes] for first in range(processes)])
            for first, share in enumerate(shares):
                judged[first::processes] = share
        return judged

    def _in_a_process(self, groups: Sequence[Group]) -> list[list[Timed]]:
        with self._room:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "model.rewards.workers.comparing"],
                input=pickle.dumps((groups, self.settings)),
                capture_output=True,
                env=_environment(),
                check=False,
            )
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise StillhouseError(f"a process that compares samples ended with status {done.returncode}: {last}")
        judged: list[list[Timed]] = pickle.loads(done.stdout)
        return judged


def judge_groups(groups: Sequence[Group], settings: DuplicateSettings) -> list[list[Timed]]:
    """Per group and item its judgement, and its part of the group's milliseconds."""
    judged = []
    for group in groups:
        started = time.perf_counter()
        words = judge_samples(group.items, group.earlier, settings)
        each = (time.perf_counter() - started) * 1000 / max(len(words), 1)
        judged.append([(word, each) for word in words])
    return judged


def main() -> None:
    """Judges one share."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.buffer.write(pickle.dumps(judge_groups(*pickle.load(sys.stdin.buffer))))


def _environment() -> dict[str, str]:
    """One thread per process; `model` importable from wherever it is here."""
    root = str(Path(str(model.__file__)).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


if __name__ == "__main__":
    main()
