"""What is to be done: work = plans − valid manifests. Resume, retry and re-run all ask this file.

A plan is a shard's fixed list of samples, itself a shard with a manifest. A plan that has been carried out
never changes: more problems, more replicas or a higher `max_tokens` add shards. A sample that is planned
again (cut by the old limit, or asked for by `rerun`) goes into a shard that *supersedes*: once that is done,
its rows stand in for the older ones, which stay on disk. Only the run that holds the dataset may plan.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow.compute as pc

from model.errors import StoreError
from model.records import (
    PLAN_SCHEMA,
    FinishReason,
    PlannedSample,
    Provenance,
    content_hash,
    from_table,
    sample_ids,
    sample_seed,
    to_table,
)
from tasks.attempts import FOLDER as ATTEMPTS
from tasks.attempts import Attempt, AttemptState, read_attempts
from tasks.problem_verdicts import PROBLEM_CHECKS, excluded
from tasks.store import (
    PLANS,
    PROBLEMS,
    SAMPLES,
    VERDICTS,
    Dataset,
    Manifest,
    sample_path,
    shard_name,
)

GENERATE, VERIFY, CAPTURE = "generate", "verify", "capture"
_PLAN_FOLDER = f"{PLANS}/{GENERATE}"
_CHECKS_FILE = f"{PLANS}/{VERIFY}.json"
_NUMBERED = re.compile(r"(\d{6,})\D.*")


@dataclass(frozen=True, slots=True)
class VerifyWork:
    """One shard whose samples still lack the verdicts of `checks`: (name, version) pairs."""

    shard: int
    checks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class VerdictFile:
    """One valid verdict file. `current`: the one version of this check that counts for this shard."""

    relative: str
    check: str
    version: str
    shard: int
    current: bool
    created_at: str
    rows: int


def plan_path(shard: int) -> str:
    """Where a shard's plan lies, relative to the dataset."""
    return f"{_PLAN_FOLDER}/{shard_name(shard)}"


def train_problem_ids(dataset: Dataset, excluding: Collection[str] = PROBLEM_CHECKS) -> list[str]:
    """Ids of the problems that training may see, each once, in the order of the problem files.

    Those that fail one of the checks `excluding` are left out; what was made for them stays.
    """
    found: dict[str, None] = {}
    for manifest in dataset.manifests(PROBLEMS):
        table = dataset.read_table(manifest.relative, ["problem_id", "split"])
        found |= dict.fromkeys(table.filter(pc.field("split") == "train").column("problem_id").to_pylist())
    left_out = excluded(dataset, excluding)
    return [problem for problem in found if problem not in left_out]


def wanted_samples(
    problem_ids: Sequence[str], provenance: Provenance, replicas: int, max_tokens: int
) -> list[PlannedSample]:
    """Every sample that a recipe asks for, problem by problem, so that an engine's prefix cache is of use."""

    ids = sample_ids(problem_ids, provenance, replicas)
    return [
        PlannedSample(sample, problem, replica, sample_seed(sample), max_tokens)
        for problem, samples in zip(problem_ids, ids, strict=True)
        for replica, sample in enumerate(samples)
    ]


def plan_generate(dataset: Dataset, wanted: Iterable[PlannedSample], *, shard_size: int, fingerprint: str) -> list[int]:
    """Plans what `wanted` (all that the recipe asks for) adds to the dataset, and returns the new shards.

    A sample is covered when it was planned before, under any shard layout, with at least the wanted
    `max_tokens`, or when it ended by itself. One that its old limit cut is planned again, with the same seed.
    Plans not yet carried out follow the recipe: they take new limits and drop samples no longer wanted.
    """
    rows = {row.sample_id: row for row in wanted}
    done = done_shards(dataset)
    _refresh_pending(dataset, rows, done, fingerprint)
    planned = _latest_plans(dataset, done)
    new = [row for row in rows.values() if row.sample_id not in planned]
    short = [r for r in rows.values() if r.sample_id in planned and planned[r.sample_id].max_tokens < r.max_tokens]
    cut = _cut_by_limit(dataset, {planned[row.sample_id].shard for row in short}, done)
    again = [row for row in short if (planned[row.sample_id].shard, row.sample_id) in cut]
    shards = _write_plans(dataset, new, shard_size, fingerprint, supersedes=False)
    return shards + _write_plans(dataset, again, shard_size, fingerprint, supersedes=True)


def plan_rerun(
    dataset: Dataset,
    sample_ids: Sequence[str],
    *,
    shard_size: int,
    fingerprint: str,
    max_tokens: int | None = None,
) -> list[int]:
    """Plans these samples anew, with other random numbers, in shards that supersede; returns the shards to make.

    A sample whose plan is still waiting (an interrupted re-run's) is left to it, and its shard is returned too.
    StoreError for an id that was never planned.
    """
    done = done_shards(dataset)
    planned = _latest_plans(dataset, done)
    unknown = [sample for sample in sample_ids if sample not in planned]
    if unknown:
        raise StoreError(f"{dataset.path} has no sample {unknown[0]} ({len(unknown)} ids are unknown)")
    wanted = set(sample_ids)
    shards = {planned[s].shard for s in wanted}
    rows = [
        replace(row, seed=_new_seed(row, shard), max_tokens=max_tokens or row.max_tokens)
        for shard in sorted(shards & done.keys())
        for row in _rows_of(dataset, shard)
        if row.sample_id in wanted and planned[row.sample_id].shard == shard
    ]
    waiting = sorted(shards - done.keys())
    return waiting + _write_plans(dataset, rows, shard_size, fingerprint, supersedes=True)


def read_plan(dataset: Dataset, shard: int) -> list[PlannedSample]:
    """The samples of one shard, in order."""
    return from_table(dataset.read_table(plan_path(shard)), PlannedSample)


def planned_shards(dataset: Dataset) -> dict[int, Manifest]:
    """Every planned shard of generation, by number."""
    return {manifest.shard: manifest for manifest in dataset.manifests(_PLAN_FOLDER)}


def done_shards(dataset: Dataset) -> dict[int, Manifest]:
    """Every shard whose samples are complete: a valid manifest, and the very ids that were planned."""
    plans = planned_shards(dataset)
    found = {manifest.shard: manifest for manifest in dataset.manifests(SAMPLES)}
    return {n: m for n, m in found.items() if n not in plans or plans[n].ids_digest == m.ids_digest}


def supersedes(plan: Manifest) -> bool:
    """Whether a plan's rows, once made, stand in for older ones."""
    return bool(plan.extra.get("supersedes"))


def pending_generate(dataset: Dataset) -> list[int]:
    """Shards that are planned and not done, in order."""
    return sorted(planned_shards(dataset).keys() - done_shards(dataset).keys())


def plan_verify(dataset: Dataset, checks: Mapping[str, str]) -> None:
    """Notes which version of each check the recipe wants (name -> version): from now on those count."""
    if current_checks(dataset) != dict(checks):
        dataset.write_text(_CHECKS_FILE, json.dumps({"checks": dict(checks)}, indent=1))


def current_checks(dataset: Dataset) -> dict[str, str]:
    """The checks that `plan_verify` noted last, name -> version; empty before the first time."""
    record = dataset.read_json(_CHECKS_FILE)
    return dict(record["checks"]) if isinstance(record, dict) else {}


def pending_verify(dataset: Dataset) -> list[VerifyWork]:
    """For each shard with samples, the wanted checks that have no valid verdicts on those very samples."""
    done, checks = done_shards(dataset), current_checks(dataset)
    found = {(f.check, f.version, f.shard) for f in verdict_files(dataset, done)}
    missing = {n: tuple((c, v) for c, v in checks.items() if (c, v, n) not in found) for n in sorted(done)}
    return [VerifyWork(shard, lacking) for shard, lacking in missing.items() if lacking]


def verdict_extra(samples: Manifest) -> dict[str, str]:
    """`extra` of a verdict file's manifest: ties it to the bytes of the samples that were judged."""
    return {"samples_sha256": samples.sha256}


def verdict_files(dataset: Dataset, done: Mapping[int, Manifest] | None = None) -> list[VerdictFile]:
    """Valid verdict files on samples as they are now. Verdicts on a file that was replaced do not count.

    Per check and shard one version is current: the one that `plan_verify` noted, else the youngest.
    """
    done = done_shards(dataset) if done is None else done
    folders = sorted(p.relative_to(dataset.path).as_posix() for p in dataset.file(VERDICTS).glob("*/*"))
    found = [m for folder in folders for m in dataset.manifests(folder) if _fits(m, done)]
    best = _current_versions(found, current_checks(dataset))
    return [VerdictFile(m.relative, *_check_of(m), m.shard, m.relative in best, m.created_at, m.rows) for m in found]


def last_attempts(attempts: Iterable[Attempt]) -> dict[tuple[str, int], Attempt]:
    """The newest attempt of each (stage, shard)."""
    last: dict[tuple[str, int], Attempt] = {}
    for attempt in attempts:
        key = (attempt.stage, attempt.shard)
        if key not in last or last[key].attempt < attempt.attempt:
            last[key] = attempt
    return last


def failed_shards(dataset: Dataset, stage: str) -> list[int]:
    """What `rerun --failed` makes: shards of `generate` or `verify` to be done whose last attempt failed."""
    todo = pending_generate(dataset) if stage == GENERATE else [w.shard for w in pending_verify(dataset)]
    last = last_attempts(read_attempts(dataset))
    return [n for n in todo if (stage, n) in last and last[stage, n].state == AttemptState.FAILED]


@dataclass(frozen=True, slots=True)
class _Planned:
    shard: int
    max_tokens: int


def _latest_plans(dataset: Dataset, done: Mapping[int, Manifest]) -> dict[str, _Planned]:
    """Where each sample was planned last. Samples whose plan file is lost count as planned where they lie."""
    plans, latest = planned_shards(dataset), {}
    for shard in sorted(plans.keys() | done.keys()):
        relative = plan_path(shard) if shard in plans else sample_path(shard)
        table = dataset.read_table(relative, ["sample_id", "max_tokens"])
        rows = zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True)
        latest.update({sample: _Planned(shard, limit) for sample, limit in rows})
    return latest


def _rows_of(dataset: Dataset, shard: int) -> list[PlannedSample]:
    has_plan = dataset.read_manifest(plan_path(shard)) is not None
    path = plan_path(shard) if has_plan else sample_path(shard)
    return from_table(dataset.read_table(path, PLAN_SCHEMA.names), PlannedSample)


def _cut_by_limit(dataset: Dataset, shards: set[int], done: Mapping[int, Manifest]) -> set[tuple[int, str]]:
    """(shard, sample_id) of the finished samples that `max_tokens` cut."""
    cut = set()
    for shard in shards & done.keys():
        table = dataset.read_table(sample_path(shard), ["sample_id", "finish_reason"])
        table = table.filter(pc.field("finish_reason") == FinishReason.LENGTH.value)
        cut |= {(shard, sample) for sample in table.column("sample_id").to_pylist()}
    return cut


def _refresh_pending(
    dataset: Dataset, wanted: Mapping[str, PlannedSample], done: Mapping[int, Manifest], fingerprint: str
) -> None:
    """Brings the plans that nobody has carried out in line with the recipe."""
    for shard, plan in planned_shards(dataset).items():
        if shard in done:
            continue
        rows = read_plan(dataset, shard)
        now = (
            _raised(rows, wanted) if supersedes(plan) else [wanted[r.sample_id] for r in rows if r.sample_id in wanted]
        )
        if not now:
            dataset.remove_shard(plan_path(shard))
        elif now != rows:
            _write_plan(dataset, shard, now, fingerprint, supersedes(plan))


def _raised(rows: Sequence[PlannedSample], wanted: Mapping[str, PlannedSample]) -> list[PlannedSample]:
    """A waiting re-run keeps its own seeds and, where it is the larger one, its own limit."""
    limits = {sample: row.max_tokens for sample, row in wanted.items()}
    return [replace(row, max_tokens=max(row.max_tokens, limits.get(row.sample_id, 0))) for row in rows]


def _write_plans(
    dataset: Dataset, rows: Sequence[PlannedSample], shard_size: int, fingerprint: str, *, supersedes: bool
) -> list[int]:
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, not {shard_size}")
    first = _next_shard(dataset)
    chunks = [rows[at : at + shard_size] for at in range(0, len(rows), shard_size)]
    for shard, chunk in enumerate(chunks, first):
        _write_plan(dataset, shard, chunk, fingerprint, supersedes)
    return list(range(first, first + len(chunks)))


def _write_plan(
    dataset: Dataset, shard: int, rows: Sequence[PlannedSample], fingerprint: str, supersedes: bool
) -> None:
    table = to_table(list(rows), PLAN_SCHEMA)
    extra = {"supersedes": supersedes}
    dataset.write_shard(plan_path(shard), table, schema=PLAN_SCHEMA, fingerprint=fingerprint, extra=extra)


def _next_shard(dataset: Dataset) -> int:
    """One past every number ever used, so that no attempt or leftover is taken for a new shard's."""
    folders = (_PLAN_FOLDER, SAMPLES, f"{ATTEMPTS}/{GENERATE}")
    names = (_NUMBERED.fullmatch(path.name) for folder in folders for path in dataset.file(folder).glob("*"))
    return 1 + max((int(name[1]) for name in names if name), default=-1)


def _new_seed(row: PlannedSample, shard: int) -> int:
    """A seed in [0, 2^31) that differs from the one used in `shard`, the same whenever it is planned."""
    return sample_seed(content_hash("rerun", row.sample_id, row.seed, shard))


def _check_of(manifest: Manifest) -> tuple[str, str]:
    _, check, version, _ = manifest.relative.split("/")
    return check, version


def _fits(verdicts: Manifest, done: Mapping[int, Manifest]) -> bool:
    samples = done.get(verdicts.shard)
    return samples is not None and verdicts.extra.get("samples_sha256") == samples.sha256


def _current_versions(found: Sequence[Manifest], wanted: Mapping[str, str]) -> set[str]:
    """For each check and shard the file that counts."""

    def rank(manifest: Manifest) -> tuple[bool, str]:
        check, version = _check_of(manifest)
        return wanted.get(check) == version, manifest.created_at

    best: dict[tuple[str, int], Manifest] = {}
    for manifest in sorted(found, key=rank):
        best[_check_of(manifest)[0], manifest.shard] = manifest
    return {manifest.relative for manifest in best.values()}
