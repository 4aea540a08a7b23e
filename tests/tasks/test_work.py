from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.errors import StoreError
from tasks.attempts import attempt
from tasks.store import Dataset, sample_path
from tasks.work import (
    GENERATE,
    VERIFY,
    VerifyWork,
    current_checks,
    done_shards,
    failed_shards,
    pending_generate,
    pending_verify,
    plan_path,
    plan_rerun,
    plan_verify,
    planned_shards,
    read_plan,
    supersedes,
    train_problem_ids,
    verdict_files,
)
from tests.tasks.small_dataset import generate, judge, make_dataset, plan, problem, wanted, write_problems


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three problems; with two replicas and two samples a shard: shards 0, 1, 2, one per problem."""
    return make_dataset(tmp_path / "data")


def planned_ids(dataset: Dataset) -> list[str]:
    return [row.sample_id for shard in planned_shards(dataset) for row in read_plan(dataset, shard)]


def contents(dataset: Dataset) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in dataset.path.rglob("*") if p.is_file() and ".lock" not in p.name}


def test_every_train_problem_gets_its_replicas_in_order(dataset: Dataset) -> None:
    write_problems(dataset, [problem(7), problem(8, split="held_out")], "000001")

    assert plan(dataset) == [0, 1, 2, 3]
    rows = [row for shard in range(4) for row in read_plan(dataset, shard)]
    trained = [problem(number).problem_id for number in (0, 1, 2, 7)]
    assert train_problem_ids(dataset) == trained
    assert [(row.problem_id, row.replica) for row in rows] == [(p, r) for p in trained for r in (0, 1)]
    assert pending_generate(dataset) == [0, 1, 2, 3]


def test_planning_again_changes_no_file(dataset: Dataset) -> None:
    plan(dataset)
    generate(dataset, 1)
    before = contents(dataset)

    assert plan(dataset) == []
    assert plan(dataset, shard_size=5) == []  # another layout covers the same ids
    assert contents(dataset) == before
    assert pending_generate(dataset) == [0, 2]


def test_more_problems_and_replicas_add_shards_and_touch_no_other(dataset: Dataset) -> None:
    for shard in plan(dataset):
        generate(dataset, shard)
    before = contents(dataset)

    write_problems(dataset, [problem(9)], "000001")
    assert plan(dataset, replicas=3, shard_size=10) == [3]

    rows = read_plan(dataset, 3)
    assert [row.replica for row in rows] == [2, 2, 2, 0, 1, 2]
    assert not supersedes(planned_shards(dataset)[3])
    assert before.items() <= contents(dataset).items()


def test_a_raised_limit_plans_only_what_the_old_one_cut(dataset: Dataset) -> None:
    plan(dataset, max_tokens=64)
    for shard in (0, 1):
        generate(dataset, shard, finish=lambda row: "length" if row.replica == 1 else "stop")
    cut = {row.sample_id: row for shard in (0, 1) for row in read_plan(dataset, shard) if row.replica == 1}

    assert plan(dataset, max_tokens=128, shard_size=10) == [3]
    rows = read_plan(dataset, 3)
    assert {row.sample_id for row in rows} == cut.keys()
    assert {row.max_tokens for row in rows} == {128}
    assert all(row.seed == cut[row.sample_id].seed for row in rows)
    assert supersedes(planned_shards(dataset)[3])
    # Shard 2 was waiting: it is made once, at the new limit.
    assert {row.max_tokens for row in read_plan(dataset, 2)} == {128}
    assert {row.max_tokens for row in read_plan(dataset, 0)} == {64}

    assert plan(dataset, max_tokens=128) == []
    generate(dataset, 3, finish=lambda _: "length")
    assert plan(dataset, max_tokens=128) == []
    assert plan(dataset, max_tokens=64) == []
    assert plan(dataset, max_tokens=256, shard_size=10) == [4]
    assert {row.sample_id for row in read_plan(dataset, 4)} == cut.keys()


def test_waiting_plans_drop_what_the_recipe_no_longer_wants(dataset: Dataset) -> None:
    plan(dataset, replicas=4, shard_size=4)
    generate(dataset, 0)

    assert plan(dataset, replicas=1, shard_size=4) == []
    assert [len(read_plan(dataset, shard)) for shard in (0, 1, 2)] == [4, 1, 1]
    assert planned_ids(dataset)[4:] == [row.sample_id for row in wanted(dataset, replicas=1)[1:]]


def test_a_shard_is_done_only_with_the_ids_that_were_planned(dataset: Dataset) -> None:
    plan(dataset)
    generate(dataset, 0)
    assert list(done_shards(dataset)) == [0]
    for suffix in (".parquet", ".json"):
        source = dataset.file(sample_path(0)).with_suffix(suffix)
        dataset.file(sample_path(1)).with_suffix(suffix).write_bytes(source.read_bytes())
    assert list(done_shards(dataset)) == [0]
    assert pending_generate(dataset) == [1, 2]


def test_samples_whose_plan_is_lost_are_not_made_again(dataset: Dataset) -> None:
    plan(dataset)
    generate(dataset, 0)
    dataset.remove_shard(plan_path(0))

    assert plan(dataset) == []
    assert list(done_shards(dataset)) == [0]


def test_rerun_plans_those_rows_with_new_seeds(dataset: Dataset) -> None:
    plan(dataset)
    generate(dataset, 0)
    generate(dataset, 1)
    first, second = read_plan(dataset, 0)[0], read_plan(dataset, 1)[1]
    before = contents(dataset)

    again = [first.sample_id, second.sample_id]
    assert plan_rerun(dataset, again, shard_size=10, fingerprint="g", max_tokens=99) == [3]
    rows = read_plan(dataset, 3)
    assert [row.sample_id for row in rows] == again
    assert [row.max_tokens for row in rows] == [99, 99]
    assert rows[0].seed != first.seed
    assert before.items() <= contents(dataset).items()
    # Still waiting: neither asking again nor a run plans them once more, and the larger limit stays.
    assert plan_rerun(dataset, again, shard_size=10, fingerprint="g") == [3]
    assert plan(dataset) == []
    assert read_plan(dataset, 3) == rows

    generate(dataset, 3)
    assert plan_rerun(dataset, again[:1], shard_size=10, fingerprint="g") == [4]
    assert read_plan(dataset, 4)[0].seed not in (first.seed, rows[0].seed)
    # One sample waits in shard 4, the other is done in shard 3 and is planned anew.
    assert plan_rerun(dataset, again, shard_size=10, fingerprint="g") == [4, 5]
    assert [row.sample_id for row in read_plan(dataset, 5)] == again[1:]
    with pytest.raises(StoreError, match="has no sample nobody"):
        plan_rerun(dataset, ["nobody"], shard_size=10, fingerprint="g")


def test_verdicts_are_wanted_per_check_and_version_and_tied_to_their_samples(dataset: Dataset) -> None:
    plan(dataset)
    plan_verify(dataset, {"format": "1", "math": "1"})
    assert pending_verify(dataset) == []  # nothing is generated yet
    generate(dataset, 0)
    assert pending_verify(dataset) == [VerifyWork(0, (("format", "1"), ("math", "1")))]

    judge(dataset, 0, "format")
    assert pending_verify(dataset) == [VerifyWork(0, (("math", "1"),))]
    judge(dataset, 0, "math")
    assert pending_verify(dataset) == []

    plan_verify(dataset, {"format": "1", "math": "2"})
    assert current_checks(dataset) == {"format": "1", "math": "2"}
    assert pending_verify(dataset) == [VerifyWork(0, (("math", "2"),))]
    assert {(f.check, f.version): f.current for f in verdict_files(dataset)} == {
        ("format", "1"): True,
        ("math", "1"): True,  # counts until version 2 has judged this shard
    }
    judge(dataset, 0, "math", version="2")
    assert {(f.check, f.version): f.current for f in verdict_files(dataset)}[("math", "1")] is False

    generate(dataset, 0, text=lambda _: "other samples in the same shard")
    assert verdict_files(dataset) == []
    assert pending_verify(dataset) == [VerifyWork(0, (("format", "1"), ("math", "2")))]


def test_failed_shards_are_those_to_be_done_whose_last_attempt_failed(dataset: Dataset) -> None:
    def fail(stage: str, shard: int) -> None:
        with pytest.raises(StoreError), attempt(dataset, stage, shard, "run"):
            raise StoreError("no")

    plan(dataset)
    plan_verify(dataset, {"math": "1"})
    fail(GENERATE, 0)
    fail(GENERATE, 1)
    with attempt(dataset, GENERATE, 1, "run"):
        generate(dataset, 1)
    fail(VERIFY, 1)
    fail(VERIFY, 2)

    assert failed_shards(dataset, GENERATE) == [0]
    assert failed_shards(dataset, VERIFY) == [1]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([64, 128]), st.integers(1, 5)), min_size=1, max_size=4)
)
def test_whatever_the_recipe_did_no_wanted_sample_is_missing_or_made_twice(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, int]]
) -> None:
    dataset = make_dataset(tmp_path_factory.mktemp("data"), problems=2)
    for replicas, limit, shard_size in steps:
        plan(dataset, replicas, limit, shard_size)
        ids = planned_ids(dataset)
        base = [i for n, m in planned_shards(dataset).items() if not supersedes(m) for i in _ids(dataset, n)]
        assert {row.sample_id for row in wanted(dataset, replicas)} <= set(ids)
        assert len(base) == len(set(base))
        for shard in pending_generate(dataset)[:1]:
            generate(dataset, shard, finish=lambda row: "length" if row.replica % 2 else "stop")


def _ids(dataset: Dataset, shard: int) -> list[str]:
    return [row.sample_id for row in read_plan(dataset, shard)]
