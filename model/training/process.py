"""What makes a training run a well-behaved process: it dies with its starter, stops when asked, owns its folder.

Linux only, like the rest of the factory. Nothing here knows of models.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import TrainingError

EXIT_DONE, EXIT_FAILED, EXIT_WRONG_JOB, EXIT_OUT_OF_MEMORY = 0, 1, 2, 3
EXIT_STOPPED = 75  # EX_TEMPFAIL, "resume me"
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Has the kernel kill this process when the parent goes, also by kill -9; leaves at once if it is gone.

    The kernel watches the thread that started this process: start it from a thread that waits for it.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        print(f"process {parent} is not (or no longer) the parent: not training", file=sys.stderr)
        sys.exit(EXIT_STOPPED)


def say(line: str) -> None:
    """One line on stderr, if it can be: on a full disk the log is full too, and the exit status must still be told."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


class StopRequest:
    """Remembers SIGTERM and SIGINT until the loop has come to a step's end; what `also` is does so at once."""

    def __init__(self) -> None:
        self.received = False
        self.also: Callable[[], None] = lambda: None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, *_: object) -> None:
        self.received = True
        self.also()


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the kernel lets go when the process ends. Raises TrainingError if it is held."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(f"another process is training in {folder}: wait for it or end it") from error
        yield
