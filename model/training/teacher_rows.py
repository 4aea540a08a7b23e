"""What a teacher thought of each completion, read from disk as a step asks for it: `model.records.TeacherRow`.

A list (Parquet of TeacherPlace) says where each sample's row lies. That every example has one, made for its very
tokens after its very context, is checked before the first step; log-probabilities are read a row group at a time, so
memory holds one step's and not the table.

Axes: N tokens of all rows, one after another; K stored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import first_line
from model.records import context_digest
from model.training.data import Row
from model.training.job import JobError
from model.training.parallel import World


class TeacherRows:
    """The rows that a list of places names, by the index of their example among `sample_ids`."""

    def __init__(self, places: Path, sample_ids: pa.Array) -> None:
        try:
            table = pq.read_table(places, columns=["sample_id", "file", "row"])
            at = pc.index_in(sample_ids, table["sample_id"]).fill_null(-1).to_numpy()
            files = table["file"].combine_chunks().dictionary_encode()
            rows = table["row"].to_numpy()
        except (OSError, KeyError, ValueError) as error:
            raise JobError(f"{places} is no list of a teacher's rows: {first_line(error)}") from error
        if len(missing := np.flatnonzero(at < 0)):
            sample = sample_ids[int(missing[0])]
            raise JobError(f"sample {sample} has no stored log-probabilities: run the recipe's stage distill again")
        self._sample_ids, self._files = sample_ids, [places.parent / file for file in files.dictionary.to_pylist()]
        self._file_of, self._row_of = files.indices.to_numpy()[at], rows[at]

    def require(self, row_of: Callable[[int], Row], world: World) -> None:
        """Raises JobError, naming the sample, unless each was stored for its context and tokens, which `row_of` tells.

        Each process looks at its share of the files.
        """
        by_file = np.argsort(self._file_of, kind="stable")
        for same_file in np.split(by_file, np.flatnonzero(np.diff(self._file_of[by_file])) + 1)[
            world.rank :: world.size
        ]:
            stored = _read(self._files[self._file_of[same_file[0]]], ["sample_id", "context", "tokens"])
            for index in same_file.tolist():
                found = stored.slice(self._row_of[index], 1).to_pylist()
                _require_same(self._sample_ids[index].as_py(), row_of(index), found[0] if found else {})

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """ids_NK (int64) and log_probs_NK (float32) of these examples' tokens, in their order."""
        if not indices:
            return torch.empty(0, 1, dtype=torch.int64), torch.empty(0, 1)
        rows = [_row(self._files[self._file_of[index]], int(self._row_of[index])) for index in indices]
        ids_NK = np.concatenate([_table(row, "ids") for row in rows]).astype(np.int64)
        log_probs_NK = np.concatenate([_table(row, "log_probs") for row in rows]).astype(np.float32)
        return torch.from_numpy(ids_NK), torch.from_numpy(log_probs_NK)


def _require_same(sample: str, row: Row, stored: Mapping[str, object]) -> None:
    what = {"sample_id": sample, "context": context_digest(row.context), "tokens": row.completion}
    for name, wanted in what.items():
        if stored.get(name) != wanted:
            message = f"the log-probabilities stored for sample {sample} are of another {name}"
            raise JobError(f"{message}: run the recipe's stage distill again")


def _read(file: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.ParquetFile(file).read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"cannot read stored log-probabilities: {error}") from error


def _row(file: Path, at: int) -> pa.Table:
    """One row; only its row group is decoded."""
    with pq.ParquetFile(file) as opened:
        group = 0
        while at >= (rows := opened.metadata.row_group(group).num_rows):
            group, at = group + 1, at - rows
        return opened.read_row_group(group, columns=["ids", "log_probs", "k"]).slice(at, 1).combine_chunks()


def _table(row: pa.Table, name: str) -> NDArray[Any]:
    """One list of a row as [T, K]."""
    flat: NDArray[Any] = row[name].chunk(0)[0].values.to_numpy()
    return flat.reshape(-1, row["k"][0].as_py())
