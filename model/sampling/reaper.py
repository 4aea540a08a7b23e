"""Runs a command so that nothing of it outlives the process that wanted it, however that process dies.

    python reaper.py PARENT_PID -- command argument …

vLLM starts an engine process, which starts workers; a death signal set on the server reaches none of them,
and a `kill -9` of our own process runs no clean-up code. So this small process stands between. It makes
itself the child-subreaper: whatever the command forks, even twice and into other sessions, stays in its tree.
It ends the tree when the command ends, on SIGTERM or SIGINT, or when its parent is gone: SIGTERM to every
process first, and SIGKILL for what is left after the grace period. It then exits with the command's code (128
+ n for signal n).

Linux only (prctl, /proc). Not promised: should this process itself be killed with SIGKILL, only the command's
first process dies with it. Standard library only, run as a plain file: it starts in some 30 ms.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.3
COMMAND_NOT_RUN = 127


def main(arguments: list[str]) -> int:
    """Entry point: PARENT_PID, `--`, then the command. Returns the exit code."""
    parent, command = int(arguments[0]), arguments[2:]
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    try:
        # This process has one thread, so code between fork and exec is safe.
        child = subprocess.Popen(command, preexec_fn=_prepare_child)  # noqa: PLW1509
    except OSError as error:
        print(f"reaper: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return COMMAND_NOT_RUN
    code = _watch(child.pid, parent)
    ended = end_descendants(child.pid)
    return code if code is not None else ended if ended is not None else 128 + signal.SIGTERM


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def _prepare_child() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def _watch(child: int, parent: int) -> int | None:
    """Waits until the command has ended (its exit code) or must be ended (None)."""
    while True:
        # An orphan is given another parent at once, also while the dead one is still a zombie.
        if os.getppid() != parent:
            return None
        received = signal.sigtimedwait(WATCHED, POLL_SECONDS)
        for pid, code in _ended_children():
            if pid == child:
                return code
        if received is not None and received.si_signo != signal.SIGCHLD:
            return None


def _ended_children() -> Iterator[tuple[int, int]]:
    """(pid, exit code) of every child that has ended, adopted ones included."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        yield pid, code if code >= 0 else 128 - code


def end_descendants(child: int, grace: float = GRACE_SECONDS) -> int | None:
    """Ends all processes below this one and waits for them; `child`'s exit code if it was still running."""
    deadline = time.monotonic() + grace
    code, asked = None, set[int]()
    while alive := descendants(os.getpid()):
        force = time.monotonic() > deadline
        for pid in alive if force else [pid for pid in alive if pid not in asked]:
            send(pid, signal.SIGKILL if force else signal.SIGTERM)
            asked.add(pid)
        time.sleep(0.05)
        code = next((ended for pid, ended in _ended_children() if pid == child), code)
    return code


def send(pid: int, number: signal.Signals) -> None:
    """`os.kill` for a process that may have ended by itself in between."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def children_of(parent: int) -> list[int]:
    """Pids of the processes that `parent` has started itself, zombies included."""
    return [pid for pid, its_parent in _processes() if its_parent == parent]


def descendants(root: int) -> list[int]:
    """Pids of all processes below `root`, nearest first, zombies included. Reads /proc once."""
    children: dict[int, list[int]] = {}
    for pid, parent in _processes():
        children.setdefault(parent, []).append(pid)
    found, frontier = [], [root]
    while frontier:
        frontier = [pid for parent in frontier for pid in children.get(parent, [])]
        found += frontier
    return found


def _processes() -> Iterator[tuple[int, int]]:
    """(pid, parent pid) of every process."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name, in brackets, may itself hold blanks and brackets.
            after_name = (entry / "stat").read_bytes().rpartition(b")")[2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield int(entry.name), int(after_name.split()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
