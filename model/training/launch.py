"""Several training processes on this machine, started and watched by torch's own elastic launcher, as `torchrun` does.

What `torchrun` alone would lose and is kept here: the exit statuses of `process.py` (it ends with 1 whatever happened),
told for the process that was the cause and not for one that only missed it; a stop request, which reaches every
process and lets them write their checkpoint. Nothing is restarted: trying again is the business of whoever started
this. The command itself arranges to die with this process. One machine; for several see docs/training.md.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from model.sampling.reaper import children_of, send
from model.training.job import JobError
from model.training.process import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_OUT_OF_MEMORY,
    EXIT_STOPPED,
    EXIT_WRONG_JOB,
    StopRequest,
    kills_from_now,
    say,
)

# What a process's end says about why all of them ended, most telling first; then come other signals, failures with
# and without words (whoever misses another process fails without), and those that the launcher itself has ended.
_TELLING = (-signal.SIGKILL, EXIT_OUT_OF_MEMORY, EXIT_WRONG_JOB, EXIT_STOPPED)
_FORCED_SECONDS = 25  # after the first end; from 30 s on the launcher kills what does not obey, which is no cause
_WORDS_FILE = "TORCHELASTIC_ERROR_FILE"  # environment: where torch's launcher looks for a process's last words
_LAUNCHED = "STILLHOUSE_LAUNCHED"  # environment: by `launch`, which says a process's last words for it


def launched_by_torch() -> bool:
    """Is this process one of those that `torchrun` or `launch` has started?"""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(command: Sequence[str], processes: int, stop: StopRequest) -> int:
    """Runs `command` so many times at once, each with `torchrun`'s environment; returns one exit status for all.

    From a process's main thread only. Raises JobError for more processes than GPUs, where there are any.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise JobError(f"processes = {processes}, but this machine has {torch.cuda.device_count()} GPUs: lower it")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # how processes end is told here
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    stop.also = pass_on_stop
    if stop.received:
        return EXIT_STOPPED
    with TemporaryDirectory(prefix="stillhouse-launch-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            signals_to_handle="SIGQUIT",  # SIGTERM and SIGINT are `stop`'s
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        os.environ[_LAUNCHED] = "1"
        killed_for_memory = kills_from_now()
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            found = error.failures.values()
            ends = [End(f.timestamp, f.exitcode, words_of(f.error_file_data)) for f in found]
            return told(cause(ends), stop, for_memory=killed_for_memory())
        finally:
            del os.environ[_LAUNCHED]
    return EXIT_DONE


def pass_on_stop() -> None:
    """SIGTERM to every process that this one has started; where there is none yet, this one ends as stopped.

    Not to what those have started: they need their engines and verifiers until they have stopped.
    """
    started = children_of(os.getpid())
    for pid in started:
        send(pid, signal.SIGTERM)
    if not started:
        sys.exit(EXIT_STOPPED)


@dataclass(frozen=True)
class End:
    """How one process ended."""

    seconds: int  # since the epoch, when it was noticed or spoken of
    code: int  # exit status, or minus the signal that killed it
    words: str = ""

    @property
    def rank(self) -> int:
        """How little it tells about why all ended."""
        if self.code in _TELLING:
            return _TELLING.index(self.code)
        if self.code == EXIT_FAILED:
            return len(_TELLING) + (1 if self.words else 2)
        return len(_TELLING) + (3 if self.code == -signal.SIGTERM else 0)


def cause(ends: Sequence[End]) -> End:
    """The end that tells why all ended."""
    first = min(end.seconds for end in ends)
    return min((end for end in ends if end.seconds < first + _FORCED_SECONDS), key=lambda end: end.rank)


def told(end: End, stop: StopRequest, *, for_memory: bool) -> int:
    """The exit status of `process.py` for how a process ended; its words on stderr, as the only ones.

    `for_memory`: a process that was killed may have been killed for that.
    """
    if end.code == -signal.SIGTERM and stop.received:
        return EXIT_STOPPED  # it was asked before it could listen
    if end.code == -signal.SIGKILL and for_memory:
        say("OutOfMemoryError: a training process was killed by signal 9 (out of memory?)")
        return EXIT_OUT_OF_MEMORY
    how = f"ended with status {end.code}" if end.code > 0 else f"was killed by signal {-end.code}"
    say(end.words or f"TrainingError: a training process {how}")
    return end.code if end.code in _TELLING and end.code > 0 else EXIT_FAILED


def say_last(words: str) -> None:
    """Says why this process ends, or leaves it to `launch`, which says one process's words and not everyone's."""
    if _LAUNCHED not in os.environ:
        say(words)
    if file := os.environ.get(_WORDS_FILE):
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": words, "timestamp": int(time.time())}), encoding="utf-8")


def words_of(told: object) -> str:
    """What `say_last` left in torch's record of a failed process; empty where it left nothing."""
    return str(told["message"]) if isinstance(told, dict) and told.get("timestamp") else ""
