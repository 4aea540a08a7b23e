"""The process in which checks run: `python -m model.rewards.worker`, started and killed by `pool.py`.

It reads jobs from one pipe and sends each verdict as soon as it is there, so that its parent knows what it
hangs on. It caps its own memory, ignores Ctrl-C (its parent's business), and dies with the thread that
started it, however that ends. It trusts its parent: jobs are pickles.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from model.rewards.check import Check, Judgement, Scored, errored
from model.rewards.registry import build_checks
from model.rewards.settings import CheckSettings

_PR_SET_PDEATHSIG = 1

Timed = tuple[Judgement, float]  # a judgement and what it cost, in milliseconds


@dataclass(frozen=True, slots=True)
class Assignment:
    """A worker's first message: which checks it runs. It answers None when ready, else what is wrong."""

    names: tuple[str, ...]
    settings: CheckSettings


@dataclass(frozen=True, slots=True)
class Job:
    """Verdicts `start` to `stop` of these items, counted item by item and check by check."""

    items: Sequence[Scored]
    start: int
    stop: int


def main() -> None:
    """Arguments: pipe's file descriptor, parent's process id, memory cap in bytes."""
    descriptor, parent, memory_bytes = map(int, sys.argv[1:])
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _cap_memory(memory_bytes)
    connection = Connection(descriptor)
    try:
        sys.path[:] = connection.recv()
        checks = _ready_checks(connection)
        while checks:
            _carry_out(connection.recv(), checks, connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the pool was closed


def _ready_checks(connection: Connection) -> list[Check]:
    assignment: Assignment = connection.recv()
    try:
        checks = build_checks(assignment.names, assignment.settings)
        for check in checks:
            check.warm_up()
    # Whatever a check's start raises has to be told to the pool, which cannot see it otherwise.
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return []
    connection.send(None)
    return checks


def _carry_out(job: Job, checks: list[Check], connection: Connection) -> None:
    for position in range(job.start, job.stop):
        item, check = divmod(position, len(checks))
        connection.send(judge_timed(checks[check], job.items[item]))


def judge_timed(check: Check, item: Scored) -> Timed:
    """Carry out one check. What it raises is its own fault, not the sample's: an `error`."""
    started = time.perf_counter()
    try:
        judgement = check(item)
    except MemoryError:
        judgement = errored("out_of_memory")
    # A check must not take a worker down; the exception's name and text go into the verdict.
    except Exception as error:
        judgement = errored("raised", f"{type(error).__name__}: {error}"[:500])
    return judgement, (time.perf_counter() - started) * 1000.0


def _cap_memory(limit: int) -> None:
    """Cap the address space, in bytes; a lower cap that is already set stays."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux" and (hard == resource.RLIM_INFINITY or limit < hard):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the verifier pool went away while this worker started")


if __name__ == "__main__":
    main()
