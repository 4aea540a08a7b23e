"""Rows whose verdict is an error are verified again; every other row and file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from model.records import PlannedSample, Problem, problem_id
from model.rewards.workers.pool import VerifierPool
from tasks.attempts import read_attempts
from tasks.progress import Ticker
from tasks.redo_errors import redo_errors, shards_with_errors
from tasks.run import Run
from tasks.store import Dataset, verdict_path
from tasks.verify import Verifier, pending_after_all, verify_after_all, verify_shard
from tasks.work import pending_verify, plan_verify
from tests.tasks.flaky import MENDED, TROUBLE, EchoCheck, troubled
from tests.tasks.small_dataset import generate, make_dataset, plan, problem, write_problems

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


def rows(run: Run, check: str, shard: int, version: str = "1") -> list[dict[str, object]]:
    table = run.dataset.read_table(verdict_path(check, version, shard))
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
    with VerifierPool(["finish", FLAKY], workers=1, timeout_seconds=0.8) as pool:
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


# --- the check `code`, whose sandbox really fails -----------------------------------------------------------

SLEEPER = "import time\nn = int(input())\ntime.sleep(n - 1)\nprint(n + 1)"  # for a second, in shard 1
# By replica, each with its verdict.
PROGRAMS = {SLEEPER: "passed", "print(int(input()) + 1)": "passed", "print(0)": "wrong_answer", "": "no_program"}
SOUND = [("unscorable", "other_domain")] * 4 + [
    ("pass" if reason == "passed" else "fail", reason) for reason in PROGRAMS.values()
]
FAILED = ("error", "sandbox_failed")
CODE_PLACE = 2  # of `code` among the checks below


@pytest.fixture
def programs(tmp_path: Path) -> Run:
    """Shards 0 and 1, each with four answers to a sum and then the four programs for a problem of its own."""
    dataset = Dataset.create(tmp_path / "programs")
    problems: list[Problem] = []
    for number in (1, 2):
        tests = json.dumps({"mode": "stdin", "cases": [{"input": str(number), "output": str(number + 1)}]})
        coded = Problem(problem_id("code", "+ 1", None, tests), "code", "sums", "+ 1", tests=tests)
        problems += [problem(number), coded]
    write_problems(dataset, problems)
    coded_ids = {each.problem_id for each in problems if each.domain == "code"}

    def text(row: PlannedSample) -> str:
        program = list(PROGRAMS)[row.replica] if row.problem_id in coded_ids else ""
        return f"<think>so</think><answer>```python\n{program}\n```</answer>"

    for shard in plan(dataset, replicas=4, shard_size=8):
        generate(dataset, shard, text=text)
    return Run(dataset, "run-1")


def verifying_programs() -> VerifierPool:
    return VerifierPool(["finish", "format", "code"], workers=1)


def said(run: Run, verifier: Verifier, shard: int) -> list[tuple[object, object]]:
    """Verdict and reason of the check `code`."""
    return [(row["verdict"], row["reason"]) for row in rows(run, "code", shard, verifier.versions["code"])]


def assert_redone_alone(run: Run, verifier: Verifier) -> None:
    """The errors, all of them in shard 1, become what they should be; every other row and file stays."""
    version, files = verifier.versions["code"], checksums(run)
    before = rows(run, "code", 1, version)
    errors = sum(row["verdict"] == "error" for row in before)
    assert shards_with_errors(run.dataset, verifier) == {1: errors}
    assert redo_errors.fn(run, verifier, 1, ticker()) == errors
    assert shards_with_errors(run.dataset, verifier) == {}
    assert said(run, verifier, 1) == SOUND
    after = rows(run, "code", 1, version)
    assert all(new == old for new, old in zip(after, before, strict=True) if old["verdict"] != "error")
    verdicts = run.dataset.file(verdict_path("code", version, 1))
    changed = {path for path, digest in checksums(run).items() if files.get(path) != digest}
    assert changed == {str(verdicts), str(verdicts.with_suffix(".json"))}
    assert [(a.shard, a.state) for a in read_attempts(run.dataset)] == [(n, "completed") for n in (0, 1, 1)]


def test_a_zygote_that_is_killed_twice_costs_one_row_which_is_redone_alone(programs: Run) -> None:
    with verifying_programs() as pool:
        verifier = Verifier(pool)
        verify_shard.fn(programs, verifier, 0, ticker())
        sleeper = 4 * len(pool.checks) + CODE_PLACE
        killer = threading.Thread(target=kill_twice, args=(pool, sleeper))
        killer.start()
        verify_shard.fn(programs, verifier, 1, ticker())
        killer.join()
        assert said(programs, verifier, 0) == SOUND
        assert said(programs, verifier, 1) == [*SOUND[:4], FAILED, *SOUND[5:]]
        assert_redone_alone(programs, verifier)


def kill_twice(pool: VerifierPool, position: int) -> None:
    """Ends the worker's zygotes by SIGKILL while it is at this verdict, and the one that is started in their place."""
    slot = pool._slots[0]
    while slot._whereabouts.position != position:
        time.sleep(0.001)
    first = children_of(slot)
    for zygote in first:
        os.kill(zygote, signal.SIGKILL)
    while not (second := children_of(slot) - first):
        time.sleep(0.001)
    os.kill(second.pop(), signal.SIGKILL)


def children_of(slot: object) -> set[int]:
    worker = slot._process.pid  # type: ignore[attr-defined]
    return {int(pid) for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split()}


@pytest.mark.parametrize(
    ("kind", "most"), [(resource.RLIMIT_NOFILE, 3), (resource.RLIMIT_FSIZE, 0)], ids=["no descriptor", "no room"]
)
def test_a_sandbox_without_its_memory_files_costs_the_programs_rows_which_are_redone_alone(
    kind: int, most: int, programs: Run
) -> None:
    """The worker's own limits are lowered while it lives, and raised again."""
    with verifying_programs() as pool:
        verifier = Verifier(pool)
        verify_shard.fn(programs, verifier, 0, ticker())
        process = pool._slots[0]._process
        assert process is not None
        soft, hard = resource.prlimit(process.pid, kind)
        resource.prlimit(process.pid, kind, (most, hard))
        verify_shard.fn(programs, verifier, 1, ticker())
        resource.prlimit(process.pid, kind, (soft, hard))
        assert pool._slots[0]._process is process
        assert said(programs, verifier, 0) == SOUND
        assert said(programs, verifier, 1) == [*SOUND[:4], *[FAILED] * 4]
        assert_redone_alone(programs, verifier)
