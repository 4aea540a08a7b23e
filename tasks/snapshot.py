"""What is valid in a dataset at this moment: file lists, shards by state, attempts, training curves.

Read without a lock, while a run may be going on: only files with a valid manifest are named, so nothing
half-written is ever in a list. No SQL here: `tasks/catalog.py` lays its views over this.

What a shard's or an attempt's `rows` are depends on its stage (`unit_of`): samples, verdicts, examples, optimizer
steps, or answers of an evaluation. A shard that is verified in part has the rows that it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from model.records import AUDIT_SCHEMA, EVALUATION_SCHEMA
from tasks.attempts import Attempt, AttemptState, read_attempts
from tasks.lock import Holder
from tasks.problem_verdicts import verdict_manifests
from tasks.store import AUDITS, EVALUATIONS, PROBLEMS, STUDENTS, TEACHER_ROWS, Dataset, Manifest, sample_path
from tasks.work import (
    CAPTURE,
    GENERATE,
    VERIFY,
    VerdictFile,
    current_checks,
    done_shards,
    last_attempts,
    planned_shards,
    supersedes,
    verdict_files,
)

SET_ASIDE = "old-"  # begins the names of students that a changed recipe has replaced
_TIME = pa.timestamp("us")  # UTC, without zone: DuckDB needs no extension to subtract them


class ShardState(StrEnum):
    """`crashed`: an attempt began whose run is gone. `failed`: the last attempt ended with an error."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CRASHED = "crashed"


ATTEMPT_SCHEMA = pa.schema(
    [
        ("stage", pa.string()),
        ("shard", pa.int32()),
        ("attempt", pa.int32()),
        ("state", pa.string()),
        ("run_id", pa.string()),
        ("pid", pa.int64()),
        ("host", pa.string()),
        ("started_at", _TIME),
        ("ended_at", _TIME),
        ("seconds", pa.float64()),
        ("rows", pa.int64()),
        ("error_type", pa.string()),
        ("error", pa.string()),
        ("traceback", pa.string()),
    ]
)

SHARD_SCHEMA = pa.schema(
    [
        ("stage", pa.string()),
        ("shard", pa.int32()),
        ("state", pa.string()),
        ("attempts", pa.int32()),
        ("rows", pa.int64()),
        ("planned_rows", pa.int64()),  # null where it is not known before
        ("seconds", pa.float64()),
        ("error_type", pa.string()),
        ("error", pa.string()),
        ("supersedes", pa.bool_()),
        ("finished_at", _TIME),
        ("path", pa.string()),
    ]
)

TRAINING_SCHEMA = pa.schema(
    [
        ("stage", pa.string()),
        ("step", pa.int64()),
        ("total_steps", pa.int64()),
        ("loss", pa.float64()),
        ("lr", pa.float64()),
        ("tokens", pa.int64()),
        ("tokens_per_second", pa.float64()),
        ("grad_norm", pa.float64()),
    ]
)

VERDICT_FILE_SCHEMA = pa.schema(
    [
        ("filename", pa.string()),
        ("check", pa.string()),
        ("version", pa.string()),
        ("shard", pa.int32()),
        ("current", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Done:
    """What finished one (stage, shard): rows in the stage's unit, seconds and file."""

    rows: int | None
    seconds: float | None
    finished_at: str | None
    path: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files by kind (absolute paths) and small tables. `superseding` lists sample files that replace rows.

    `problem_verdicts` has one file per check that judges problems.
    """

    problems: list[str]
    samples: list[str]
    superseding: list[str]
    verdicts: list[VerdictFile]
    evaluations: list[str]
    problem_verdicts: dict[str, str]
    audits: list[str]
    shards: pa.Table
    attempts: pa.Table
    training: pa.Table
    verdict_table: pa.Table

    def files(self) -> list[str]:
        """Every file that a query over this snapshot may read."""
        verdicts: list[str] = self.verdict_table.column("filename").to_pylist()
        on_problems = [*self.problem_verdicts.values(), *self.audits]
        return self.problems + self.samples + verdicts + self.evaluations + on_problems


def unit_of(stage: str) -> str:
    """What the rows of a stage's shards and attempts are."""
    known = {GENERATE: "samples", VERIFY: "verdicts", CAPTURE: "examples"}
    return known.get(stage, "answers" if stage.startswith("evaluate/") else "steps")


def take_snapshot(dataset: Dataset) -> Snapshot:
    """Reads manifests, plans' manifests, attempts and metrics: about 0.1 ms per shard and check."""
    plans, done = planned_shards(dataset), done_shards(dataset)
    verdicts = verdict_files(dataset, done)
    attempts = _settled(read_attempts(dataset), dataset.holder())
    replacing = [n for n in done if n in plans and supersedes(plans[n])]
    return Snapshot(
        problems=_paths(dataset, dataset.manifests(PROBLEMS)),
        samples=_paths(dataset, done.values()),
        superseding=[str(dataset.file(sample_path(n))) for n in replacing],
        verdicts=verdicts,
        evaluations=_paths(dataset, _evaluations(dataset)),
        problem_verdicts={
            PurePosixPath(m.relative).stem: str(dataset.file(m.relative)) for m in verdict_manifests(dataset)
        },
        audits=_paths(dataset, [m for m in dataset.manifests(AUDITS) if list(m.columns) == AUDIT_SCHEMA.names]),
        shards=_shard_table(dataset, plans, done, verdicts, attempts),
        attempts=_table([_attempt_row(a) for a in attempts], ATTEMPT_SCHEMA),
        training=_training_table(dataset),
        verdict_table=_verdict_table(dataset, verdicts),
    )


def _paths(dataset: Dataset, manifests: Iterable[Manifest]) -> list[str]:
    return [str(dataset.file(manifest.relative)) for manifest in manifests]


def _evaluations(dataset: Dataset) -> list[Manifest]:
    """Files of metric rows; whatever else an evaluation keeps beside them is not listed."""
    return [m for m in dataset.manifests(EVALUATIONS) if list(m.columns) == EVALUATION_SCHEMA.names]


def _settled(attempts: list[Attempt], holder: Holder | None) -> list[Attempt]:
    """Attempts that say `running` although their run no longer holds the dataset have crashed."""
    run = holder.run_id if holder else None
    for attempt in attempts:
        if attempt.state == AttemptState.RUNNING and attempt.run_id != run:
            attempt.state = ShardState.CRASHED
    return attempts


def _shard_table(
    dataset: Dataset,
    plans: Mapping[int, Manifest],
    done: Mapping[int, Manifest],
    verdicts: list[VerdictFile],
    attempts: list[Attempt],
) -> pa.Table:
    wanted = set(current_checks(dataset).items())
    said = _wanted_verdicts(wanted, verdicts)
    finished = _done_generate(done) | _done_verify(said, len(wanted)) | _done_unplanned(dataset)
    expected = {(GENERATE, n): plan.rows for n, plan in plans.items()}
    expected |= {(VERIFY, n): plan.rows * len(wanted) for n, plan in plans.items() if wanted}
    counts, last = _counts(attempts), last_attempts(attempts)
    unplanned = {key for key in last if key[0] not in (GENERATE, VERIFY)}
    for key in unplanned:
        if _outdated(finished.get(key), last[key]):
            del finished[key]
    partly = {(VERIFY, n): sum(file.rows for file in files) for n, files in said.items()}
    rows = [
        _shard_row(key, finished.get(key), last.get(key), counts.get(key, 0), partly.get(key))
        | {"supersedes": key[0] == GENERATE and key[1] in plans and supersedes(plans[key[1]])}
        | {"planned_rows": expected.get(key)}
        for key in sorted(expected.keys() | unplanned | finished.keys())
    ]
    return _table(rows, SHARD_SCHEMA)


def _counts(attempts: list[Attempt]) -> dict[tuple[str, int], int]:
    counts: dict[tuple[str, int], int] = {}
    for attempt in attempts:
        counts[attempt.stage, attempt.shard] = counts.get((attempt.stage, attempt.shard), 0) + 1
    return counts


def _done_generate(done: Mapping[int, Manifest]) -> dict[tuple[str, int], Done]:
    return {(GENERATE, n): _done(m) for n, m in done.items()}


def _done(manifest: Manifest) -> Done:
    return Done(manifest.rows, manifest.seconds, manifest.created_at, manifest.relative)


def _wanted_verdicts(wanted: set[tuple[str, str]], verdicts: list[VerdictFile]) -> dict[int, list[VerdictFile]]:
    """Per shard its valid verdict files of wanted checks in their wanted versions."""
    found: dict[int, list[VerdictFile]] = {}
    for file in verdicts:
        if (file.check, file.version) in wanted:
            found.setdefault(file.shard, []).append(file)
    return found


def _done_verify(said: Mapping[int, list[VerdictFile]], checks: int) -> dict[tuple[str, int], Done]:
    """Shards that have verdicts of every wanted check."""
    return {
        (VERIFY, n): Done(sum(f.rows for f in files), None, max(f.created_at for f in files), "verdicts")
        for n, files in said.items()
        if len(files) == checks
    }


def _done_unplanned(dataset: Dataset) -> dict[tuple[str, int], Done]:
    """Stages without a plan: training is one shard 0, an evaluation is (`evaluate/MODEL`, step); stored rows of the
    teacher have shards of their own."""
    found: dict[tuple[str, int], Done] = {}
    for student in _students(dataset, "manifest.json"):
        relative = f"{STUDENTS}/{student}/manifest.json"
        trained = dataset.read_json(relative)
        if trained is not None:
            found[student, 0] = Done(trained.get("steps"), None, _modified(dataset, relative), relative)
    for manifest in sorted(_captured(dataset), key=lambda m: m.created_at):
        found[CAPTURE, manifest.shard] = _done(manifest)
    for manifest in sorted(_evaluations(dataset), key=lambda m: m.created_at):
        rows = dataset.read_table(manifest.relative, ["model", "step"]).slice(0, 1).to_pylist()
        made = replace(_done(manifest), rows=_answers(dataset, manifest))
        found |= {(f"evaluate/{row['model']}", row["step"]): made for row in rows}
    return found


def _answers(dataset: Dataset, evaluation: Manifest) -> int | None:
    """How many answers an evaluation's few metric rows were made from."""
    answers = dataset.read_manifest(f"{EVALUATIONS}/answers/{PurePosixPath(evaluation.relative).name}")
    return answers.rows if answers else None


def _captured(dataset: Dataset) -> list[Manifest]:
    folders = [path.name for path in dataset.file(TEACHER_ROWS).glob("*")]
    return [manifest for folder in folders for manifest in dataset.manifests(f"{TEACHER_ROWS}/{folder}")]


def _students(dataset: Dataset, file: str) -> list[str]:
    """Names of the students that have `file`; those set aside for newer ones are not listed."""
    names = (path.parent.name for path in dataset.file(STUDENTS).glob(f"*/{file}"))
    return sorted(name for name in names if not name.startswith(SET_ASIDE))


def _outdated(done: Done | None, last: Attempt | None) -> bool:
    """Whether what was finished is being made anew, or a later try at that has failed."""
    if done is None or done.finished_at is None or last is None:
        return False
    return last.state != AttemptState.COMPLETED and last.started_at > done.finished_at


def _modified(dataset: Dataset, relative: str) -> str:
    return datetime.fromtimestamp(dataset.file(relative).stat().st_mtime, UTC).isoformat()


def _shard_row(
    key: tuple[str, int], done: Done | None, last: Attempt | None, attempts: int, partly: int | None
) -> dict[str, Any]:
    state = ShardState.DONE if done else _state(last)
    failed = last is not None and state == ShardState.FAILED
    return {
        "stage": key[0],
        "shard": key[1],
        "state": state.value,
        "attempts": attempts,
        "rows": done.rows if done else partly,
        "seconds": _seconds(done, last),
        "error_type": last.error_type if last and failed else None,
        "error": last.error if last and failed else None,
        "finished_at": _time(done.finished_at) if done else None,
        "path": done.path if done else None,
    }


def _state(last: Attempt | None) -> ShardState:
    """State of a shard that is not done. After a stop by hand it simply waits again."""
    if last is None or last.state in (AttemptState.INTERRUPTED, AttemptState.COMPLETED):
        return ShardState.PENDING
    return ShardState(last.state)


def _seconds(done: Done | None, last: Attempt | None) -> float | None:
    """Of the attempt that did the work where there is a record, else of the manifest."""
    if last is not None and last.state == AttemptState.COMPLETED:
        return last.seconds
    return done.seconds if done else None


def _attempt_row(attempt: Attempt) -> dict[str, Any]:
    times = {"started_at": _time(attempt.started_at), "ended_at": _time(attempt.ended_at)}
    return asdict(attempt) | times | {"state": str(attempt.state)}


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None) if text else None


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


def _verdict_table(dataset: Dataset, verdicts: list[VerdictFile]) -> pa.Table:
    rows = [asdict(file) | {"filename": str(dataset.file(file.relative))} for file in verdicts]
    return _table(rows, VERDICT_FILE_SCHEMA)


def _training_table(dataset: Dataset) -> pa.Table:
    """One row per optimizer step; what else a trainer measures (kl, reward, …) becomes further columns."""
    rows: list[dict[str, Any]] = []
    for student in _students(dataset, "metrics.jsonl"):
        path = dataset.file(f"{STUDENTS}/{student}/metrics.jsonl")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        steps = (record for record in map(_json_line, lines) if record)
        rows += [{name: _number(step[name]) for name in step} | {"stage": student} for step in steps]
    extra = sorted({name for row in rows for name in row} - set(TRAINING_SCHEMA.names))
    schema = pa.schema([*TRAINING_SCHEMA, *(pa.field(name, pa.float64()) for name in extra)])
    return _table(rows, schema)


def _json_line(line: str) -> dict[str, Any] | None:
    """One line of metrics; the last one may be half-written while a trainer runs."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, (int, float)) else None
