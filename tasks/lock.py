"""One run per dataset: an advisory lock that the kernel drops when its holder dies, also by kill -9.

Who holds it (run, pid, host) is readable beside it. Readers need no lock and never disturb a run. The lock is
flock(2): it works across hosts on NFS of Linux 2.6.12 and later. A child made by a bare fork (without exec)
shares it, so worker pools are started with spawn or forkserver.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tasks import durable

LOCK = ".lock"
HOLDER = ".lock.json"
# A reader that asks who holds the lock takes it (shared) for microseconds; a run waits that out.
WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Holder:
    """The run that may write: its id, process, host, and since when (ISO 8601, UTC)."""

    run_id: str
    pid: int
    host: str
    since: str


@contextmanager
def hold(dataset: Path, run_id: str, wait_seconds: float = WAIT_SECONDS) -> Iterator[Holder]:
    """Holds the dataset for one run; StoreError naming the other run where one is under way."""
    lock = FileLock(dataset / LOCK, timeout=wait_seconds, thread_local=False)
    with durable.store_errors(dataset / LOCK):
        try:
            lock.acquire()
        except Timeout as error:
            raise durable.refused(_in_use(dataset)) from error
    try:
        me = Holder(run_id, os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat())
        durable.write_bytes(dataset, dataset / HOLDER, json.dumps(asdict(me)).encode())
        yield me
    finally:
        lock.release()


def holder(dataset: Path) -> Holder | None:
    """The run that holds the dataset at this moment, or None. Works on a read-only folder."""
    return _read_holder(dataset) if _is_held(dataset / LOCK) else None


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read_holder(dataset: Path) -> Holder:
    try:
        return Holder(**json.loads((dataset / HOLDER).read_text()))
    except (OSError, ValueError, TypeError):
        return Holder("unknown", 0, "unknown", "")


def _in_use(dataset: Path) -> str:
    other = _read_holder(dataset)
    return (
        f"{dataset} is in use by run {other.run_id} (pid {other.pid} on {other.host}, since {other.since});"
        " wait for it, or stop it"
    )
