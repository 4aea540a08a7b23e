"""Verdicts of one shard of samples: every check that has no valid verdict file for it yet, and no other.

A check's verdicts lie in a file of their own, tied to the sample file by its checksum: a new version of a check
touches no sample, and a shard that was made again loses its old verdicts. Checks of one sample come first, in the
verifier pool, and stream through it; those that see a whole shard (`tasks/shard_checks.py`) come after them, and
those that need every shard in a task of their own, once all are there. `tasks/redo_errors.py` has errors again.
Memory holds a few samples of a shard that is in the pool, and all of one that checks of the second form see; of so
many shards only as `Verifier` lets in.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from model.records import VERDICT_SCHEMA, Status, Verdict, from_table, to_table
from model.rewards.check import Judgement, Scored
from model.rewards.workers.pool import VerifierPool
from model.rewards.workers.worker import Timed
from tasks.attempts import Attempt, attempt
from tasks.inputs import scored_rows
from tasks.progress import Ticker
from tasks.run import Run
from tasks.shard_checks import ShardCheck, ShardWork
from tasks.store import Dataset, sample_path, verdict_path
from tasks.work import pending_verify, verdict_extra

STAGE = "verify"
_SHARDS_READ = 3  # at once: one fills the pool while another ends and a third begins


class Versioned(Protocol):
    """What both forms of a check have."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...


C = TypeVar("C", bound=Versioned)


@dataclass(frozen=True)
class Verifier:
    """What the verify tasks of one run share: both forms of checks, and how many shards may be read at once."""

    pool: VerifierPool
    shard_checks: Sequence[ShardCheck] = ()
    turns: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_SHARDS_READ))

    @property
    def checks(self) -> list[Versioned]:
        """All of both forms, in the order in which they are carried out."""
        return [*self.pool.checks, *self.shard_checks]

    @property
    def versions(self) -> dict[str, str]:
        """Their versions by name."""
        return {check.name: check.version for check in self.checks}


@task(name="verify", task_run_name="verify {shard:06d}", cache_policy=NO_CACHE)
def verify_shard(run: Run, verifier: Verifier, shard: int, ticker: Ticker) -> int:
    """Writes what one shard lacks, save for checks that need every shard, and returns its number."""
    with turn(run, verifier, shard) as record:
        record.rows = _judge_by_pool(run.dataset, verifier.pool, shard)
        record.rows += _judge_shard(run.dataset, verifier, shard, after_all=False)
    ticker.advance(_samples(run.dataset, shard))
    return shard


@task(name="verify after all", task_run_name="verify {shard:06d} after all", cache_policy=NO_CACHE)
def verify_after_all(run: Run, verifier: Verifier, shard: int, ticker: Ticker) -> int:
    """Writes the missing verdicts of checks that need every shard, which must all be there; returns its number."""
    with turn(run, verifier, shard) as record:
        record.rows = _judge_shard(run.dataset, verifier, shard, after_all=True)
    ticker.advance(_samples(run.dataset, shard))
    return shard


def missing_checks(dataset: Dataset, checks: Sequence[C], shard: int) -> list[C]:
    """The checks whose verdicts on this shard are not there, or belong to an older make of it."""
    samples = dataset.read_manifest(sample_path(shard))
    assert samples is not None, "a shard is verified after it was made"
    found = [dataset.read_manifest(verdict_path(check.name, check.version, shard)) for check in checks]
    tie = verdict_extra(samples)
    return [c for c, m in zip(checks, found, strict=True) if m is None or m.extra != tie]


def pending_after_all(dataset: Dataset, verifier: Verifier) -> list[int]:
    """Shards that lack verdicts of a check that needs every shard."""
    late = {(check.name, check.version) for check in verifier.shard_checks if check.after_all}
    return [work.shard for work in pending_verify(dataset) if late & set(work.checks)]


def pending_before(dataset: Dataset, verifier: Verifier) -> list[int]:
    """Shards that lack verdicts of any other check."""
    late = {(check.name, check.version) for check in verifier.shard_checks if check.after_all}
    return [work.shard for work in pending_verify(dataset) if set(work.checks) - late]


@contextmanager
def turn(run: Run, verifier: Verifier, shard: int) -> Iterator[Attempt]:
    """An attempt that begins once its shard may be read: waiting is no work."""
    with verifier.turns, attempt(run.dataset, STAGE, shard, run.run_id) as record:
        yield record


def _samples(dataset: Dataset, shard: int) -> int:
    manifest = dataset.read_manifest(sample_path(shard))
    return manifest.rows if manifest else 0


def _judge_by_pool(dataset: Dataset, pool: VerifierPool, shard: int) -> int:
    """Verdicts written: those of all missing checks of the first form, in one pass over the samples."""
    missing = missing_checks(dataset, pool.checks, shard)
    if not missing:
        return 0
    started = time.monotonic()
    ids: list[str] = []
    results = list(pool.stream(_noting(ids, scored_rows(dataset, shard)), [check.name for check in missing]))
    for place, check in enumerate(missing):
        _write(dataset, check, shard, ids, [row[place] for row in results], time.monotonic() - started)
    return len(ids) * len(missing)


def _noting(ids: list[str], items: Iterator[Scored]) -> Iterator[Scored]:
    for item in items:
        ids.append(item.sample_id)
        yield item


def _judge_shard(dataset: Dataset, verifier: Verifier, shard: int, *, after_all: bool) -> int:
    """Verdicts written: those of the missing checks of the second form, one after the other."""
    missing = [c for c in missing_checks(dataset, verifier.shard_checks, shard) if c.after_all == after_all]
    if not missing:
        return 0
    items = list(scored_rows(dataset, shard))
    for check in missing:
        started = time.monotonic()
        timed = check.judge_shard(shard_work(dataset, verifier, check, shard, items))
        _write(dataset, check, shard, [item.sample_id for item in items], timed, time.monotonic() - started)
    return len(items) * len(missing)


def shard_work(
    dataset: Dataset, verifier: Verifier, check: ShardCheck, shard: int, items: Sequence[Scored]
) -> ShardWork:
    """These samples of a shard, and what the checks before this one said of each, as their files have it."""
    before = list(itertools.takewhile(lambda other: other.name != check.name, verifier.checks))
    lacking = missing_checks(dataset, before, shard)
    rows = {other.name: verdicts_of(dataset, other, shard) for other in before if other not in lacking}
    verdicts = {name: [_judgement(found[item.sample_id]) for item in items] for name, found in rows.items()}
    return ShardWork(dataset, shard, items, verdicts)


def verdicts_of(dataset: Dataset, check: Versioned, shard: int) -> dict[str, Verdict]:
    """A check's verdicts on a shard by sample, in the file's order."""
    rows: list[Verdict] = from_table(dataset.read_table(verdict_path(check.name, check.version, shard)), Verdict)
    return {row.sample_id: row for row in rows}


def _judgement(row: Verdict) -> Judgement:
    return Judgement(Status(row.verdict), row.score, row.reason, row.detail)


def _write(
    dataset: Dataset, check: Versioned, shard: int, ids: Collection[str], timed: Sequence[Timed], seconds: float
) -> None:
    rows = [verdict(sample, check, *said) for sample, said in zip(ids, timed, strict=True)]
    write_verdicts(dataset, check, shard, rows, seconds)


def write_verdicts(dataset: Dataset, check: Versioned, shard: int, rows: list[Verdict], seconds: float) -> None:
    samples = dataset.read_manifest(sample_path(shard))
    assert samples is not None
    dataset.write_shard(
        verdict_path(check.name, check.version, shard),
        to_table(rows, VERDICT_SCHEMA),
        schema=VERDICT_SCHEMA,
        fingerprint=check.version,
        extra=verdict_extra(samples),
        seconds=seconds,
    )


def verdict(sample_id: str, check: Versioned, judgement: Judgement, milliseconds: float) -> Verdict:
    return Verdict(
        sample_id=sample_id,
        check=check.name,
        version=check.version,
        verdict=judgement.verdict,
        score=judgement.score,
        reason=judgement.reason,
        detail=judgement.detail,
        milliseconds=milliseconds,
    )
