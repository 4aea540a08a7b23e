"""What the stages read back from the dataset, as records: problems by id or split, and samples ready to be judged.

Straight from Parquet with pushed-down filters; what needs the accept rule or a join over everything is a query of
`tasks/catalog.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.records import PROBLEM_SCHEMA, Problem, Sample, from_table
from model.rewards.check import Scored, scored
from tasks.store import PROBLEMS, Dataset, sample_path


def problems_by_id(dataset: Dataset, ids: Collection[str]) -> dict[str, Problem]:
    """The problems with these ids."""
    rows = _problems(dataset, [("problem_id", "in", list(ids))]) if ids else []
    return {problem.problem_id: problem for problem in rows}


def problems_of_split(dataset: Dataset, split: str) -> list[Problem]:
    """All problems of a split (`train`, `held_out`), by id."""
    return sorted(_problems(dataset, [("split", "==", split)]), key=lambda problem: problem.problem_id)


def scored_rows(dataset: Dataset, shard: int) -> tuple[list[str], list[Scored]]:
    """The ids of a shard's samples, and each beside its problem as the checks look at it."""
    samples: list[Sample] = from_table(dataset.read_table(sample_path(shard)), Sample)
    problems = problems_by_id(dataset, {sample.problem_id for sample in samples})
    return [s.sample_id for s in samples], [scored(problems[s.problem_id], s) for s in samples]


def _problems(dataset: Dataset, filters: list[tuple[str, str, Any]]) -> list[Problem]:
    files = [dataset.file(manifest.relative) for manifest in dataset.manifests(PROBLEMS)]
    tables = [pq.read_table(file, columns=PROBLEM_SCHEMA.names, filters=filters) for file in files]
    return from_table(pa.concat_tables(tables), Problem) if tables else []
