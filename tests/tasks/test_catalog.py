from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import RecipeError, StoreError
from model.records import (
    EVALUATION_SCHEMA,
    PROBLEM_SCHEMA,
    SAMPLE_SCHEMA,
    VERDICT_SCHEMA,
    Evaluation,
    PlannedSample,
    to_table,
)
from tasks import catalog
from tasks.attempts import Attempt, attempt
from tasks.catalog import AcceptRule, QueryError, connect, explain_sample, run_sql
from tasks.store import Dataset, sample_path
from tasks.work import plan_rerun, plan_verify, read_plan
from tests.tasks.small_dataset import generate, judge, make_dataset, plan, problem

MATH = AcceptRule(require=("math",))


def ask(con: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    table = run_sql(con, query)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def replica_in(*replicas: int) -> Callable[[PlannedSample], str]:
    return lambda row: "pass" if row.replica in replicas else "fail"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two problems with four samples each, a shard per problem; all generated, texts `t<replica>`."""
    dataset = make_dataset(tmp_path / "data", problems=2)
    for shard in plan(dataset, replicas=4, shard_size=4):
        generate(dataset, shard, text=lambda row: f"t{row.replica}")
    return dataset


# ---- what is there


def test_an_empty_dataset_has_every_view_with_its_types(tmp_path: Path) -> None:
    con = connect(Dataset.create(tmp_path / "data"))
    expected = {"problems": PROBLEM_SCHEMA, "samples": SAMPLE_SCHEMA, "verdicts": VERDICT_SCHEMA}
    for view, schema in (expected | {"evaluations": EVALUATION_SCHEMA, "accepted": SAMPLE_SCHEMA}).items():
        table = run_sql(con, f"from {view}")
        assert table.num_rows == 0
        assert set(schema.names) <= set(table.column_names)
        assert all(table.schema.field(name).type == schema.field(name).type for name in schema.names)
    assert "check" in run_sql(con, "from rejected").column_names
    for view in ("shards", "attempts", "pass_rates", "training"):
        assert run_sql(con, f"from {view}").num_rows == 0
    assert ask(con, "select samples, lost from funnel where reason is null")[0] == (0, 0)
    with pytest.raises(StoreError, match="holds no dataset"):
        connect(tmp_path)


def test_a_file_without_manifest_is_in_no_view(dataset: Dataset) -> None:
    dataset.file(sample_path(1)).with_suffix(".json").unlink()
    con = connect(dataset, MATH)
    assert ask(con, "select distinct shard from samples") == [(0,)]
    assert ask(con, "select shard, state from shards where stage = 'generate' order by 1") == [
        (0, "done"),
        (1, "pending"),
    ]


def test_an_open_connection_reads_on_while_a_shard_is_replaced(dataset: Dataset) -> None:
    con = connect(dataset, MATH)
    assert ask(con, "select count(*), max(length(text)) from samples") == [(8, 2)]
    generate(dataset, 0, text=lambda _: "longer")
    assert ask(con, "select count(*), max(length(text)) from samples") == [(8, 6)]


def test_a_superseding_shard_stands_in_once_it_is_done(dataset: Dataset) -> None:
    for shard in (0, 1):
        judge(dataset, shard, "math")
    old = read_plan(dataset, 0)[2]
    assert plan_rerun(dataset, [old.sample_id], shard_size=9, fingerprint="g") == [2]
    waiting = connect(dataset, MATH)
    assert ask(waiting, "select count(*) from accepted") == [(8,)]

    generate(dataset, 2, text=lambda _: "again")
    con = connect(dataset, MATH)
    assert ask(con, f"select shard, text from samples where sample_id = '{old.sample_id}'") == [(2, "again")]
    assert ask(con, "select count(*), count(distinct sample_id) from samples") == [(8, 8)]
    # The old row's verdict says nothing of the new one.
    assert ask(con, 'select sample_id, "check", reason from rejected') == [
        (old.sample_id, "pending", "no_math_verdict")
    ]
    judge(dataset, 2, "math", verdict=lambda _: "fail")
    con = connect(dataset, MATH)
    assert ask(con, 'select "check", reason from rejected') == [("math", "fail")]
    history = explain_sample(con, old.sample_id)
    assert [row["text"] for row in history.samples] == ["t2", "again"]
    assert [(row["shard"], row["verdict"]) for row in history.verdicts] == [(0, "pass"), (2, "fail")]


# ---- the rule


def test_the_newest_version_of_a_check_counts_and_all_are_kept(dataset: Dataset) -> None:
    for shard in (0, 1):
        judge(dataset, shard, "math", replica_in(0, 1, 2, 3))
    judge(dataset, 0, "math", replica_in(0), version="2")
    con = connect(dataset, MATH)
    assert ask(con, "select shard, count(*) from accepted group by 1 order by 1") == [(0, 1), (1, 4)]
    assert ask(con, "select version, current, count(*) from verdicts where shard = 0 group by all order by 1") == [
        ("1", False, 4),
        ("2", True, 4),
    ]
    plan_verify(dataset, {"math": "1"})  # the recipe goes back to version 1
    assert ask(connect(dataset, MATH), "select count(*) from accepted") == [(8,)]


def test_a_sample_is_lost_at_the_first_check_that_it_does_not_pass(dataset: Dataset) -> None:
    judge(dataset, 0, "format", replica_in(1, 2, 3), reasons={"fail": "no_tags"})
    judge(dataset, 0, "math", replica_in(0, 1), reasons={"fail": "different"})
    judge(dataset, 1, "format", replica_in(0, 1, 2, 3))
    con = connect(dataset, AcceptRule(require=("format", "math")))

    lost = ask(con, 'select shard, replica, "check", check_name, reason, verdict from rejected order by 1, 2')
    assert lost == [
        (0, 0, "format", "format", "no_tags", "fail"),
        (0, 2, "math", "math", "different", "fail"),
        (0, 3, "math", "math", "different", "fail"),
        *((1, replica, "pending", "pending", "no_math_verdict", None) for replica in range(4)),
    ]
    assert ask(con, "select shard, replica from accepted") == [(0, 1)]
    assert ask(con, "select step, samples, lost, reason from funnel") == [
        ("generated", 8, 0, None),
        ("verified", 4, 4, None),
        ("verified", None, 4, "no_math_verdict"),
        ("format", 3, 1, None),
        ("format", None, 1, "no_tags"),
        ("math", 1, 2, None),
        ("math", None, 2, "different"),
        ("accepted", 1, 0, None),
    ]
    assert catalog.reasons(con).to_pylist()[:2] == [
        {"check": "pending", "reason": "no_math_verdict", "samples": 4},
        {"check": "math", "reason": "different", "samples": 2},
    ]


def test_an_error_is_never_a_fail_in_a_pass_rate(dataset: Dataset) -> None:
    outcome = ["pass", "fail", "error", "unscorable"]
    judge(dataset, 0, "math", lambda row: outcome[row.replica])
    judge(dataset, 1, "math", lambda _: "error")
    con = connect(dataset, MATH)

    first, second = (problem(number).problem_id for number in (0, 1))
    rates = {row["problem_id"]: row for row in catalog.pass_rates(con).to_pylist()}
    assert rates[first] == {"problem_id": first, "samples": 4, "passed": 1, "failed": 1, "pass_rate": 0.5}
    assert rates[second] == {"problem_id": second, "samples": 4, "passed": 0, "failed": 0, "pass_rate": None}


def test_band_distinct_and_cap_lose_in_this_order(dataset: Dataset) -> None:
    # Problem 0 is too easy (4 of 4). Problem 1 passes 3 of 4: replicas 0 and 1 say the same, the cap is one.
    generate(dataset, 1, text=lambda row: "same" if row.replica < 2 else "other")
    judge(dataset, 0, "math")
    judge(dataset, 1, "math", replica_in(0, 1, 2))
    con = connect(dataset, AcceptRule(("math",), pass_rate=(0.1, 0.8), max_per_problem=1, distinct=True))

    assert ask(con, 'select shard, replica, "check", reason from rejected order by 1, 2') == [
        *((0, replica, "pass_rate", "above_band") for replica in range(4)),
        (1, 1, "distinct", "same_text"),
        (1, 2, "cap", "over_cap"),
        (1, 3, "math", "fail"),
    ]
    assert ask(con, "select shard, replica from accepted") == [(1, 0)]
    assert ask(con, "select step, samples from funnel where reason is null") == [
        ("generated", 8),
        ("verified", 8),
        ("math", 7),
        ("pass_rate", 3),
        ("distinct", 2),
        ("cap", 1),
        ("accepted", 1),
    ]


def test_where_is_a_condition_over_samples_and_a_bad_one_is_refused(dataset: Dataset) -> None:
    rule = AcceptRule((), where="replica < 2 -- the first two")
    con = connect(dataset, rule)
    assert ask(con, "select distinct replica from accepted order by 1") == [(0,), (1,)]
    assert ask(con, 'select distinct "check", reason from rejected') == [("where", "predicate_false")]
    for predicate in ("replicas < 2", "replica <", "true) ; drop view samples; select (true"):
        with pytest.raises(QueryError) as caught:
            connect(dataset, AcceptRule((), where=predicate))
        assert "\n" not in str(caught.value)
        assert not caught.value.retryable


def test_a_rule_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="band within"):
        AcceptRule(pass_rate=(0.9, 0.1))
    with pytest.raises(RecipeError, match="max_per_problem"):
        AcceptRule(max_per_problem=-1)


def test_the_rule_of_the_last_recipe_is_the_default(dataset: Dataset) -> None:
    dataset.bind({}, {"accept": {"require": [], "max_per_problem": 3, "pass_rate": [0.0, 1.0]}})
    assert ask(connect(dataset), "select count(*) from accepted") == [(6,)]
    assert ask(connect(dataset, AcceptRule(())), "select count(*) from accepted") == [(8,)]


statuses = st.sampled_from(["pass", "pass", "fail", "error", "unscorable", None])
rules = st.builds(
    AcceptRule,
    require=st.sampled_from([(), ("math",), ("format", "math")]),
    pass_rate=st.sampled_from([(0.0, 1.0), (0.3, 0.9), (0.5, 0.5)]),
    max_per_problem=st.integers(0, 2),
    distinct=st.booleans(),
    where=st.sampled_from(["", "replica > 0", "text = 'a'", "answer = 'x'"]),
)


@settings(max_examples=12, deadline=None)
@given(
    verdicts=st.lists(st.tuples(statuses, statuses), min_size=8, max_size=8),
    texts=st.lists(st.sampled_from(["a", "b"]), min_size=8, max_size=8),
    rule=rules,
)
def test_accepted_and_rejected_part_the_samples_and_the_funnel_adds_up(
    tmp_path_factory: pytest.TempPathFactory,
    verdicts: list[tuple[str | None, str | None]],
    texts: list[str],
    rule: AcceptRule,
) -> None:
    dataset = make_dataset(tmp_path_factory.mktemp("data"), problems=2)
    plan(dataset, replicas=4, shard_size=4)
    for shard in (0, 1):
        generate(dataset, shard, text=lambda row, at=4 * shard: texts[at + row.replica])
        for column, check in enumerate(("format", "math")):
            mine = [pair[column] for pair in verdicts[4 * shard : 4 * shard + 4]]
            if None not in mine:
                judge(dataset, shard, check, lambda row, mine=mine: str(mine[row.replica]))
    con = connect(dataset, rule)

    accepted, rejected = (
        ask(con, "select sample_id from accepted"),
        ask(con, "select sample_id from rejected"),
    )
    assert sorted(accepted + rejected) == sorted(ask(con, "select sample_id from samples"))
    assert len(set(accepted)) == len(accepted)
    steps = ask(con, "select samples, lost from funnel where reason is null")
    assert all(before[0] - after[1] == after[0] for before, after in itertools.pairwise(steps))
    assert steps[-1] == (len(accepted), 0)
    by_reason = ask(con, "select sum(lost)::int from funnel where reason is not null")[0][0] or 0
    assert by_reason == len(rejected)
    if rule.distinct:
        assert ask(con, "select 1 from accepted group by problem_id, text having count(*) > 1") == []
    if rule.max_per_problem:
        assert ask(con, f"select 1 from accepted group by problem_id having count(*) > {rule.max_per_problem}") == []


# ---- work and results


def test_shards_tell_pending_running_done_failed_and_crashed_apart(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", problems=5)
    plan(dataset, replicas=1, shard_size=1)
    with attempt(dataset, "generate", 0, "run-1") as record:
        record.rows = generate(dataset, 0).rows
    with pytest.raises(StoreError), attempt(dataset, "generate", 1, "run-1"):
        raise StoreError("the endpoint is gone\nat line 2")
    with pytest.raises(KeyboardInterrupt), attempt(dataset, "generate", 2, "run-1"):
        raise KeyboardInterrupt
    plan_verify(dataset, {"math": "1"})
    killed, mine = attempt(dataset, "generate", 3, "run-1"), attempt(dataset, "generate", 4, "run-2")
    killed.__enter__()
    with dataset.lock("run-2"):
        mine.__enter__()
        con = connect(dataset)
    shards = ask(con, "select shard, state, attempts, rows, error_type, error from shards where stage = 'generate'")
    assert shards == [
        (0, "done", 1, 1, None, None),
        (1, "failed", 1, None, "StoreError", "the endpoint is gone"),
        (2, "pending", 1, None, None, None),
        (3, "crashed", 1, None, None, None),
        (4, "running", 1, None, None, None),
    ]
    assert ask(con, "select state from attempts order by shard") == [
        (state,) for state in ("completed", "failed", "interrupted", "crashed", "running")
    ]
    assert ask(con, "select count(*) from shards where stage = 'verify' and state = 'pending'") == [(5,)]
    assert ask(connect(dataset), "select state from shards where stage = 'generate' and shard = 4") == [("crashed",)]
    assert [row["shard"] for row in catalog.failures(con).to_pylist()] == [1, 3]
    status = {row["stage"]: row for row in catalog.status(con).to_pylist()}
    assert status["generate"]["shards"] == 5
    assert [status["generate"][s] for s in ("done", "running", "pending", "failed", "crashed")] == [1] * 5
    assert status["verify"]["pending"] == 5


def test_stages_without_a_plan_appear_through_attempts_and_manifests(dataset: Dataset) -> None:
    dataset.write_text("students/sft/manifest.json", "{}")
    dataset.write_text("students/old-sft-2025/manifest.json", "{}")
    with attempt(dataset, "sft", 0, "run"):
        pass
    with pytest.raises(ValueError, match="diverged"), attempt(dataset, "distill", 0, "run"):
        raise ValueError("diverged")
    row = Evaluation("e", "student", 0, "held_out", "pass@1", 0.5, 0.4, 0.6, 10, 40, "t", "m", "2026")
    table = to_table([row], EVALUATION_SCHEMA)
    dataset.write_shard("evaluations/student.parquet", table, schema=EVALUATION_SCHEMA, fingerprint="e")

    con = connect(dataset)
    assert ask(con, "select stage, shard, state, error from shards where stage <> 'generate' order by 1") == [
        ("distill", 0, "failed", "diverged"),
        ("evaluate/student", 0, "done", None),
        ("sft", 0, "done", None),
    ]
    assert catalog.evaluations(con).to_pylist()[0]["metric"] == "pass@1"
    # Trained anew: the older model does not hide that this failed.
    with pytest.raises(ValueError, match="diverged"), attempt(dataset, "sft", 0, "run"):
        raise ValueError("diverged")
    con = connect(dataset)
    assert ask(con, "select state, attempts from shards where stage = 'sft'") == [("failed", 2)]


def test_training_curves_are_read_while_they_are_written(dataset: Dataset) -> None:
    lines = [
        {"step": 1, "loss": 2.5, "lr": 1e-4},
        {"step": 2, "loss": 2.0, "lr": 1e-4, "kl": 0.1, "note": "x"},
    ]
    dataset.write_text("students/sft/metrics.jsonl", "\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    con = connect(dataset)
    assert ask(con, "select stage, step, loss, kl from training order by step") == [
        ("sft", 1, 2.5, None),
        ("sft", 2, 2.0, 0.1),
    ]


def test_rates_and_time_left_come_from_the_newest_run(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", problems=3)
    plan(dataset, replicas=2, shard_size=2)
    generate(dataset, 0)
    start, end = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:04+00:00"
    made = Attempt("generate", 0, 1, "completed", "run", 1, "host", start, end, seconds=4.0, rows=2)
    dataset.write_text("attempts/generate/000000-001.json", json.dumps(asdict(made)))
    status = catalog.status(connect(dataset)).to_pylist()[0]
    assert (status["rows"], status["rows_per_second"], status["seconds_left"]) == (2, 0.5, 8.0)


def test_explain_finds_a_sample_by_prefix(dataset: Dataset) -> None:
    judge(dataset, 0, "math", replica_in(1))
    con = connect(dataset, MATH)
    lost, kept = read_plan(dataset, 0)[:2]

    history = explain_sample(con, lost.sample_id[:10])
    assert (history.sample_id, history.outcome, history.check) == (lost.sample_id, "rejected", "math")
    assert history.problem["gold"] == "1"
    assert [verdict["check"] for verdict in history.verdicts] == ["math"]
    assert explain_sample(con, kept.sample_id).outcome == "accepted"
    with pytest.raises(QueryError, match="too short"):
        explain_sample(con, "ab")
    with pytest.raises(QueryError, match="no sample's id begins with"):
        explain_sample(con, "zzzzzzzz")


def test_rerun_can_ask_for_samples_by_what_became_of_them(dataset: Dataset) -> None:
    judge(dataset, 0, "math", replica_in(1), reasons={"fail": "different"})
    con = connect(dataset, MATH)
    wanted = [row.sample_id for row in read_plan(dataset, 0) if row.replica > 2]
    assert catalog.sample_ids(con, "reason = 'different' and replica > 2") == wanted
    with pytest.raises(QueryError, match="nonsense"):
        catalog.sample_ids(con, "nonsense = 1")


def test_training_rows_are_the_accepted_with_their_problems(dataset: Dataset) -> None:
    judge(dataset, 0, "math", replica_in(1))
    rows = catalog.training_rows(connect(dataset, MATH)).to_pylist()
    assert [(row["prompt"], row["text"], row["gold"]) for row in rows] == [("Calculate 0 + 1.", "t1", "1")]


# ---- a reader cannot write


@pytest.mark.parametrize(
    "query",
    [
        "copy (select 1) to '{file}' (format parquet, use_tmp_file false)",
        "explain analyze copy (select 1) to '{file}' (format parquet, use_tmp_file false)",
        "/* x */ explain analyze copy (select 1) to '{file}' (format parquet, use_tmp_file false)",
        "attach '{folder}/new.db'",
        "export database '{folder}/out'",
        "select * from read_text('/etc/hostname')",
        "set enable_external_access = true",
        "install httpfs",
        "create table mine as select 1",
        "drop view samples",
        "insert into shards select * from shards",
        "select 1; select 2",
        "",
    ],
)
def test_sql_that_would_write_or_look_elsewhere_is_refused(dataset: Dataset, query: str) -> None:
    before = {p: p.read_bytes() for p in dataset.path.rglob("*") if p.is_file()}
    con = connect(dataset, MATH)
    with pytest.raises((QueryError, StoreError)) as caught:
        run_sql(con, query.format(file=dataset.file(sample_path(0)), folder=dataset.path))
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in dataset.path.rglob("*") if p.is_file()} == before
    assert ask(con, "select count(*) from samples") == [(8,)]


def test_reading_statements_of_every_kind_pass(dataset: Dataset) -> None:
    con = connect(dataset, MATH)
    for query in (
        "with a as (select 1 as x) from a",
        "pivot samples on replica using count(*) group by shard",
        "describe samples",
        "explain analyze select count(*) from accepted",
        'select problem_id, "check" from rejected -- a remark',
    ):
        assert run_sql(con, query).num_rows > 0


def test_a_typing_error_is_one_line_that_names_the_right_column(dataset: Dataset) -> None:
    with pytest.raises(QueryError) as caught:
        run_sql(connect(dataset, MATH), "select problm_id\nfrom samples")
    assert "problm_id" in str(caught.value)
    assert '"problem_id"' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counting_accepted_reads_no_text(dataset: Dataset) -> None:
    rule = AcceptRule(("math",), pass_rate=(0.1, 0.9), max_per_problem=1, distinct=True)
    plan_text = ask(connect(dataset, rule), "explain select count(*) from accepted")[0][1]
    assert "text_hash" in plan_text
    assert " text " not in plan_text
    assert " text " in ask(connect(dataset, rule), "explain select text from accepted")[0][1]
