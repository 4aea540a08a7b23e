"""Small real datasets for the tests of this folder, made through the public functions of the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from model.records import (
    EVALUATION_SCHEMA,
    PROBLEM_SCHEMA,
    SAMPLE_SCHEMA,
    VERDICT_SCHEMA,
    Evaluation,
    PlannedSample,
    Problem,
    Provenance,
    Sample,
    Status,
    Verdict,
    problem_id,
    to_table,
)
from tasks.store import Dataset, Manifest, sample_path, verdict_path
from tasks.work import plan_generate, read_plan, train_problem_ids, verdict_extra, wanted_samples

TEACHER = Provenance("teacher", "r1", "think-answer@0", 0.7, 1.0)


def problem(number: int, split: str = "train") -> Problem:
    prompt, gold = f"Calculate {number} + 1.", str(number + 1)
    return Problem(problem_id("math", prompt, gold), "math", "sums", prompt, gold, split=split)


def write_problems(dataset: Dataset, problems: Sequence[Problem], file: str = "000000") -> None:
    table = to_table(list(problems), PROBLEM_SCHEMA)
    dataset.write_shard(f"problems/{file}.parquet", table, schema=PROBLEM_SCHEMA, fingerprint="p")


def make_dataset(path: Path, problems: int = 3) -> Dataset:
    dataset = Dataset.create(path)
    write_problems(dataset, [problem(number) for number in range(problems)])
    return dataset


def wanted(dataset: Dataset, replicas: int = 2, max_tokens: int = 64) -> list[PlannedSample]:
    return wanted_samples(train_problem_ids(dataset), TEACHER, replicas, max_tokens)


def plan(dataset: Dataset, replicas: int = 2, max_tokens: int = 64, shard_size: int = 2) -> list[int]:
    rows = wanted(dataset, replicas, max_tokens)
    return plan_generate(dataset, rows, shard_size=shard_size, fingerprint="g")


def sample_of(row: PlannedSample, shard: int, text: str | None = None, finish: str = "stop") -> Sample:
    return Sample(
        row.sample_id,
        row.problem_id,
        shard,
        TEACHER.teacher,
        TEACHER.teacher_revision,
        TEACHER.template,
        TEACHER.temperature,
        TEACHER.top_p,
        row.max_tokens,
        row.replica,
        row.seed,
        10,
        5,
        finish,
        f"text {row.seed}" if text is None else text,
        None,
        None,
        None,
        0.1,
        "2026-01-01T00:00:00+00:00",
    )


def generate(
    dataset: Dataset,
    shard: int,
    text: Callable[[PlannedSample], str | None] = lambda _: None,
    finish: Callable[[PlannedSample], str] = lambda _: "stop",
) -> Manifest:
    """Carries out one planned shard."""
    rows = [sample_of(row, shard, text(row), finish(row)) for row in read_plan(dataset, shard)]
    table = to_table(rows, SAMPLE_SCHEMA)
    return dataset.write_shard(sample_path(shard), table, schema=SAMPLE_SCHEMA, fingerprint="g")


def judge(
    dataset: Dataset,
    shard: int,
    check: str,
    verdict: Callable[[PlannedSample], str] = lambda _: "pass",
    version: str = "1",
    reasons: Mapping[str, str] | None = None,
) -> Manifest:
    """Writes one check's verdicts on one generated shard."""
    samples = dataset.read_manifest(sample_path(shard))
    assert samples is not None
    rows = []
    for row in read_plan(dataset, shard):
        status = Status(verdict(row))
        rows.append(Verdict(row.sample_id, check, version, status, 1.0, (reasons or {}).get(status, str(status))))
    table = to_table(rows, VERDICT_SCHEMA)
    extra = verdict_extra(samples)
    path = verdict_path(check, version, shard)
    return dataset.write_shard(path, table, schema=VERDICT_SCHEMA, fingerprint="v", extra=extra)


def evaluate(
    dataset: Dataset, key: str, model: str, step: int, suite: str, value: float, second: int = 0, metric: str = "pass@1"
) -> Manifest:
    """Writes one metric of one model, a tenth to either side in its interval, measured at this second of a minute."""
    low, high, at = max(0.0, value - 0.1), min(1.0, value + 0.1), f"2026-01-01T00:00:{second:02d}+00:00"
    row = Evaluation(key, model, step, suite, metric, value, low, high, 5, 10, "t", "folder", at)
    table = to_table([row], EVALUATION_SCHEMA)
    return dataset.write_shard(f"evaluations/{key}.parquet", table, schema=EVALUATION_SCHEMA, fingerprint=key)
