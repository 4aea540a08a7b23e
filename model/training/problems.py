"""The problems of a job: a Parquet file of PROBLEM_SCHEMA whose prompts are as the student sees them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from model.records import PROBLEM_SCHEMA, Problem, from_table
from model.training.job import JobError


def read_problem_file(path: Path) -> list[Problem]:
    """Every problem in the file's order. Raises JobError where there is none."""
    try:
        rows: list[Problem] = from_table(pq.read_table(path, schema=PROBLEM_SCHEMA), Problem)
    except (OSError, pa.ArrowInvalid) as error:
        raise JobError(f"{path} does not hold problems: {error}") from error
    if not rows:
        raise JobError(f"{path} holds no problems")
    return rows
