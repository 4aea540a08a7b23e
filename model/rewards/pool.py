"""Checks in worker processes that are killed for good when they hang: no sample can stop a batch.

Each worker belongs to one thread of the pool, which feeds it chunks of samples, waits at most
`timeout_seconds` for each verdict, and starts a new worker when one hangs or dies. A hung check is
`error`/`timed_out` after one time-out; a verdict at which a worker dies is tried once more in a fresh worker
and then is `error`/`worker_died`; every other verdict is what it would have been. `run` may be called from
any thread, and from several at once.

Workers are started with `subprocess`, not `multiprocessing`: nothing of the caller's main module is imported
again (no torch in a worker), and it works from threads and under any start method. Not promised: that a check
cannot harm the machine otherwise (that is the sandbox's part); the memory cap and death with the parent need
Linux.
"""

from __future__ import annotations

import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Self

import model
from model.errors import CheckError, InterruptedRunError
from model.rewards.check import Judgement, Scored, errored
from model.rewards.registry import build_checks
from model.rewards.settings import CheckSettings
from model.rewards.worker import Assignment, Job, Timed

_CHUNK_ITEMS = 64
_CHUNK_CHARACTERS = 1_000_000
_START_SECONDS = 120.0  # imports on a busy machine; a check's own time-out does not run meanwhile
_CLOSE_SECONDS = 5.0


@dataclass
class _Chunk:
    """Items that travel together, their verdicts so far (by item, then check), and a future for all.

    `checks`: places, among the pool's checks, of those that are wanted.
    """

    items: Sequence[Scored]
    checks: Sequence[int]
    timed: list[Timed] = field(default_factory=list)
    done: Future[list[Timed]] = field(default_factory=Future)


class VerifierPool:
    """`workers` processes that carry out the named checks.

    `timeout_seconds` limits one check of one sample, `memory_bytes` one worker's address space. Workers start
    with the first `run`. Raises CheckError for unknown checks at once, and from `run` when a worker cannot
    start.
    """

    def __init__(
        self,
        names: Sequence[str],
        settings: CheckSettings | None = None,
        *,
        workers: int = 2,
        timeout_seconds: float = 5.0,
        memory_bytes: int = 2 << 30,
    ) -> None:
        if workers < 1 or timeout_seconds <= 0:
            raise ValueError(f"a pool needs workers and time, not {workers} and {timeout_seconds} s")
        self.checks = build_checks(names, settings)
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        assignment = Assignment(tuple(names), settings or CheckSettings())
        self._slots = [
            _Slot(self._chunks, self._closing, assignment, timeout_seconds, memory_bytes) for _ in range(workers)
        ]

    def run(self, items: Sequence[Scored], names: Collection[str] | None = None) -> list[list[Timed]]:
        """Per item, in order: one (judgement, milliseconds) per check, in the order of `checks`.

        `names` limits it to the checks of these names; no other is carried out. ValueError for a name that the
        pool lacks, InterruptedRunError once the pool is closed.
        """
        places = self._places(names)
        chunks = [_Chunk(part, places) for part in _parts(items, len(self._slots))]
        with self._lock:
            if self._closing.is_set():
                raise _closed()
            self._start()
            for chunk in chunks:
                self._chunks.put(chunk)
        timed = iter([verdict for chunk in chunks for verdict in chunk.done.result()])
        return [[next(timed) for _ in places] for _ in items]

    def _places(self, names: Collection[str] | None) -> list[int]:
        known = [check.name for check in self.checks]
        if names is not None and not set(names) <= set(known):
            raise ValueError(f"this pool's checks are {known}, not {sorted(names)}")
        return [place for place, name in enumerate(known) if names is None or name in names]

    def judge(self, items: Sequence[Scored]) -> list[dict[str, Judgement]]:
        """Per item its judgements by check name, as `model/rewards/reward.py` takes them."""
        names = [check.name for check in self.checks]
        return [dict(zip(names, (j for j, _ in row), strict=True)) for row in self.run(items)]

    def close(self) -> None:
        """Kill the workers. A `run` under way in another thread raises InterruptedRunError. May be called twice."""
        with self._lock:
            self._closing.set()
            for slot in self._slots:
                self._chunks.put(None)
                slot.kill()
        for slot in self._slots:
            if slot.thread.is_alive():
                slot.thread.join(_CLOSE_SECONDS)

    def _start(self) -> None:
        for slot in self._slots:
            if slot.thread.ident is None:
                slot.thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parts(items: Sequence[Scored], workers: int) -> Iterator[Sequence[Scored]]:
    """Neighbouring items: few enough to share out, and never many characters in one message."""
    most = min(_CHUNK_ITEMS, math.ceil(len(items) / (4 * workers)))
    start = characters = 0
    for position, item in enumerate(items):
        is_full = position - start >= most or characters + len(item.text) > _CHUNK_CHARACTERS
        if is_full and position > start:
            yield items[start:position]
            start, characters = position, 0
        characters += len(item.text)
    if start < len(items):
        yield items[start:]


class _Slot:
    """A thread and its one worker. The kernel ends the worker with the thread, which lives as the pool."""

    def __init__(
        self,
        chunks: queue.SimpleQueue[_Chunk | None],
        closing: threading.Event,
        assignment: Assignment,
        timeout_seconds: float,
        memory_bytes: int,
    ) -> None:
        self.thread = threading.Thread(target=self._serve, name="verifier-slot", daemon=True)
        self._chunks, self._closing, self._assignment = chunks, closing, assignment
        self._timeout_seconds, self._memory_bytes = timeout_seconds, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def kill(self) -> None:
        """From any thread: end the worker now."""
        process = self._process
        if process is not None:
            process.kill()

    def _serve(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            try:
                self._complete(chunk)
            # Whoever waits for the chunk must learn why it will not come, whatever the reason.
            except BaseException as error:
                chunk.done.set_exception(error)
            else:
                chunk.done.set_result(chunk.timed)
        self._discard()

    def _complete(self, chunk: _Chunk) -> None:
        """Have all verdicts made; one that a worker did not survive is tried alone before it is given up."""
        total = len(chunk.items) * len(chunk.checks)
        alone: int | None = None
        while (position := len(chunk.timed)) < total:
            trouble = self._advance(chunk, position + 1 if position == alone else total)
            if trouble is None:
                continue
            self._discard()
            if self._closing.is_set():
                raise _closed()  # the worker was killed for that, not by a sample
            position = len(chunk.timed)
            if trouble.reason == "timed_out" or position == alone:
                chunk.timed.append((trouble, self._timeout_seconds * 1000.0 if trouble.reason == "timed_out" else 0.0))
            else:
                alone = position

    def _advance(self, chunk: _Chunk, stop: int) -> Judgement | None:
        """Receive verdicts up to `stop`; the trouble that the next one met, or None."""
        connection = self._worker()
        try:
            while len(chunk.timed) < stop:
                job = self._next_job(chunk, stop)
                connection.send(job)
                for _ in range(job.start, job.stop):
                    if not connection.poll(self._timeout_seconds):
                        return errored("timed_out", f"no verdict after {self._timeout_seconds:g} s")
                    chunk.timed.append(connection.recv())
        except (EOFError, OSError):
            return errored("worker_died", self._exit_status())
        return None

    def _next_job(self, chunk: _Chunk, stop: int) -> Job:
        """All verdicts up to `stop` where every check is wanted, else the next one alone."""
        position = len(chunk.timed)
        if len(chunk.checks) == len(self._assignment.names):
            return Job(chunk.items, position, stop)
        item, place = divmod(position, len(chunk.checks))
        check = chunk.checks[place]
        return Job([chunk.items[item]], check, check + 1)

    def _exit_status(self) -> str:
        assert self._process is not None
        self._process.kill()
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def _worker(self) -> Connection:
        if self._closing.is_set():
            raise _closed()
        if self._connection is None:
            self._connection = self._start_worker()
        return self._connection

    def _start_worker(self) -> Connection:
        ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                self._command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        try:
            ours.send(sys.path)
            ours.send(self._assignment)
            problem = ours.recv() if ours.poll(_START_SECONDS) else f"not ready after {_START_SECONDS:g} s"
        except (EOFError, OSError):
            problem = f"it ended with {self._exit_status()}"
        if problem is not None:
            ours.close()
            self._discard()
            if self._closing.is_set():
                raise _closed()
            raise CheckError(f"a verifier worker cannot start: {problem}")
        return ours

    def _command(self, descriptor: int) -> list[str]:
        # -P: no module of the working directory replaces ours. Warnings would be about samples' expressions.
        python = [sys.executable, "-P", "-W", "ignore", "-m", "model.rewards.worker"]
        return [*python, str(descriptor), str(os.getpid()), str(self._memory_bytes)]

    def _discard(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _closed() -> InterruptedRunError:
    return InterruptedRunError("the verifier pool was closed while samples were to be judged")


def _environment() -> dict[str, str]:
    """One thread per worker, whatever library it uses; `model` importable from wherever it is here."""
    root = str(Path(str(model.__file__)).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    single = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **single, "PYTHONPATH": os.pathsep.join(paths)}
