"""Rows whose verdict is an error are verified again; every other row and file stays as it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from model.rewards.workers.pool import VerifierPool
from tasks.attempts import read_attempts
from tasks.progress import Ticker
from tasks.redo_errors import redo_errors, shards_with_errors
from tasks.run import Run
from tasks.store import verdict_path
from tasks.verify import Verifier, pending_after_all, verify_after_all, verify_shard
from tasks.work import pending_verify, plan_verify
from tests.tasks.flaky import MENDED, TROUBLE, EchoCheck, troubled
from tests.tasks.small_dataset import generate, make_dataset, plan

FLAKY = "tests.tasks.flaky:FlakyCheck"
REASONS = {"raise": "raised", "sleep": "timed_out", "die": "worker_died"}


@pytest.fixture
def mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MENDED, str(tmp_path / "mended"))
    return tmp_path / "mended"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Shards 0 and 1 with eight samples each."""
    dataset = make_dataset(tmp_path / "data", problems=2)
    for shard in plan(dataset, replicas=8, shard_size=8):
        generate(dataset, shard)
    return Run(dataset, "run-1")


def rows(run: Run, check: str, shard: int) -> list[dict[str, object]]:
    table = run.dataset.read_table(verdict_path(check, "1", shard))
    return table.drop_columns(["milliseconds"]).to_pylist()


def checksums(run: Run) -> dict[str, str]:
    folders = ("samples", "verdicts", "plans", "problems")
    files = [path for name in folders for path in (run.dataset.path / name).rglob("*.*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ticker() -> Ticker:
    return Ticker("verify", None, "samples")


@pytest.mark.parametrize("trouble", REASONS)
def test_errors_are_redone_alone_whatever_made_them(
    trouble: str, run: Run, mended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TROUBLE, trouble)
    with VerifierPool(["finish", FLAKY], workers=1, timeout_seconds=0.3) as pool:
        verifier = Verifier(pool)
        for shard in (0, 1):
            verify_shard.fn(run, verifier, shard, ticker())
        before = {shard: rows(run, "flaky", shard) for shard in (0, 1)}
        wrong = [row["sample_id"] for shard in (0, 1) for row in before[shard] if row["verdict"] == "error"]
        assert wrong == [row["sample_id"] for s in (0, 1) for row in before[s] if troubled(str(row["sample_id"]))]
        assert 0 < len(wrong) < 16
        assert {row["reason"] for s in (0, 1) for row in before[s] if row["verdict"] == "error"} == {REASONS[trouble]}
        assert sum(shards_with_errors(run.dataset, verifier).values()) == len(wrong)
        files = checksums(run)

        mended.touch()
        for shard in shards_with_errors(run.dataset, verifier):
            redo_errors.fn(run, verifier, shard, ticker())

        assert shards_with_errors(run.dataset, verifier) == {}
    for shard in (0, 1):
        after = rows(run, "flaky", shard)
        assert [row["sample_id"] for row in after] == [row["sample_id"] for row in before[shard]]
        assert all(new == old for new, old in zip(after, before[shard], strict=True) if old["verdict"] == "pass")
        assert {new["reason"] for new, old in zip(after, before[shard], strict=True) if old != new} <= {"mended"}
    changed = {Path(path).parent.parent.name for path, digest in checksums(run).items() if files.get(path) != digest}
    assert changed == {"flaky"}
    assert [a.state for a in read_attempts(run.dataset)] == ["completed"] * 4
    plan_verify(run.dataset, verifier.versions)
    assert pending_verify(run.dataset) == []


def test_what_is_still_an_error_changes_no_file(run: Run, mended: Path) -> None:
    assert not mended.exists()
    with VerifierPool([FLAKY], workers=1) as pool:
        verifier = Verifier(pool)
        verify_shard.fn(run, verifier, 0, ticker())
        files, errors = checksums(run), shards_with_errors(run.dataset, verifier)
        assert redo_errors.fn(run, verifier, 0, ticker()) == errors[0]
        assert shards_with_errors(run.dataset, verifier) == errors
    assert checksums(run) == files


def test_a_check_of_a_whole_shard_is_asked_again_where_its_ground_has_changed(run: Run, mended: Path) -> None:
    with VerifierPool([FLAKY], workers=1) as pool:
        echo = EchoCheck()
        verifier = Verifier(pool, [echo])
        verify_shard.fn(run, verifier, 0, ticker())
        before = rows(run, "echo", 0)
        wrong = [row["sample_id"] for row in before if row["verdict"] == "error"]
        assert wrong
        mended.touch()
        assert redo_errors.fn(run, verifier, 0, ticker()) == 2 * len(wrong)
    assert echo.shown == [(0, [row["sample_id"] for row in before]), (0, wrong)]
    assert [row["reason"] for row in rows(run, "echo", 0)] == [row["reason"] for row in rows(run, "flaky", 0)]


def test_a_check_that_compares_samples_sees_them_all_again_but_changes_only_its_errors(run: Run, mended: Path) -> None:
    with VerifierPool([FLAKY], workers=1) as pool:
        echo = EchoCheck(after_all=True)
        verifier = Verifier(pool, [echo])
        plan_verify(run.dataset, verifier.versions)
        for shard in (0, 1):
            verify_shard.fn(run, verifier, shard, ticker())
        assert echo.shown == []
        assert pending_after_all(run.dataset, verifier) == [0, 1]
        verify_after_all.fn(run, verifier, 0, ticker())
        assert pending_after_all(run.dataset, verifier) == [1]
        ids = [row["sample_id"] for row in rows(run, "echo", 0)]
        mended.touch()
        redo_errors.fn(run, verifier, 0, ticker())
    assert echo.shown == [(0, ids), (0, ids)]
    assert {row["verdict"] for row in rows(run, "echo", 0)} == {"pass"}
