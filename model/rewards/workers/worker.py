"""The process in which checks run: `python -m model.rewards.workers.worker`, started and killed by `pool.py`.

It reads jobs from one pipe and sends verdicts back a few at a time; which one it is at, and since when, stands in
memory that it shares with its parent, so that this one knows what it hangs on or died of. It caps its own memory,
ignores Ctrl-C (its parent's business), and dies with the thread that started it, however that ends. It trusts its
parent: jobs are pickles.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from model.rewards.check import Check, Judgement, Scored, errored
from model.rewards.registry import build_checks
from model.rewards.settings import CheckSettings

_PR_SET_PDEATHSIG = 1
_TELLING = 64  # characters by which a reasoning's place is found
_REPLY_SECONDS = 0.05  # verdicts are collected for so long; what is lost with a worker is made again

Timed = tuple[Judgement, float]  # a judgement and what it cost, in milliseconds


@dataclass(frozen=True, slots=True)
class Assignment:
    """A worker's first message: which checks it runs. It answers None when ready, else what is wrong."""

    names: tuple[str, ...]
    settings: CheckSettings


@dataclass(frozen=True, slots=True)
class Parcel:
    """An item on its way to a worker. Its reasoning, nearly all of its text, travels as a place in the text."""

    item: Scored
    start: int
    stop: int

    @classmethod
    def of(cls, item: Scored) -> Parcel:
        """Packed; as it is, where its reasoning is none or does not stand in its text."""
        if not item.reasoning:
            return cls(item, 0, 0)
        start = item.text.find(item.reasoning[:_TELLING])
        if start < 0 or not item.text.startswith(item.reasoning, start):
            return cls(item, 0, 0)
        return cls(replace(item, reasoning=None), start, start + len(item.reasoning))

    def unpacked(self) -> Scored:
        """The item as it was."""
        if not self.stop:
            return self.item
        return replace(self.item, reasoning=self.item.text[self.start : self.stop])


@dataclass(frozen=True, slots=True)
class Job:
    """Verdicts `start` to `stop` of these items, counted item by item and check by check.

    `checks`: the places of the wanted checks in the worker's assignment.
    """

    parcels: Sequence[Parcel]
    checks: Sequence[int]
    start: int
    stop: int


class Whereabouts(ctypes.Structure):
    """Which verdict of its job a worker is at, and since when (`time.monotonic`, the same clock in all processes)."""

    _fields_ = (("started", ctypes.c_double), ("position", ctypes.c_int64))
    started: float
    position: int

    @classmethod
    def shared(cls, descriptor: int) -> Whereabouts:
        """In the file behind this descriptor, which the parent has and the worker inherits."""
        return cls.from_buffer(mmap.mmap(descriptor, ctypes.sizeof(cls)))

    def begin(self, position: int) -> None:
        """Notes the start of a verdict; the time first, so that no verdict is ever seen with an older one's."""
        self.started = time.monotonic()
        self.position = position


def main() -> None:
    """Arguments: descriptors of the pipe and of the shared file, parent's process id, memory cap in bytes."""
    descriptor, shared, parent, memory_bytes = map(int, sys.argv[1:])
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _cap_memory(memory_bytes)
    connection, whereabouts = Connection(descriptor), Whereabouts.shared(shared)
    try:
        sys.path[:] = connection.recv()
        checks = _ready_checks(connection)
        while checks:
            _carry_out(connection.recv(), checks, whereabouts, connection)
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


def _carry_out(job: Job, checks: list[Check], whereabouts: Whereabouts, connection: Connection) -> None:
    wanted, items = [checks[place] for place in job.checks], [parcel.unpacked() for parcel in job.parcels]
    ready: list[Timed] = []
    told = time.monotonic()
    for position in range(job.start, job.stop):
        item, check = divmod(position, len(wanted))
        whereabouts.begin(position)
        ready.append(judge_timed(wanted[check], items[item]))
        if position + 1 == job.stop or time.monotonic() - told > _REPLY_SECONDS:
            connection.send(ready)
            ready, told = [], time.monotonic()


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
