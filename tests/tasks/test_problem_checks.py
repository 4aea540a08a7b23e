"""Checks on problems as a run carries them out: judged once, judged anew when something has changed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from model.errors import CheckError
from model.records import Problem, ProblemVerdict, from_table, problem_id
from model.rewards.settings import ContaminationSettings, DuplicateSettings
from tasks.problem_checks import check_problems
from tasks.problem_verdicts import PROBLEM_CHECKS, excluded
from tasks.run import Run
from tasks.store import Dataset
from tests.tasks.small_dataset import write_problems

STORY = "Tom has 12 apples, buys 7 more at the market and then gives 5 of them to his sister. How many are left to him?"
PROOF = "Show that every bounded sequence of real numbers has a subsequence which converges to some real number."


def made(prompt: str, gold: str | None = None, split: str = "train") -> Problem:
    return Problem(problem_id("math", prompt, gold), "math", "made", prompt, gold, split=split)


FIRST, TWIN, OTHER = made(STORY, "14"), made(STORY + " Explain.", "14"), made(STORY.replace("7", "9"))
HELD_OUT = made(PROOF, split="held_out")
LEAK = made("Here is a task that I like. " + PROOF + " Thank you.")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three problems to train on, of which one is a twin, in one file, and a held-out one with its leak in another."""
    dataset = Dataset.create(tmp_path / "data")
    write_problems(dataset, [FIRST, TWIN, OTHER])
    write_problems(dataset, [LEAK, HELD_OUT], "000001")
    return Run(dataset, "run-1")


def check(run: Run, *files: str, threshold: float = 0.8) -> dict[str, int]:
    settings = DuplicateSettings(threshold=threshold), ContaminationSettings(files=files)
    return check_problems.fn(run, PROBLEM_CHECKS, *settings)


def verdicts(run: Run, name: str) -> dict[str, ProblemVerdict]:
    rows = from_table(run.dataset.read_table(f"problem_verdicts/{name}.parquet"), ProblemVerdict)
    return {row.problem_id: row for row in rows}


def test_a_twin_is_excluded_and_every_problem_has_a_verdict(run: Run) -> None:
    assert check(run) == {"duplicate": 1}
    found = verdicts(run, "duplicate")
    assert {row.problem_id: row.reason for row in found.values()} == {
        FIRST.problem_id: "unlike",
        TWIN.problem_id: "near_duplicate",
        OTHER.problem_id: "unlike",
        LEAK.problem_id: "unlike",  # most of it is something else
        HELD_OUT.problem_id: "unlike",
    }
    twin = found[TWIN.problem_id]
    assert twin.detail == f"{FIRST.problem_id} (0.96)"  # 23 shingles of 24
    assert twin.score == pytest.approx(1 / 24)
    assert excluded(run.dataset, PROBLEM_CHECKS) == {TWIN.problem_id: "duplicate"}


def test_problems_are_judged_again_only_when_something_changed(run: Run) -> None:
    check(run)
    file = run.dataset.file("problem_verdicts/duplicate.parquet")
    written = file.stat().st_mtime_ns
    check(run)
    assert file.stat().st_mtime_ns == written
    assert check(run, threshold=0.99) == {}
    write_problems(run.dataset, [made(STORY + "  ", "15")], "000002")
    assert check(run, threshold=0.99) == {"duplicate": 1}
    assert len(verdicts(run, "duplicate")) == 6


def test_the_line_says_what_is_excluded_and_where_to_look(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="stillhouse"):
        check(run)
    line = next(record.message for record in caplog.records if "excluded" in record.message)
    assert line.startswith("problems: 1 excluded by duplicate (near_duplicate 1); see `select * from problem_verdicts")


def test_only_the_wanted_checks_run(run: Run) -> None:
    settings = DuplicateSettings(), ContaminationSettings(files=("builtin:held_out",))
    assert check_problems.fn(run, ("audit",), *settings) == {}
    assert not run.dataset.file("problem_verdicts").exists()


def test_held_out_problems_are_a_benchmark_for_the_others_and_not_for_themselves(run: Run) -> None:
    assert check(run, "builtin:held_out") == {"duplicate": 1, "contamination": 1}
    found = verdicts(run, "contamination")
    assert found[LEAK.problem_id].verdict == "fail"
    assert found[LEAK.problem_id].detail is not None
    assert HELD_OUT.problem_id in found[LEAK.problem_id].detail
    assert (found[HELD_OUT.problem_id].verdict, found[HELD_OUT.problem_id].reason) == ("unscorable", "held_out")
    assert found[OTHER.problem_id].verdict == "pass"


def test_a_held_out_problem_that_a_benchmark_has_is_told_and_kept(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "benchmark.jsonl"
    file.write_text(json.dumps({"question": PROOF, "solution": "Halve the interval."}) + "\n")
    assert check(run, str(file)) == {"duplicate": 1, "contamination": 1}
    assert verdicts(run, "contamination")[HELD_OUT.problem_id].verdict == "fail"
    assert excluded(run.dataset, ["contamination"]) == {LEAK.problem_id: "contamination"}


def test_another_benchmark_is_read_and_none_withdraws_the_verdicts(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "benchmark.jsonl"
    file.write_text(json.dumps({"question": PROOF, "solution": ""}) + "\n")
    check(run, str(file))
    file.write_text(json.dumps({"question": STORY, "solution": ""}) + "\n")
    check(run, str(file))
    assert set(excluded(run.dataset, ["contamination"])) >= {FIRST.problem_id}
    assert LEAK.problem_id not in excluded(run.dataset, ["contamination"])
    check(run)
    assert excluded(run.dataset, ["contamination"]) == {}


def test_a_missing_benchmark_is_an_error_and_no_verdict(run: Run) -> None:
    with pytest.raises(CheckError, match=r"nowhere\.jsonl"):
        check(run, "nowhere.jsonl")
    assert not run.dataset.file("problem_verdicts/contamination.parquet").exists()
