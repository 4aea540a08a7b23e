"""The check `duplicate` on shards: who is compared with whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model.records import PlannedSample
from model.rewards.settings import DuplicateSettings
from model.rewards.workers import comparing
from tasks.duplicates import DuplicateCheck
from tasks.inputs import scored_rows
from tasks.shard_checks import ShardCheck, ShardWork
from tasks.store import Dataset
from tasks.work import plan_rerun, read_plan
from tests.tasks.small_dataset import generate, make_dataset, plan, problem

CHECK: ShardCheck = DuplicateCheck(DuplicateSettings())


def judged(dataset: Dataset, shard: int, check: ShardCheck = CHECK) -> dict[tuple[str, int], tuple[str, str | None]]:
    """Reason and detail by (problem, replica)."""
    items = list(scored_rows(dataset, shard))
    timed = check.judge_shard(ShardWork(dataset, shard, items, {}))
    assert len(timed) == len(items)
    assert all(milliseconds >= 0 for _, milliseconds in timed)
    rows = {row.sample_id: row for row in read_plan(dataset, shard)}
    planned = [rows[item.sample_id] for item in items]
    words = [(word.reason, word.detail) for word, _ in timed]
    return {(row.problem_id, row.replica): said for row, said in zip(planned, words, strict=True)}


def sample(dataset: Dataset, shard: int, problem_number: int, replica: int) -> str:
    wanted = (problem(problem_number).problem_id, replica)
    return next(row.sample_id for row in read_plan(dataset, shard) if (row.problem_id, row.replica) == wanted)


def says(texts: dict[int, str]) -> Callable[[PlannedSample], str]:
    """A text by replica, the same for every problem."""
    return lambda row: texts[row.replica]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two problems with two samples each in shard 0, and two more each in shard 1."""
    dataset = make_dataset(tmp_path / "data", problems=2)
    plan(dataset, replicas=2, shard_size=4)
    generate(dataset, 0, says({0: "three and four are seven", 1: "count from three by four"}))
    plan(dataset, replicas=4, shard_size=4)
    generate(dataset, 1, says({2: "three and four  are seven", 3: "it is seven I believe"}))
    return dataset


def test_samples_of_one_problem_are_compared_and_of_another_never(dataset: Dataset) -> None:
    first, second = problem(0).problem_id, problem(1).problem_id
    found = judged(dataset, 0)
    assert {key: reason for key, (reason, _) in found.items()} == {
        (first, 0): "first_made",
        (first, 1): "unlike",
        (second, 0): "first_made",
        (second, 1): "unlike",
    }


def test_twins_are_found_in_earlier_shards_and_not_in_later_ones(dataset: Dataset) -> None:
    found = judged(dataset, 1)
    for number in (0, 1):
        twin = sample(dataset, 0, number, 0)
        assert found[problem(number).problem_id, 2] == ("same_text", f"{twin} (1.00)")
        assert found[problem(number).problem_id, 3][0] == "unlike"
    assert {reason for reason, _ in judged(dataset, 0).values()} == {"first_made", "unlike"}


def test_processes_change_nothing(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "_CHARACTERS", 1)
    check = DuplicateCheck(DuplicateSettings(), workers=2)
    assert [judged(dataset, shard, check) for shard in (0, 1)] == [judged(dataset, shard) for shard in (0, 1)]


def test_a_row_that_a_newer_one_stands_in_for_is_not_compared_with(dataset: Dataset) -> None:
    """Replica 0 of problem 0 is made again: its old text is nobody's twin, its new one is the twin of replica 1."""
    check = DuplicateCheck(DuplicateSettings())
    plan_rerun(dataset, [sample(dataset, 0, 0, 0)], shard_size=4, fingerprint="g")
    assert judged(dataset, 1, check)[problem(0).problem_id, 2][0] == "same_text"  # not made yet
    generate(dataset, 2, says({0: "count from three by  four"}))
    assert judged(dataset, 1, check)[problem(0).problem_id, 2][0] == "unlike"
    again = judged(dataset, 2, check)
    assert again == {(problem(0).problem_id, 0): ("same_text", f"{sample(dataset, 0, 0, 1)} (1.00)")}


def test_it_is_a_check_of_all_shards_with_a_version_of_its_settings() -> None:
    assert (CHECK.name, CHECK.version, CHECK.after_all) == ("duplicate", "1", True)
    assert DuplicateCheck(DuplicateSettings(threshold=0.9)).version != "1"
