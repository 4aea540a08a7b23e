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
from typing import Protocol

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


def memory_kills() -> int | None:
    """How many processes this machine's kernel has killed for want of memory since it started; None: it does not say.

    A service that kills in the kernel's place (systemd-oomd) is not counted.
    """
    try:
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def kills_from_now() -> Callable[[], bool]:
    """Tells, when it is called, whether the kernel may have killed a process for want of memory meanwhile."""
    before = memory_kills()

    def happened() -> bool:
        now = memory_kills()
        return before is None or now is None or now > before

    return happened


def say(line: str) -> None:
    """One line on stderr, if it can be: on a full disk the log is full too, and the exit status must still be told."""
    with suppress(OSError):
        if sys.stderr is sys.__stderr__:
            os.write(2, f"{line}\n".encode(errors="backslashreplace"))
        else:  # bars are shown, and what is printed goes above them
            print(line, file=sys.stderr, flush=True)


class StopSignal(Protocol):
    """Has someone asked the process to stop?"""

    received: bool


class Stopped(Exception):  # noqa: N818 - a request that was met, not an error
    """The process was asked to stop, and has written a checkpoint."""


class StopNow(KeyboardInterrupt):
    """A stop request that ends a block at once. As Ctrl-C does, so that event loops let it through."""


class StopRequest:
    """Remembers SIGTERM and SIGINT until the loop has come to a step's end; what `also` is does so at once."""

    def __init__(self) -> None:
        self.received = False
        self.also: Callable[[], None] = lambda: None
        self._ends_block = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, *_: object) -> None:
        self.received = True
        self.also()
        if self._ends_block:
            self._ends_block = False  # what the block does on its way out is not interrupted again
            raise StopNow

    @contextmanager
    def ends(self) -> Iterator[None]:
        """A block of the main thread that a request ends with StopNow; one that came before, at its beginning."""
        if self.received:
            raise StopNow
        self._ends_block = True
        try:
            yield
        finally:
            self._ends_block = False


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
