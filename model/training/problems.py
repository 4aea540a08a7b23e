"""The problems of a job: a Parquet file whose prompts are as the student sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.records import SCHEMAS, Problem, from_table
from model.training.job import JobError


def read_problems(path: Path, kind: type[Problem] = Problem) -> list[Any]:
    """Every problem in the file's order, as records of `kind`. Raises JobError where there is none."""
    try:
        rows: list[Any] = from_table(pq.read_table(path, schema=SCHEMAS[kind]), kind)
    except (OSError, pa.ArrowInvalid) as error:
        raise JobError(f"{path} does not hold problems: {error}") from error
    if not rows:
        raise JobError(f"{path} holds no problems")
    return rows
