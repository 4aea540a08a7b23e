"""Verdict files on problems: when they hold, and who is left out because of them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from model.records import Problem, ProblemVerdict, Status
from tasks.problem_verdicts import excluded, stale, write_problem_verdicts
from tasks.store import Dataset
from tasks.work import done_shards, pending_generate, train_problem_ids
from tests.tasks.small_dataset import generate, make_dataset, plan, problem, write_problems


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three problems to train on and a held-out one."""
    dataset = make_dataset(tmp_path / "data")
    write_problems(dataset, [problem(9, split="held_out")], "000001")
    return dataset


def judge_problems(dataset: Dataset, check: str, failing: Collection[int], version: str = "1") -> None:
    def said(one: Problem, number: int) -> ProblemVerdict:
        status = Status.FAIL if number in failing else Status.PASS
        return ProblemVerdict(one.problem_id, check, version, status, None, f"{check} says {status}")

    rows = [said(problem(number, "held_out" if number == 9 else "train"), number) for number in (0, 1, 2, 9)]
    write_problem_verdicts(dataset, check, version, rows, 0.5)


def test_who_fails_is_left_out_by_the_first_check_in_order(dataset: Dataset) -> None:
    judge_problems(dataset, "duplicate", {0, 1, 9})
    judge_problems(dataset, "audit", {1})
    first, second = problem(0).problem_id, problem(1).problem_id
    assert excluded(dataset, ["audit", "duplicate", "contamination"]) == {first: "duplicate", second: "audit"}
    assert excluded(dataset, ["duplicate", "audit"]) == {first: "duplicate", second: "duplicate"}
    assert excluded(dataset, ["audit"]) == {second: "audit"}
    assert excluded(dataset, []) == {}


def test_a_check_that_never_ran_leaves_nobody_out(dataset: Dataset) -> None:
    assert excluded(dataset, ["audit"]) == {}
    assert len(train_problem_ids(dataset)) == 3


def test_verdicts_are_stale_with_another_version_or_other_problems(dataset: Dataset) -> None:
    assert stale(dataset, "audit", "1")
    judge_problems(dataset, "audit", {1})
    assert not stale(dataset, "audit", "1")
    assert stale(dataset, "audit", "2")
    assert stale(dataset, "duplicate", "1")
    write_problems(dataset, [problem(20)], "000002")
    assert stale(dataset, "audit", "1")
    assert list(excluded(dataset, ["audit"])) == [problem(1).problem_id]  # until it is judged again


def test_a_new_file_replaces_the_old_one_whole(dataset: Dataset) -> None:
    judge_problems(dataset, "audit", {0})
    judge_problems(dataset, "audit", {2}, version="2")
    assert list(excluded(dataset, ["audit"])) == [problem(2).problem_id]


def test_the_excluded_are_not_planned_and_what_was_made_stays(dataset: Dataset) -> None:
    assert plan(dataset) == [0, 1, 2]
    generate(dataset, 0)
    judge_problems(dataset, "duplicate", {0, 1})
    assert train_problem_ids(dataset) == [problem(2).problem_id]
    assert train_problem_ids(dataset, ["audit"]) == [problem(number).problem_id for number in range(3)]
    assert plan(dataset) == []
    assert pending_generate(dataset) == [2]  # of the problem that is left; the plan of problem 1 is gone
    assert list(done_shards(dataset)) == [0]
