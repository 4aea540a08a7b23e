"""Checks in worker processes that are killed for good when they hang: no sample can stop a batch.

Each worker belongs to one thread of the pool, which feeds it chunks of samples, gives it at most
`timeout_seconds` for each verdict (a check may state its own limit), and starts a new worker when one hangs or
dies. A hung check is `error`/`timed_out` after one time-out; a verdict at which a worker dies is tried once more
in a fresh worker and then is `error`/`worker_died`; every other verdict is what it would have been. `run` and
`stream` may be called from any thread, and from several at once; a stream holds a few chunks, however long it is.

Workers are started with `subprocess`, not `multiprocessing`: nothing of the caller's main module is imported
again (no torch in a worker), and it works from threads and under any start method. Not promised: that a check
cannot harm the machine otherwise (that is the sandbox's part); the memory cap and death with the parent need
Linux.
"""

from __future__ import annotations

import ctypes
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Self

import model
from model.errors import CheckError, InterruptedRunError
from model.rewards.check import Check, Judgement, Scored, errored
from model.rewards.registry import build_checks
from model.rewards.settings import CheckSettings
from model.rewards.workers.worker import Assignment, Job, Parcel, Timed, Whereabouts

_CHUNK_ITEMS = 64
_CHUNK_CHARACTERS = 1_000_000
_CHUNKS_AHEAD = 3  # for each worker: one in its hands, two waiting
_START_SECONDS = 120.0  # imports on a busy machine; a check's own time-out does not run meanwhile
_CLOSE_SECONDS = 5.0
_DEATHS = 2  # of workers at one verdict, before that is an error: the first may have been the machine's doing


@dataclass
class _Chunk:
    """Items that travel together, their verdicts so far (by item, then check), and a future for all.

    `checks`: places, among the pool's checks, of those that are wanted.
    """

    items: Sequence[Scored]
    checks: Sequence[int]
    timed: list[Timed] = field(default_factory=list)
    done: Future[list[Timed]] = field(default_factory=Future)


@dataclass(frozen=True)
class _Trouble:
    """The verdict at which a worker hung or died, what it is if that stands, and which of the two it was."""

    position: int
    timed: Timed
    is_death: bool = False


class VerifierPool:
    """`workers` processes that carry out the named checks.

    `timeout_seconds` limits one check of one sample, unless the check has a `timeout_seconds` of its own;
    `memory_bytes` limits one worker's address space. Workers start with the first `run`. Raises CheckError for
    unknown checks at once, and from `run` when a worker cannot start.
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
        limits = [_limit(check, timeout_seconds) for check in self.checks]
        self._slots = [_Slot(self._chunks, self._closing, assignment, limits, memory_bytes) for _ in range(workers)]

    def run(self, items: Sequence[Scored], names: Collection[str] | None = None) -> list[list[Timed]]:
        """Per item, in order: one (judgement, milliseconds) per check, in the order of `checks`.

        `names` limits it to the checks of these names; no other is carried out. ValueError for a name that the
        pool lacks, InterruptedRunError once the pool is closed.
        """
        most = math.ceil(len(items) / (4 * len(self._slots)))
        return list(self._stream(_parts(items, most), self._places(names)))

    def stream(self, items: Iterable[Scored], names: Collection[str] | None = None) -> Iterator[list[Timed]]:
        """As `run`, item by item; takes only as many items in advance as keep the workers busy."""
        return self._stream(_parts(items, _CHUNK_ITEMS), self._places(names))

    def _stream(self, parts: Iterable[Sequence[Scored]], places: Sequence[int]) -> Iterator[list[Timed]]:
        waiting: deque[_Chunk] = deque()
        for part in parts:
            chunk = _Chunk(part, places)
            self._submit(chunk)
            waiting.append(chunk)
            if len(waiting) > _CHUNKS_AHEAD * len(self._slots):
                yield from _rows(waiting.popleft())
        while waiting:
            yield from _rows(waiting.popleft())

    def _submit(self, chunk: _Chunk) -> None:
        with self._lock:
            if self._closing.is_set():
                raise _closed()
            self._start()
            self._chunks.put(chunk)

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
            slot.end()

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


def _limit(check: Check, default: float) -> float:
    """Seconds that one verdict of this check may take."""
    own: float | None = getattr(check, "timeout_seconds", None)
    return default if own is None else own


def _rows(chunk: _Chunk) -> Iterator[list[Timed]]:
    timed = iter(chunk.done.result())
    return ([next(timed) for _ in chunk.checks] for _ in chunk.items)


def _parts(items: Iterable[Scored], most: int) -> Iterator[Sequence[Scored]]:
    """Neighbouring items: few enough to share out, and never many characters in one message."""
    part: list[Scored] = []
    characters = 0
    for item in items:
        is_full = len(part) >= min(most, _CHUNK_ITEMS) or characters + len(item.text) > _CHUNK_CHARACTERS
        if is_full and part:
            yield part
            part, characters = [], 0
        part.append(item)
        characters += len(item.text)
    if part:
        yield part


class _Slot:
    """A thread and its one worker. The kernel ends the worker with the thread, which lives as the pool."""

    def __init__(
        self,
        chunks: queue.SimpleQueue[_Chunk | None],
        closing: threading.Event,
        assignment: Assignment,
        limits: Sequence[float],
        memory_bytes: int,
    ) -> None:
        self.thread = threading.Thread(target=self._serve, name="verifier-slot", daemon=True)
        self._chunks, self._closing, self._assignment = chunks, closing, assignment
        self._limits, self._memory_bytes = limits, memory_bytes  # seconds by check; bytes of address space
        self._shared = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the slot
        self._shared.truncate(ctypes.sizeof(Whereabouts))
        self._whereabouts = Whereabouts.shared(self._shared.fileno())
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def kill(self) -> None:
        """From any thread: end the worker now."""
        process = self._process
        if process is not None:
            process.kill()

    def end(self) -> None:
        """Once the worker is killed: wait for the thread, and let go of the shared file."""
        if self.thread.is_alive():
            self.thread.join(_CLOSE_SECONDS)
        self._shared.close()

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
        deaths: Counter[int] = Counter()
        hopeless: dict[int, Timed] = {}
        while (position := len(chunk.timed)) < total:
            if position in hopeless:
                chunk.timed.append(hopeless[position])
                continue
            apart = [at for at in (*deaths, *hopeless) if at > position]
            trouble = self._advance(chunk, position + 1 if position in deaths else min(apart, default=total))
            if trouble is None:
                continue
            self._discard()
            if self._closing.is_set():
                raise _closed()  # the worker was killed for that, not by a sample
            deaths[trouble.position] += 1
            if not trouble.is_death or deaths[trouble.position] == _DEATHS:
                hopeless[trouble.position] = trouble.timed

    def _advance(self, chunk: _Chunk, stop: int) -> _Trouble | None:
        """Receive verdicts up to `stop`; the trouble that one of them met, or None."""
        connection, start = self._worker(), len(chunk.timed)
        self._whereabouts.begin(start)
        try:
            connection.send(Job([Parcel.of(item) for item in chunk.items], chunk.checks, start, stop))
            while len(chunk.timed) < stop:
                hung = self._wait(connection, chunk, stop)
                if hung is not None:
                    return hung
                chunk.timed += connection.recv()
        except (EOFError, OSError):
            return _Trouble(self._position(chunk, stop), (errored("worker_died", self._exit_status()), 0.0), True)
        return None

    def _wait(self, connection: Connection, chunk: _Chunk, stop: int) -> _Trouble | None:
        """Until the worker says something, or the verdict that it is at has had its time."""
        heard = time.monotonic()
        while True:
            position = self._position(chunk, stop)
            limit = self._limits[chunk.checks[position % len(chunk.checks)]]
            # What it noted last may be the start of the verdict that has just come, before it begins the next one.
            has_begun = self._whereabouts.position >= len(chunk.timed)
            left = (self._whereabouts.started if has_begun else heard) + limit - time.monotonic()
            # No longer than the shortest limit: meanwhile the worker may have come to a check that has that one.
            if connection.poll(min(max(left, 0.0), *self._limits)):
                return None
            if left <= 0.0:
                return _Trouble(position, (errored("timed_out", f"no verdict after {limit:g} s"), limit * 1000.0))

    def _position(self, chunk: _Chunk, stop: int) -> int:
        """The verdict that the worker is or was at, by what it noted itself; never one that is here already."""
        return min(max(self._whereabouts.position, len(chunk.timed)), stop - 1)

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
                pass_fds=[theirs.fileno(), self._shared.fileno()],
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
        python = [sys.executable, "-P", "-W", "ignore", "-m", "model.rewards.workers.worker"]
        numbers = (descriptor, self._shared.fileno(), os.getpid(), self._memory_bytes)
        return [*python, *map(str, numbers)]

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
