"""What test_store.py runs in processes of their own: writers to be killed, writers that are refused.

They are here, without pytest, so that a fork server imports them once and a child starts in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.errors import StoreError
from tasks.store import Dataset

SCHEMA = pa.schema([pa.field("sample_id", pa.string(), nullable=False), pa.field("value", pa.int64())])
processes = multiprocessing.get_context("forkserver")
# Arrow imports pandas where there is one, at its first table: once here, not in every child.
processes.set_forkserver_preload(["tests.tasks.store_children", "pyarrow.parquet", "pandas"])


def rows(start: int, count: int = 3) -> pa.Table:
    values = list(range(start, start + count))
    return pa.table({"sample_id": [f"{v:024x}" for v in values], "value": values}, schema=SCHEMA)


def many_rows(count: int) -> pa.Table:
    """Ids that do not compress."""
    ids = [random.randbytes(12).hex() for _ in range(count)]
    return pa.table({"sample_id": ids, "value": [1] * count}, schema=SCHEMA)


def write(dataset: Dataset, relative: str, table: pa.Table) -> None:
    dataset.write_shard(relative, table, schema=SCHEMA, fingerprint="f")


def rewrite_for_ever(path: Path, first: int, started: Event) -> None:
    """Writes shards 0 to 3 in turn; every row of one version of a shard holds the same number."""
    dataset, version = Dataset(path), first
    while True:
        ids = [f"{version % 4}-{row}" for row in range(50)]
        table = pa.table({"sample_id": ids, "value": [version] * 50}, schema=SCHEMA)
        write(dataset, f"samples/{version % 4:06d}.parquet", table)
        version += 1
        started.set()  # after a first shard, which imports more and is slow


def kill_at_system_call(path: Path, call: int) -> None:
    """Replaces shard 0 and dies by SIGKILL just before the `call`-th flush, rename or unlink."""
    counter = iter(range(1, 1000))

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(counter) == call:
                os.kill(os.getpid(), 9)
            return function(*args, **kwargs)

        return wrapped

    for name in ("fsync", "unlink", "replace"):
        setattr(os, name, mortal(getattr(os, name)))
    write(Dataset(path), "samples/000000.parquet", rows(100))


def hold_for_ever(path: Path, held: Event) -> None:
    with Dataset(path).lock("run-1"):
        held.set()
        time.sleep(60)


def limited_write(path: Path, answer: Queue[str]) -> None:
    """A file may not grow past 20 kB: the write stops in the middle, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    answer.put(message_of(lambda: write(Dataset(path), "samples/000000.parquet", many_rows(9999))))


def write_as_nobody(path: Path, answer: Queue[str]) -> None:
    """Root may write everywhere, so it becomes somebody who may not."""
    if os.geteuid() == 0:
        os.setuid(65534)
    dataset = Dataset(path)
    shard = message_of(lambda: write(dataset, "samples/000000.parquet", rows(0)))
    lock = message_of(lambda: dataset.lock("run").__enter__())
    answer.put(f"{shard}\n{lock}\n{dataset.holder()}")


def message_of(action: Callable[[], object]) -> str:
    try:
        action()
    except StoreError as error:
        return str(error)
    return "no error"
