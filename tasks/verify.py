"""Verdicts of one shard of samples: every check that has no valid verdict file for it yet, and no other.

A check's verdicts lie in a file of their own, tied to the sample file by its checksum: a new version of a check
touches no sample, and a shard that was made again loses its old verdicts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from model.records import VERDICT_SCHEMA, Verdict, to_table
from model.rewards.check import Check, Judgement
from model.rewards.pool import VerifierPool
from tasks.attempts import attempt
from tasks.inputs import scored_rows
from tasks.progress import Ticker
from tasks.run import Run
from tasks.store import Dataset, sample_path, verdict_path
from tasks.work import verdict_extra

STAGE = "verify"


@task(name="verify", task_run_name="verify {shard:06d}", cache_policy=NO_CACHE)
def verify_shard(run: Run, pool: VerifierPool, shard: int, ticker: Ticker) -> int:
    """Writes the missing verdicts of one shard and returns its number."""
    missing = missing_checks(run.dataset, pool.checks, shard)
    started = time.monotonic()
    with attempt(run.dataset, STAGE, shard, run.run_id) as record:
        source = run.dataset.read_manifest(sample_path(shard))
        assert source is not None
        ids, items = scored_rows(run.dataset, shard)
        results = pool.run(items, [check.name for check in missing])
        for place, check in enumerate(missing):
            rows = [_verdict(sample_id, check, *result[place]) for sample_id, result in zip(ids, results, strict=True)]
            run.dataset.write_shard(
                verdict_path(check.name, check.version, shard),
                to_table(rows, VERDICT_SCHEMA),
                schema=VERDICT_SCHEMA,
                fingerprint=check.version,
                extra=verdict_extra(source),
                seconds=time.monotonic() - started,
            )
        record.rows = len(ids) * len(missing)
    ticker.advance(len(ids))
    return shard


def missing_checks(dataset: Dataset, checks: Sequence[Check], shard: int) -> list[Check]:
    """The checks whose verdicts on this shard are not there, or belong to an older make of it."""
    samples = dataset.read_manifest(sample_path(shard))
    assert samples is not None, "a shard is verified after it was made"
    found = [dataset.read_manifest(verdict_path(check.name, check.version, shard)) for check in checks]
    tie = verdict_extra(samples)
    return [c for c, m in zip(checks, found, strict=True) if m is None or m.extra != tie]


def _verdict(sample_id: str, check: Check, judgement: Judgement, milliseconds: float) -> Verdict:
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
