"""Verdicts of one shard, by a real verifier process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model.rewards.pool import VerifierPool
from tasks.attempts import read_attempts
from tasks.progress import Ticker
from tasks.run import Run
from tasks.store import Dataset, verdict_path
from tasks.verify import missing_checks, verify_shard
from tests.tasks.small_dataset import generate, judge, make_dataset, plan

WELL_FORMED = "<think>1 + 1 is 2</think><answer>2</answer>"


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(["finish", "format"], workers=1) as pool:
        yield pool


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two well-formed samples in shard 0."""
    dataset = make_dataset(tmp_path / "data", problems=1)
    assert plan(dataset) == [0]
    generate(dataset, 0, text=lambda _: WELL_FORMED)
    return Run(dataset, "run-1")


def verdicts(dataset: Dataset, check: str) -> list[tuple[str, str]]:
    rows = dataset.read_table(verdict_path(check, "1", 0)).to_pylist()
    return [(row["verdict"], row["reason"]) for row in rows]


def missing(run: Run, pool: VerifierPool) -> list[str]:
    return [check.name for check in missing_checks(run.dataset, pool.checks, 0)]


def test_every_sample_gets_a_verdict_of_every_check(run: Run, pool: VerifierPool) -> None:
    ticker = Ticker("verify", 2, "samples")
    assert missing(run, pool) == ["finish", "format"]
    assert verify_shard.fn(run, pool, 0, ticker) == 0
    assert verdicts(run.dataset, "finish") == [("pass", "stopped")] * 2
    assert verdicts(run.dataset, "format") == [("pass", "full")] * 2
    assert missing(run, pool) == []
    assert ticker.done == 2
    assert [(a.stage, a.state, a.rows) for a in read_attempts(run.dataset)] == [("verify", "completed", 4)]


def test_a_check_that_has_its_verdicts_is_left_alone(run: Run, pool: VerifierPool) -> None:
    # Not what the check says of this sample: were it carried out again, that would be seen.
    before = judge(run.dataset, 0, "finish", lambda _: "fail", reasons={"fail": "by hand"})
    assert missing(run, pool) == ["format"]
    verify_shard.fn(run, pool, 0, Ticker("verify", 2, "samples"))
    assert run.dataset.read_manifest(before.relative) == before
    assert verdicts(run.dataset, "finish") == [("fail", "by hand")] * 2
    assert verdicts(run.dataset, "format") == [("pass", "full")] * 2
    assert [a.rows for a in read_attempts(run.dataset)] == [2]


def test_a_shard_that_was_made_again_loses_its_verdicts(run: Run, pool: VerifierPool) -> None:
    ticker = Ticker("verify", 4, "samples")
    verify_shard.fn(run, pool, 0, ticker)
    generate(run.dataset, 0, text=lambda _: "<think>1 + 1", finish=lambda _: "length")
    assert missing(run, pool) == ["finish", "format"]
    verify_shard.fn(run, pool, 0, ticker)
    assert verdicts(run.dataset, "finish") == [("fail", "truncated")] * 2
    assert verdicts(run.dataset, "format") == [("fail", "unclosed_think")] * 2
    assert missing(run, pool) == []
