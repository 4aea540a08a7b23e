"""What a teacher thought of each completion, read from disk as a step asks for it: `model.records.TeacherRow`.

A list (Parquet of TeacherPlace) says where each sample's row lies. That every example has one, made for its very
tokens after its very context, is checked before the first step; log-probabilities are read a row group at a time, so
memory holds one step's and not the table.

Axes: N tokens of all rows, one after another; K stored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.records import TeacherPlace, context_digest, from_table
from model.training.data import Row
from model.training.job import JobError


class TeacherRows:
    """The rows that a list of places names."""

    def __init__(self, places: Path) -> None:
        try:
            found: list[TeacherPlace] = from_table(pq.read_table(places), TeacherPlace)
        except (OSError, KeyError, ValueError) as error:
            raise JobError(f"{places} is no list of a teacher's rows: {error}") from error
        self._places = {place.sample_id: (places.parent / place.file, place.row) for place in found}

    def require(self, rows: dict[str, Row]) -> None:
        """Raises JobError, naming the sample, unless each has a stored row for its context and its tokens."""
        for sample in rows:
            if sample not in self._places:
                raise JobError(f"sample {sample} has no stored log-probabilities: run the recipe's stage distill again")
        files = {self._places[sample][0] for sample in rows}
        stored = {file: _read(file, ["sample_id", "context", "tokens"]) for file in files}
        for sample, row in rows.items():
            file, at = self._places[sample]
            _require_same(sample, row, stored[file].slice(at, 1).to_pylist()[0])

    def read(self, samples: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids_NK (int64) and log_probs_NK (float32) of these samples' tokens, in their order."""
        if not samples:
            return torch.empty(0, 1, dtype=torch.int64), torch.empty(0, 1)
        rows = [_row(*self._places[sample]) for sample in samples]
        ids_NK = np.concatenate([_table(row, "ids") for row in rows]).astype(np.int64)
        log_probs_NK = np.concatenate([_table(row, "log_probs") for row in rows]).astype(np.float32)
        return torch.from_numpy(ids_NK), torch.from_numpy(log_probs_NK)


def _require_same(sample: str, row: Row, stored: dict[str, object]) -> None:
    what = {"sample_id": sample, "context": context_digest(row.context), "tokens": row.completion}
    for name, wanted in what.items():
        if stored[name] != wanted:
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
