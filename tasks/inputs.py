"""What the stages read back from the dataset, as records: problems by id or split, and samples ready to be judged.

Straight from Parquet with pushed-down filters; what needs the accept rule or a join over everything is a query of
`tasks/catalog.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.records import PROBLEM_SCHEMA, Problem, from_table
from model.rewards.check import Scored, scored_completion
from tasks.store import PROBLEMS, Dataset, sample_path

_SCORED_COLUMNS = ["sample_id", "problem_id", "text", "finish_reason", "completion_tokens", "max_tokens"]
_BATCH_ROWS = 64


def problems_by_id(dataset: Dataset, ids: Collection[str]) -> dict[str, Problem]:
    """The problems with these ids."""
    rows = _problems(dataset, [("problem_id", "in", list(ids))]) if ids else []
    return {problem.problem_id: problem for problem in rows}


def problems_of_split(dataset: Dataset, split: str) -> list[Problem]:
    """All problems of a split (`train`, `validation`, `held_out`), by id."""
    return sorted(_problems(dataset, [("split", "==", split)]), key=lambda problem: problem.problem_id)


def scored_rows(dataset: Dataset, shard: int, only: Collection[str] | None = None) -> Iterator[Scored]:
    """A shard's samples in order (`only` those with these ids), each beside its problem as the checks look at it.

    Read as they are asked for, so that memory holds some of them and not the shard. Reasoning and answer are taken
    from the text by the rule that split it when it was stored: reading those columns would read most of it twice.
    """
    ids = dataset.read_table(sample_path(shard), ["problem_id"]).column(0).unique().to_pylist()
    problems = problems_by_id(dataset, ids)
    for batch in dataset.read_batches(sample_path(shard), _SCORED_COLUMNS, _BATCH_ROWS):
        if only is not None:
            batch = batch.filter(pc.is_in(batch.column("sample_id"), pa.array(only, pa.string())))  # noqa: PLW2901
        for row in batch.to_pylist():
            problem = problems[row.pop("problem_id")]
            yield scored_completion(problem, **row)


def _problems(dataset: Dataset, filters: list[tuple[str, str, Any]]) -> list[Problem]:
    files = [dataset.file(manifest.relative) for manifest in dataset.manifests(PROBLEMS)]
    tables = [pq.read_table(file, columns=PROBLEM_SCHEMA.names, filters=filters) for file in files]
    return from_table(pa.concat_tables(tables), Problem) if tables else []
