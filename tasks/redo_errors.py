"""Verdicts that are errors, had again: those rows alone, in the files in which they stand.

An error (a time-out, a dead worker, a sandbox or an endpoint that failed) says nothing of the sample. The file is
written anew with every other row as it was, so that no sample is ever judged twice by one version of a check. Nothing
is done here for checks whose files are missing: that is what any run does.
"""

from __future__ import annotations

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from model.records import Status, Verdict
from model.rewards.workers.pool import VerifierPool
from model.rewards.workers.worker import Timed
from tasks.inputs import scored_rows
from tasks.progress import Ticker
from tasks.run import Run
from tasks.shard_checks import ShardCheck
from tasks.store import Dataset, verdict_path
from tasks.verify import Verifier, Versioned, shard_work, turn, verdict, verdicts_of, write_verdicts
from tasks.work import VerdictFile, verdict_files


@task(name="redo errors", task_run_name="redo errors {shard:06d}", cache_policy=NO_CACHE)
def redo_errors(run: Run, verifier: Verifier, shard: int, ticker: Ticker) -> int:
    """Verifies again those rows of one shard whose verdict is `error`; returns how many were tried.

    No other row and no other file changes, but for one thing: a check that sees a whole shard is asked again about
    samples whose earlier verdicts have just changed, because its own rest on them.
    """
    with turn(run, verifier, shard) as record:
        record.rows = _redo(run.dataset, verifier, shard)
    ticker.advance(record.rows)
    return record.rows


def shards_with_errors(dataset: Dataset, verifier: Verifier) -> dict[int, int]:
    """How many verdicts of these checks are errors, by shard; shards without any are left out."""
    found: dict[int, int] = {}
    for file in _files(dataset, verifier):
        verdicts = dataset.read_table(file.relative, ["verdict"]).column(0).to_pylist()
        errors = verdicts.count(Status.ERROR.value)
        if errors:
            found[file.shard] = found.get(file.shard, 0) + errors
    return dict(sorted(found.items()))


def _redo(dataset: Dataset, verifier: Verifier, shard: int) -> int:
    """Rows that were tried again."""
    files = {file.check for file in _files(dataset, verifier) if file.shard == shard}
    tried, changed = 0, set[str]()
    for check in verifier.pool.checks:
        wrong = _errors(dataset, check, shard) if check.name in files else set()
        changed |= _by_pool(dataset, verifier.pool, check, shard, wrong) if wrong else set()
        tried += len(wrong)
    for late in verifier.shard_checks:
        wrong = _errors(dataset, late, shard) | changed if late.name in files else set()
        changed |= _by_shard_check(dataset, verifier, late, shard, wrong) if wrong else set()
        tried += len(wrong)
    return tried


def _by_pool(dataset: Dataset, pool: VerifierPool, check: Versioned, shard: int, wrong: set[str]) -> set[str]:
    """Ids of the samples of which this check now says something else."""
    items = list(scored_rows(dataset, shard, wrong))
    again = [row[0] for row in pool.run(items, [check.name])]
    return _rewrite(dataset, check, shard, dict(zip([item.sample_id for item in items], again, strict=True)))


def _by_shard_check(dataset: Dataset, verifier: Verifier, check: ShardCheck, shard: int, wrong: set[str]) -> set[str]:
    """The same; a check that compares samples (`after_all`) is shown all of them, any other those in question."""
    items = list(scored_rows(dataset, shard, None if check.after_all else wrong))
    timed = check.judge_shard(shard_work(dataset, verifier, check, shard, items))
    again = {item.sample_id: new for item, new in zip(items, timed, strict=True) if item.sample_id in wrong}
    return _rewrite(dataset, check, shard, again)


def _errors(dataset: Dataset, check: Versioned, shard: int) -> set[str]:
    """Ids of the samples on which this check's verdict is an error."""
    table = dataset.read_table(verdict_path(check.name, check.version, shard), ["sample_id", "verdict"])
    pairs = zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True)
    return {sample for sample, verdict in pairs if verdict == Status.ERROR}


def _rewrite(dataset: Dataset, check: Versioned, shard: int, again: Mapping[str, Timed]) -> set[str]:
    """Puts these verdicts in the places of the old ones; returns the ids of those that now say something else.

    A kill between the two renames leaves the file without a manifest: this check's verdicts on this shard are then
    missing, and the next run makes them.
    """
    rows = list(verdicts_of(dataset, check, shard).values())
    new = {sample: verdict(sample, check, *timed) for sample, timed in again.items()}
    changed = {row.sample_id for row in rows if row.sample_id in new and _said(row) != _said(new[row.sample_id])}
    if changed:
        manifest = dataset.read_manifest(verdict_path(check.name, check.version, shard))
        assert manifest is not None
        merged = [new[row.sample_id] if row.sample_id in changed else row for row in rows]
        write_verdicts(dataset, check, shard, merged, manifest.seconds)
    return changed


def _said(row: Verdict) -> tuple[object, ...]:
    return row.verdict, row.score, row.reason, row.detail


def _files(dataset: Dataset, verifier: Verifier) -> list[VerdictFile]:
    """The verdict files of these checks in these versions."""
    return [file for file in verdict_files(dataset) if verifier.versions.get(file.check) == file.version]
