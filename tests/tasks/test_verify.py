"""Verdicts of one shard, by a real verifier process."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from model.errors import StoreError
from model.rewards.workers.pool import VerifierPool
from tasks.attempts import read_attempts
from tasks.progress import Ticker
from tasks.run import Run
from tasks.store import Dataset, verdict_path
from tasks.verify import Verifier, missing_checks, verify_shard
from tasks.work import pending_verify, plan_verify, verdict_files
from tests.tasks.flaky import MENDED, SLOW, EchoCheck
from tests.tasks.small_dataset import generate, judge, make_dataset, plan

FLAKY = "tests.tasks.flaky:FlakyCheck"
CHECKS = ("finish", "flaky")
WELL_FORMED = "<think>1 + 1 is 2</think><answer>2</answer>"


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with VerifierPool(["finish", "format"], workers=1) as pool:
        yield Verifier(pool)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two well-formed samples in shard 0."""
    dataset = make_dataset(tmp_path / "data", problems=1)
    assert plan(dataset) == [0]
    generate(dataset, 0, text=lambda _: WELL_FORMED)
    return Run(dataset, "run-1")


def verdicts(dataset: Dataset, check: str, shard: int = 0) -> list[tuple[str, str]]:
    rows = dataset.read_table(verdict_path(check, "1", shard)).to_pylist()
    return [(row["verdict"], row["reason"]) for row in rows]


def missing(run: Run, verifier: Verifier) -> list[str]:
    return [check.name for check in missing_checks(run.dataset, verifier.pool.checks, 0)]


def test_every_sample_gets_a_verdict_of_every_check(run: Run, verifier: Verifier) -> None:
    ticker = Ticker("verify", 2, "samples")
    assert missing(run, verifier) == ["finish", "format"]
    assert verify_shard.fn(run, verifier, 0, ticker) == 0
    assert verdicts(run.dataset, "finish") == [("pass", "stopped")] * 2
    assert verdicts(run.dataset, "format") == [("pass", "full")] * 2
    assert missing(run, verifier) == []
    assert ticker.done == 2
    assert [(a.stage, a.state, a.rows) for a in read_attempts(run.dataset)] == [("verify", "completed", 4)]


def test_a_check_that_has_its_verdicts_is_left_alone(run: Run, verifier: Verifier) -> None:
    # Not what the check says of this sample: were it carried out again, that would be seen.
    before = judge(run.dataset, 0, "finish", lambda _: "fail", reasons={"fail": "by hand"})
    assert missing(run, verifier) == ["format"]
    verify_shard.fn(run, verifier, 0, Ticker("verify", 2, "samples"))
    assert run.dataset.read_manifest(before.relative) == before
    assert verdicts(run.dataset, "finish") == [("fail", "by hand")] * 2
    assert verdicts(run.dataset, "format") == [("pass", "full")] * 2
    assert [a.rows for a in read_attempts(run.dataset)] == [2]


def test_a_shard_that_was_made_again_loses_its_verdicts(run: Run, verifier: Verifier) -> None:
    ticker = Ticker("verify", 4, "samples")
    verify_shard.fn(run, verifier, 0, ticker)
    generate(run.dataset, 0, text=lambda _: "<think>1 + 1", finish=lambda _: "length")
    assert missing(run, verifier) == ["finish", "format"]
    verify_shard.fn(run, verifier, 0, ticker)
    assert verdicts(run.dataset, "finish") == [("fail", "truncated")] * 2
    assert verdicts(run.dataset, "format") == [("fail", "unclosed_think")] * 2
    assert missing(run, verifier) == []


def test_a_check_of_a_whole_shard_sees_what_was_said_before_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mended").touch()
    with patch.dict(os.environ, {MENDED: str(tmp_path / "mended")}), VerifierPool([FLAKY], workers=1) as pool:
        echo = EchoCheck()
        verifier = Verifier(pool, [echo])
        assert verifier.versions == {"flaky": "1", "echo": "1"}
        verify_shard.fn(run, verifier, 0, Ticker("verify", 2, "samples"))
        assert verdicts(run.dataset, "echo") == verdicts(run.dataset, "flaky")
        assert [a.rows for a in read_attempts(run.dataset)] == [4]
        # Its file alone is missing: the pool's verdicts are read back, not made again.
        run.dataset.remove_shard(verdict_path("echo", "1", 0))
        verify_shard.fn(run, verifier, 0, Ticker("verify", 2, "samples"))
    assert verdicts(run.dataset, "echo") == verdicts(run.dataset, "flaky")
    assert [a.rows for a in read_attempts(run.dataset)] == [4, 2]
    assert len(echo.shown) == 2


def test_what_the_disk_refuses_fails_the_attempt_and_keeps_what_was_written(run: Run, verifier: Verifier) -> None:
    in_the_way = run.dataset.file("verdicts/format")
    in_the_way.parent.mkdir()
    in_the_way.touch()
    with pytest.raises(StoreError):
        verify_shard.fn(run, verifier, 0, Ticker("verify", 2, "samples"))
    assert missing(run, verifier) == ["format"]
    in_the_way.unlink()
    verify_shard.fn(run, verifier, 0, Ticker("verify", 2, "samples"))
    assert missing(run, verifier) == []
    assert [(a.state, a.rows) for a in read_attempts(run.dataset)] == [("failed", None), ("completed", 2)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 1 MiB, small enough to fill."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # an error's traceback may hold a file open


@pytest.mark.parametrize("pages", range(7))
def test_a_full_disk_leaves_nothing_half_written(pages: int, disk: Path, verifier: Verifier) -> None:
    """With so many pages left: none for the attempt's record, none for a file of verdicts, for its manifest, ….

    Once there is room, what is missing is written, and nothing else is.
    """
    dataset = make_dataset(disk / "data", problems=2)
    for shard in plan(dataset, replicas=300, shard_size=300):
        generate(dataset, shard, text=lambda _: WELL_FORMED)
    plan_verify(dataset, verifier.versions)
    ticker = Ticker("verify", 600, "samples")
    verify_shard.fn(Run(dataset, "run-1"), verifier, 0, ticker)

    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - pages * 4096))
    with pytest.raises(StoreError, match=r"the disk is full: cannot write .*; free some space") as caught:
        verify_shard.fn(Run(dataset, "run-1"), verifier, 1, ticker)
    assert not caught.value.retryable
    files = {file.relative: dataset.read_manifest(file.relative) for file in verdict_files(dataset)}
    assert all(dataset.verify_checksum(relative) for relative in files)
    assert [(work.shard, len(work.checks)) for work in pending_verify(dataset)] == [(1, 4 - len(files))]
    # Where the end finds no room, the attempt stands as it began: `crashed`, once its run has let go of the dataset.
    states = [(attempt.shard, attempt.state) for attempt in read_attempts(dataset)]
    assert states in [[(0, "completed"), *more] for more in ([], [(1, "running")], [(1, "failed")])]
    assert len(states) == 1 + (pages > 0)

    filler.unlink()
    with dataset.lock("run-2"):  # sweeps up
        verify_shard.fn(Run(dataset, "run-2"), verifier, 1, ticker)
    assert pending_verify(dataset) == []
    assert {relative: dataset.read_manifest(relative) for relative in files} == files
    assert verdicts(dataset, "finish", 1) == [("pass", "stopped")] * 300
    assert verdicts(dataset, "format", 1) == [("pass", "full")] * 300
    last = read_attempts(dataset)[-1]
    assert (last.run_id, last.state, last.rows) == ("run-2", "completed", 300 * (4 - len(files)))
    assert list(dataset.file(".scratch").iterdir()) == []


def test_a_worker_killed_in_the_middle_of_a_shard_changes_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MENDED, str(tmp_path))
    monkeypatch.setenv(SLOW, "0.002")
    tables = []
    for killed in (False, True):
        dataset = make_dataset(tmp_path / f"killed {killed}", problems=10)
        plan(dataset, replicas=16, shard_size=160)
        generate(dataset, 0)
        with VerifierPool(["finish", FLAKY], workers=1) as pool:
            killer = threading.Thread(target=kill_once, args=(pool, 40))
            if killed:
                killer.start()
            verify_shard.fn(Run(dataset, "run"), Verifier(pool), 0, Ticker("verify", 160, "samples"))
            if killed:
                killer.join()
        tables.append([dataset.read_table(verdict_path(c, "1", 0)).drop_columns(["milliseconds"]) for c in CHECKS])
    assert tables[0] == tables[1]
    assert tables[0][1].column("verdict").unique().to_pylist() == ["pass"]


def kill_once(pool: VerifierPool, position: int) -> None:
    """Ends the pool's one worker by SIGKILL once it is past this verdict of a chunk."""
    slot = pool._slots[0]
    while slot._whereabouts.position < position:
        time.sleep(0.001)
    slot.kill()
