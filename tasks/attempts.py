"""Every try at a shard leaves a record: who tried, when, how it ended, and with which error.

Records are JSON files under DATASET/attempts/STAGE/, written whole when the attempt starts and again when it
ends. A process that is killed cannot write the end: `tasks/snapshot.py` calls such an attempt `crashed` once
its run no longer holds the dataset. A stage may have two parts (`evaluate/student`).
"""

from __future__ import annotations

import json
import os
import re
import socket
import traceback
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from model.errors import InterruptedRunError, StoreError
from model.records import encodable
from tasks.store import Dataset

FOLDER = "attempts"
_NAME = re.compile(r"(\d+)-(\d+)\.json")
_TRACEBACK_LINES = 20


class AttemptState(StrEnum):
    """How an attempt stands. `interrupted`: stopped by hand (Ctrl-C, cancellation), nothing failed."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(slots=True)
class Attempt:
    """One try at one shard. Times are ISO 8601 in UTC; `rows` is what it made, set by the one who tries."""

    stage: str
    shard: int
    attempt: int
    state: str
    run_id: str
    pid: int
    host: str
    started_at: str
    ended_at: str | None = None
    seconds: float | None = None
    rows: int | None = None
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None


@contextmanager
def attempt(dataset: Dataset, stage: str, shard: int, run_id: str) -> Iterator[Attempt]:
    """Records the start, and the end however it comes; the block's own error passes through unchanged."""
    record = _start(dataset, stage, shard, run_id)
    try:
        yield record
    # Every way out is to be recorded, Ctrl-C and a cancelled Prefect task too; it is raised again at once.
    except BaseException as error:
        _end(record, AttemptState.INTERRUPTED if _is_interruption(error) else AttemptState.FAILED, error)
        # On a full disk the record cannot be written either; that must not hide the error that led here.
        with suppress(StoreError):
            _write(dataset, record)
        raise
    _end(record, AttemptState.COMPLETED, None)
    _write(dataset, record)


def _is_interruption(error: BaseException) -> bool:
    """Ctrl-C, a cancelled Prefect task, or requests that were cancelled because the run is ending."""
    return not isinstance(error, Exception) or isinstance(error, CancelledError | InterruptedRunError)


def read_attempts(dataset: Dataset) -> list[Attempt]:
    """All records by stage, shard and attempt; files that are not whole JSON are passed over."""
    files = dataset.file(FOLDER).rglob("*.json")
    found = (_parse(dataset, path) for path in files if _NAME.fullmatch(path.name))
    return sorted((a for a in found if a), key=lambda a: (a.stage, a.shard, a.attempt))


def _start(dataset: Dataset, stage: str, shard: int, run_id: str) -> Attempt:
    number = 1 + max(_numbers(dataset, stage, shard), default=0)
    now = datetime.now(UTC).isoformat()
    record = Attempt(stage, shard, number, AttemptState.RUNNING, run_id, os.getpid(), socket.gethostname(), now)
    _write(dataset, record)
    return record


def _end(record: Attempt, state: AttemptState, error: BaseException | None) -> None:
    now = datetime.now(UTC)
    record.state = state
    record.ended_at = now.isoformat()
    record.seconds = (now - datetime.fromisoformat(record.started_at)).total_seconds()
    if error is not None:
        record.error_type = type(error).__name__
        record.error = (str(error).splitlines() or [record.error_type])[0]
        lines = "".join(traceback.format_exception(error)).splitlines()
        record.traceback = "\n".join(lines[-_TRACEBACK_LINES:])


def _write(dataset: Dataset, record: Attempt) -> None:
    dataset.write_text(_relative(record.stage, record.shard, record.attempt), json.dumps(asdict(record), indent=1))


def _relative(stage: str, shard: int, number: int) -> str:
    return f"{FOLDER}/{stage}/{shard:06d}-{number:03d}.json"


def _numbers(dataset: Dataset, stage: str, shard: int) -> list[int]:
    names = (_NAME.fullmatch(path.name) for path in dataset.file(f"{FOLDER}/{stage}").glob(f"{shard:06d}-*.json"))
    return [int(name[2]) for name in names if name]


def _parse(dataset: Dataset, path: Path) -> Attempt | None:
    record = dataset.read_json(path.relative_to(dataset.path).as_posix())
    names = {f.name for f in fields(Attempt)}
    if not isinstance(record, dict) or record.keys() != names:
        return None
    # An error may quote a file's name or a model's text, and JSON keeps halves of characters that no table can hold.
    return Attempt(**{name: encodable(value) for name, value in record.items()})
