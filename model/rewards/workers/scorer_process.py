"""Keeps the process that a reward model runs in: started when first needed, one call at a time, gone with its owner.

A CUDA fault or a kill for memory is a SamplerError here and a new process at the next call. The reaper stands between,
so the process ends when this one ends, also by `kill -9`. Nothing here loads torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Self

import model
from model.errors import InterruptedRunError, SamplerError, StillhouseError
from model.rewards.reward_model import Conversation, ScorerSpec, Scoring
from model.sampling import reaper

START_SECONDS = 1200.0  # a 70B from a slow disk
BATCH_SECONDS = 900.0  # the longest wait for one batch
STOP_SECONDS = reaper.GRACE_SECONDS + 10.0


class ScorerProcess:
    """`with ScorerProcess(spec, log_path=…) as scorer: scorer.score(conversations)`; from any thread."""

    def __init__(self, spec: ScorerSpec, *, log_path: Path) -> None:
        self.spec, self.log_path = spec, log_path
        self._turn = threading.Lock()  # one call at a time
        self._starting = threading.Lock()
        self._closed = False
        self._failure: StillhouseError | None = None  # one that no further start would mend
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def score(self, conversations: Sequence[Conversation]) -> list[Scoring]:
        """The conversations' scorings, in their order.

        Raises ModelFolderError for what is no reward model, SamplerError when the process dies or hangs,
        InterruptedRunError once this is closed.
        """
        if not conversations:
            return []
        with self._turn:
            try:
                connection = self._connection or self._start()
                connection.send(list(conversations))
                return self._receive(connection, len(conversations))
            except (EOFError, OSError):
                raise self._death("the reward model's process ended") from None

    def _receive(self, connection: Connection, count: int) -> list[Scoring]:
        found: dict[int, Scoring] = {}
        while len(found) < count:
            if not connection.poll(BATCH_SECONDS):
                raise self._death(f"the reward model took over {BATCH_SECONDS:g} s for a batch")
            places, scorings = connection.recv()
            found |= zip(places, scorings, strict=True)
        return [found[place] for place in range(count)]

    def close(self) -> None:
        """Ends the process; a call under way in another thread raises InterruptedRunError. May be called twice."""
        self._closed = True
        with self._starting:
            process = self._process
        if process is not None:
            process.terminate()
        with self._turn:
            self._discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        with theirs, self._starting:
            if self._closed:
                raise _interrupted()
            if self._failure is not None:
                raise self._failure
            self._process = self._launch(theirs)
            self._connection = ours
        ours.send(self.spec)
        answer = ours.recv() if ours.poll(START_SECONDS) else SamplerError(f"not ready after {START_SECONDS:g} s")
        if isinstance(answer, StillhouseError):
            self._failure = None if answer.retryable else answer
            self._discard()
            raise answer
        return ours

    def _launch(self, theirs: Connection) -> subprocess.Popen[bytes]:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        # -P: no module of the working directory replaces ours.
        command = [sys.executable, "-P", "-m", "model.rewards.workers.scorer"]
        supervised = [sys.executable, "-I", reaper.__file__, str(os.getpid()), "--", *command]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                supervised,
                stdin=theirs.fileno(),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(local=Path(self.spec.model).is_dir()),
                start_new_session=True,  # Ctrl-C reaches us alone, and we end the process in order
            )

    def _death(self, what: str) -> StillhouseError:
        self._discard()
        return _interrupted() if self._closed else SamplerError(f"{what}; its last words are in {self.log_path}")

    def _discard(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_SECONDS)
        self._process = self._connection = None


def _interrupted() -> InterruptedRunError:
    return InterruptedRunError("the reward model was closed while samples were to be scored")


def _environment(*, local: bool) -> dict[str, str]:
    """`model` importable from wherever it is here; waiting threads do not spin beside the engine's."""
    root = str(Path(str(model.__file__)).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "true", "PYTHONUNBUFFERED": "1"}
    offline = {"HF_HUB_OFFLINE": "1"} if local else {}
    return {**quiet, **os.environ, **offline, "PYTHONPATH": os.pathsep.join(paths)}
