"""A Parquet file's training examples as token ids on disk, mapped into memory and read as a step asks for them.

The file is read once, `BATCH` examples at a time, into Arrow files of whole row groups (`part-NNNNN.arrow`). What
stays in memory is four bytes an example and column, its length; token ids are the system's to keep or to drop. Every
process makes its share of the parts, and a part that is whole is not made again: a run that was killed goes on where
it was. Time and disk (four bytes a token) grow with the tokens, memory with the number of examples alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.records import EXAMPLE_SCHEMA, TrainingExample, from_table
from model.training.checkpoint import disk_errors, sync, write_file
from model.training.job import JobError
from model.training.parallel import World
from model.training.process import Stopped, StopSignal

BATCH = 256  # examples read, tokenised and written at once
PART_EXAMPLES, PART_BYTES = 16_384, 64 << 20  # a part ends with the row group that comes to one of both
READING = "reading.json"  # beside the tokens, while they are made: how far the leading process is

_TOLD_SECONDS = 1.0
_NAMES = EXAMPLE_SCHEMA.names

Columns = Mapping[str, Callable[[Sequence[TrainingExample]], list[list[int]]]]


class Examples:
    """The examples of a file, by their place in it; `columns` says which lists of numbers are made of each."""

    def __init__(self, tables: Sequence[pa.Table], columns: Sequence[str]) -> None:
        table = pa.concat_tables(tables)
        self.sample_ids: pa.ChunkedArray = table["sample_id"]
        self._columns = {name: table[name] for name in columns}
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self.sample_ids.chunks)])
        self.lengths: dict[str, NDArray[np.int32]] = {
            name: np.concatenate([chunk.value_lengths().to_numpy() for chunk in column.chunks])
            for name, column in self._columns.items()
        }

    def array(self, column: str, place: int) -> NDArray[np.int32]:
        """One example's numbers of a column, not copied."""
        chunk = int(np.searchsorted(self._starts, place, side="right")) - 1
        found: NDArray[np.int32] = (
            self._columns[column].chunk(chunk)[int(place - self._starts[chunk])].values.to_numpy()
        )
        return found

    def list(self, column: str, place: int) -> list[int]:
        """One example's numbers of a column."""
        found: list[int] = self.array(column, place).tolist()
        return found


def open_examples(path: Path, folder: Path, columns: Columns, world: World, stop: StopSignal) -> Examples:
    """The examples of `path`, tokenised into `folder` as far as that was not done. Every process makes the same call.

    `folder` belongs to one job, which binds it to what `path` holds and to what `columns` do.

    Raises:
        JobError: the file holds no training examples, or one that a column refuses.
        Stopped: `stop` was received; what is done stays done.
        DiskError: the disk takes no more.
    """
    parts = _parts(row_groups(path))
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    todo = [part for part in parts[world.rank :: world.size] if _read(folder, part, columns) is None]
    _make(path, folder, todo, columns, world, stop)
    if world.any(stop.received):
        raise Stopped("stopped while the examples were tokenised; start the same job to go on")
    tables = [_read(folder, part, columns) for part in parts]
    if any(table is None for table in tables):
        raise JobError(f"{folder} lacks what another process wrote: all processes need the same folder")
    return Examples([table for table in tables if table is not None], list(columns))


def row_groups(path: Path) -> list[tuple[int, int]]:
    """How many examples each row group of a file holds, and their bytes. Raises JobError where it holds none."""
    with _open(path) as file:
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        found = [(group.num_rows, group.total_byte_size) for group in groups]
    if not any(rows for rows, _ in found):
        raise JobError(f"{path} holds no training examples: loosen the recipe's [accept] rule or generate more")
    return found


def read_examples(path: Path, groups: Sequence[int] | None = None) -> Iterator[list[TrainingExample]]:
    """A file's examples in order, or those of some row groups, at most `BATCH` at a time. Raises JobError."""
    with _open(path) as file:
        for batch in file.iter_batches(BATCH, row_groups=groups, columns=_NAMES, use_threads=False):
            yield from_table(pa.Table.from_batches([batch]), TrainingExample)


def first_completions(path: Path) -> list[str]:
    """Some completions to look at."""
    return [example.completion for example in next(read_examples(path), [])[:100]]


def examples_at(path: Path, places: Sequence[int]) -> list[TrainingExample]:
    """Some examples of a file, by their places in it, in ascending order; only their row groups are read."""
    starts = np.cumsum([0, *(rows for rows, _ in row_groups(path))])
    groups = np.unique(np.searchsorted(starts, places, side="right") - 1)
    wanted, found = set(places), []
    for group in groups.tolist():
        place = int(starts[group])
        for examples in read_examples(path, [group]):
            found += [example for at, example in enumerate(examples, start=place) if at in wanted]
            place += len(examples)
    return found


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in _NAMES if name not in file.schema_arrow.names]:
                raise JobError(f"{path} does not hold training examples: it has no column {missing[0]}")
            yield file
    except (OSError, ValueError) as error:  # pyarrow's are among them
        raise JobError(f"{path} does not hold training examples: {error}") from error


@dataclass(frozen=True)
class _Part:
    """A run of row groups, and how many examples they hold."""

    name: str
    groups: list[int]
    rows: int


def _parts(groups: Sequence[tuple[int, int]]) -> list[_Part]:
    """Cuts row groups of so many examples and bytes into parts."""
    runs: list[list[int]] = []
    rows, size = PART_EXAMPLES, 0
    for group, (more_rows, more_bytes) in enumerate(groups):
        if rows >= PART_EXAMPLES or size >= PART_BYTES:
            runs.append([])
            rows = size = 0
        runs[-1].append(group)
        rows, size = rows + more_rows, size + more_bytes
    sizes = [sum(groups[group][0] for group in run) for run in runs]
    filled = [(run, held) for run, held in zip(runs, sizes, strict=True) if held]
    return [_Part(f"part-{number:05d}.arrow", run, held) for number, (run, held) in enumerate(filled)]


def _read(folder: Path, part: _Part, columns: Columns) -> pa.Table | None:
    """A part that is whole, mapped into memory; None where it is not there or holds something else."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(folder / part.name))).read_all()
    except (OSError, pa.ArrowException):
        return None
    return table if table.num_rows == part.rows and table.column_names == ["sample_id", *columns] else None


def _make(path: Path, folder: Path, todo: Sequence[_Part], columns: Columns, world: World, stop: StopSignal) -> None:
    """Tokenises parts, each of which appears at once; returns early where a stop is asked for."""
    schema = pa.schema([("sample_id", pa.string()), *((name, pa.list_(pa.int32())) for name in columns)])
    told = _Told(folder / READING, sum(part.rows for part in todo), world.leads)
    for part in todo:
        target, scratch = folder / part.name, folder / f".{part.name}.partial"
        with disk_errors(target), _on_every_core():
            with pa.OSFile(str(scratch), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for examples in read_examples(path, part.groups):
                    if stop.received:
                        return
                    made = {name: make(examples) for name, make in columns.items()}
                    ids = [example.sample_id for example in examples]
                    writer.write_batch(pa.record_batch({"sample_id": ids, **made}, schema=schema))
                    told.count(len(examples))
            sync(scratch)
            scratch.rename(target)
            sync(folder)
    told.end()


@contextmanager
def _on_every_core() -> Iterator[None]:
    """Lets the tokenizer use threads, which starters of trainers forbid for the sake of processes that are forked."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name, "false")
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ[name] = before


class _Told:
    """Says how far the reading is, to whoever follows the job's files and in the log."""

    def __init__(self, path: Path, total: int, leads: bool) -> None:
        self.path, self.total, self.leads = path, total, leads
        self.done, self.started = 0, time.monotonic()
        self.last = self.started

    def count(self, examples: int) -> None:
        """So many more are done."""
        self.done += examples
        if self.leads and time.monotonic() - self.last >= _TOLD_SECONDS:
            write_file(self.path, json.dumps({"done": self.done, "total": self.total}))
            self.last = time.monotonic()

    def end(self) -> None:
        """All are."""
        if self.path.exists() and self.leads:
            self.path.unlink()
            seconds = time.monotonic() - self.started
            print(f"tokenised {self.done:,} examples in {seconds:,.0f} s", file=sys.stderr, flush=True)
