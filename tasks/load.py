"""From the recipe's sources to the dataset's problem files: only problems that are not there yet are written.

A problem never changes its split: once a question was held out (or trained on), a recipe that says otherwise is
refused. Rows that did not fit go to rejects/SOURCE.jsonl with line and reason. Memory holds the ids of all
problems (about 100 bytes each), not their text.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from model.errors import RecipeError
from model.records import PROBLEM_SCHEMA, Problem, content_hash, to_table
from tasks.problems import ProblemReader, Reject
from tasks.progress import announce, ticking
from tasks.sources import ProblemSource, nothing_held_out, nothing_to_validate
from tasks.store import PROBLEMS, Dataset, shard_name

LOADED = f"{PROBLEMS}/loaded.json"
BATCH = 20_000  # problems per file


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load did: problems written now, problems in all by split, rejected rows by reason."""

    written: int
    train: int
    held_out: int
    rejected: dict[str, int]
    validation: int = 0


@task(name="load problems", task_run_name="load problems", cache_policy=NO_CACHE)
def load(dataset: Dataset, sources: Sequence[ProblemSource]) -> Loaded:
    """Reads all sources unless nothing about them has changed since the last load."""
    fingerprint = _fingerprint(sources)
    record = dataset.read_json(LOADED)
    if record and record["fingerprint"] == fingerprint:
        return Loaded(0, record["train"], record["held_out"], record["rejected"], record.get("validation", 0))
    known = known_splits(dataset)
    if known:  # before anything is written: a recipe that is refused leaves the dataset as it was
        for batch in ProblemReader(sources, batch_size=BATCH):
            _require_same_splits(dataset, batch.problems, known)
    reader = ProblemReader(sources, batch_size=BATCH)
    rejects: dict[str, list[Reject]] = {}
    written = 0
    with ticking("load problems", None, "rows") as ticker:
        for batch in reader:
            written += _write_new(dataset, batch.problems, known)
            rejects.setdefault(batch.source, []).extend(batch.rejects)
            ticker.advance(len(batch.problems) + len(batch.rejects))
    for label, rows in rejects.items():
        _write_rejects(dataset, label, rows)
        if rows:
            reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(r.reason for r in rows).most_common())
            where = dataset.file(f"rejects/{label}.jsonl")
            announce(f"{label}: {len(rows)} rows are no problems ({reasons}); {where} holds each with its line")
    for source in sources:
        counts = reader.counts[source.label]
        if source.held_out and counts.loaded and not counts.held_out:
            announce(f"warning: {nothing_held_out(source, counts.loaded)}")
        if source.validation and counts.loaded and not counts.validation:
            announce(f"warning: {nothing_to_validate(source, counts.loaded)}")
    splits = Counter(known.values())
    loaded = Loaded(written, splits["train"], splits["held_out"], _by_reason(rejects), splits["validation"])
    dataset.write_text(LOADED, json.dumps({"fingerprint": fingerprint, **asdict(loaded)}))
    return loaded


def known_splits(dataset: Dataset) -> dict[str, str]:
    """Split by problem id, of every problem in the dataset."""
    known: dict[str, str] = {}
    for manifest in dataset.manifests(PROBLEMS):
        table = dataset.read_table(manifest.relative, ["problem_id", "split"])
        known.update(zip(table["problem_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    return known


def _write_new(dataset: Dataset, problems: Sequence[Problem], known: dict[str, str]) -> int:
    started = time.monotonic()
    new = [problem for problem in problems if problem.problem_id not in known]
    known.update({problem.problem_id: problem.split for problem in new})
    if new:
        number = 1 + max((manifest.shard for manifest in dataset.manifests(PROBLEMS)), default=-1)
        dataset.write_shard(
            f"{PROBLEMS}/{shard_name(number)}",
            to_table(new, PROBLEM_SCHEMA),
            schema=PROBLEM_SCHEMA,
            fingerprint="",
            seconds=time.monotonic() - started,
        )
    return len(new)


def _require_same_splits(dataset: Dataset, problems: Sequence[Problem], known: Mapping[str, str]) -> None:
    for problem in problems:
        before = known.get(problem.problem_id, problem.split)
        if before != problem.split:
            raise RecipeError(
                f"problem {problem.problem_id} is {before} in {dataset.path} and {problem.split} in the recipe: "
                "`held_out` must not change under a dataset, nor `validation`; name another dataset folder"
            )


def _write_rejects(dataset: Dataset, source: str, rows: Sequence[Reject]) -> None:
    lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    dataset.write_text(f"rejects/{source}.jsonl", lines)


def _by_reason(rejects: Mapping[str, Sequence[Reject]]) -> dict[str, int]:
    return dict(Counter(row.reason for rows in rejects.values() for row in rows))


def _fingerprint(sources: Sequence[ProblemSource]) -> str:
    """Of the settings and of every local file's size and time: a source that grew is read again."""
    stats = [_stat(source.path or source.name) for source in sources]
    return content_hash("sources", [_settings(source) for source in sources], stats)


def _settings(source: ProblemSource) -> dict[str, Any]:
    """A setting that came later counts from the moment it is used, so that older datasets are not read again."""
    settings = asdict(source)
    return settings if source.validation else {name: settings[name] for name in settings if name != "validation"}


def _stat(location: str) -> list[list[Any]]:
    path = Path(location)
    if not location or not path.exists():
        return []
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
