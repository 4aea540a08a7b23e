"""The samples of many problems compared in several processes: the work of `duplicate`, nearly all of it Python's.

`Comparers` shares the problems out. A process (`python -m model.rewards.workers.comparing`) reads its share from a
temporary file, a pickle per problem, answers in another, and ends; what is too little for two is done where it is.
Memory holds the texts once, and one problem's once more in every process; TMPDIR holds them meanwhile.
A process ignores Ctrl-C: its parent kills it then, and whenever a call ends with an exception. A parent that is itself
killed it outlives by the seconds that are left of its share at most.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import model
from model.errors import StillhouseError
from model.rewards.check import Scored
from model.rewards.duplicate import Earlier, judge_samples
from model.rewards.settings import DuplicateSettings
from model.rewards.workers.worker import Timed

COMMAND = [sys.executable, "-P", "-m", "model.rewards.workers.comparing"]
POLL_SECONDS = 0.05  # between two looks at the processes
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
        for first, share in self._apart([groups[first::processes] for first in range(processes)]).items():
            judged[first::processes] = share
        return judged

    def _apart(self, shares: Sequence[Sequence[Group]]) -> dict[int, list[list[Timed]]]:
        """The judgements by the share's place. No process is left running, however this ends."""
        waiting, running, judged = list(enumerate(shares)), dict[int, _Process](), dict[int, list[list[Timed]]]()
        try:
            while waiting or running:
                while waiting and self._room.acquire(blocking=False):
                    place, groups = waiting.pop()
                    running[place] = _Process()
                    running[place].start(groups, self.settings)
                # Short waits let an exception set from another thread (Prefect's cancellation) get through.
                time.sleep(POLL_SECONDS)
                for place in [place for place, process in running.items() if process.has_ended()]:
                    judged[place] = running[place].judgements()
                    self._end(running.pop(place))
        finally:
            for process in running.values():
                self._end(process)
        return judged

    def _end(self, process: _Process) -> None:
        process.end()
        self._room.release()


class _Process:
    """A process with its share of the problems."""

    def __init__(self) -> None:
        self._files = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, groups: Sequence[Group], settings: DuplicateSettings) -> None:
        with ExitStack() as files:
            given = files.enter_context(tempfile.TemporaryFile())
            self._said = files.enter_context(tempfile.TemporaryFile())
            self._complaints = files.enter_context(tempfile.TemporaryFile())
            for part in (settings, *groups):
                pickle.dump(part, given)
            given.seek(0)
            self._process = subprocess.Popen(
                COMMAND, stdin=given, stdout=self._said, stderr=self._complaints, env=_environment()
            )
            self._files = files.pop_all()

    def has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def judgements(self) -> list[list[Timed]]:
        """What a process that has ended said. StillhouseError when it died of something else."""
        assert self._process is not None, "it has ended"
        status = self._process.returncode
        if status < 0:
            remedy = "probably for memory: lower verify.workers"
            raise StillhouseError(f"a process that compares samples was killed (signal {-status}), {remedy}")
        if status:
            last = _read(self._complaints).decode(errors="replace").strip().rpartition("\n")[2]
            raise StillhouseError(f"a process that compares samples ended with status {status}: {last}")
        judged: list[list[Timed]] = pickle.loads(_read(self._said))
        return judged

    def end(self) -> None:
        """Whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._files.close()


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


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
    settings = pickle.load(sys.stdin.buffer)
    judged = [judge_groups([group], settings)[0] for group in _parts(sys.stdin.buffer)]
    sys.stdout.buffer.write(pickle.dumps(judged))


def _parts(file: IO[bytes]) -> Iterator[Group]:
    """What was written one pickle after the other."""
    while True:
        try:
            yield pickle.load(file)
        except EOFError:
            return


def _environment() -> dict[str, str]:
    """One thread per process; `model` importable from wherever it is here."""
    root = str(Path(str(model.__file__)).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


if __name__ == "__main__":
    main()
