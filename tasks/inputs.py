"""What the stages read back from the dataset, as records: problems by id or split, and samples ready to be judged.

Straight from Parquet with pushed-down filters; what needs the accept rule or a join over everything is a query of
`tasks/catalog.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.records import PROBLEM_SCHEMA, Problem, from_table
from model.rewards.check import Scored
from tasks.store import PROBLEMS, Dataset, sample_path

_JUDGED = [
    "sample_id", "problem_id", "text", "reasoning", "answer", "finish_reason", "completion_tokens", "max_tokens",
]  # fmt: skip


def problems_by_id(dataset: Dataset, ids: Collection[str]) -> dict[str, Problem]:
    """The problems with these ids."""
    rows = _problems(dataset, [("problem_id", "in", list(ids))]) if ids else []
    return {problem.problem_id: problem for problem in rows}


def problems_of_split(dataset: Dataset, split: str) -> list[Problem]:
    """All problems of a split (`train`, `held_out`), by id."""
    return sorted(_problems(dataset, [("split", "==", split)]), key=lambda problem: problem.problem_id)


def scored_rows(dataset: Dataset, shard: int) -> tuple[list[str], list[Scored]]:
    """The ids of a shard's samples, and each beside its problem as the checks look at it."""
    rows = dataset.read_table(sample_path(shard), _JUDGED).to_pylist()
    problems = problems_by_id(dataset, {row["problem_id"] for row in rows})
    return [row["sample_id"] for row in rows], [_scored(row, problems[row["problem_id"]]) for row in rows]


def _problems(dataset: Dataset, filters: list[tuple[str, str, Any]]) -> list[Problem]:
    files = [dataset.file(manifest.relative) for manifest in dataset.manifests(PROBLEMS)]
    tables = [pq.read_table(file, columns=PROBLEM_SCHEMA.names, filters=filters) for file in files]
    return from_table(pa.concat_tables(tables), Problem) if tables else []


def _scored(row: dict[str, Any], problem: Problem) -> Scored:
    return Scored(
        text=row["text"],
        gold=problem.gold,
        prompt=problem.prompt,
        tests=problem.tests,
        domain=problem.domain,
        reasoning=row["reasoning"],
        answer=row["answer"],
        finish_reason=row["finish_reason"],
        completion_tokens=row["completion_tokens"],
        max_tokens=row["max_tokens"],
    )
