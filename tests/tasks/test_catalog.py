from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import RecipeError, StoreError
from model.records import (
    AUDIT_SCHEMA,
    EVALUATION_SCHEMA,
    PROBLEM_SCHEMA,
    PROBLEM_VERDICT_SCHEMA,
    SAMPLE_SCHEMA,
    VERDICT_SCHEMA,
    Audit,
    Evaluation,
    PlannedSample,
    ProblemVerdict,
    Sample,
    Status,
    Verdict,
    from_table,
    to_table,
)
from model.rewards.check import Judgement
from model.rewards.rule import first_loss
from tasks import catalog
from tasks.attempts import Attempt, attempt
from tasks.catalog import AcceptRule, QueryError, connect, explain_sample, run_sql
from tasks.evaluate import ANSWER_SCHEMA, Answer
from tasks.problem_verdicts import write_problem_verdicts
from tasks.snapshot import unit_of
from tasks.store import Dataset, sample_path, verdict_path
from tasks.summary import checks_that_wait
from tasks.views import PUBLIC
from tasks.work import plan_rerun, plan_verify, read_plan, verdict_extra
from tests.tasks.small_dataset import generate, judge, make_dataset, plan, problem, write_problems

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
    expected |= {"problem_verdicts": PROBLEM_VERDICT_SCHEMA, "audits": AUDIT_SCHEMA}
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


def test_every_relation_is_public_or_a_means(tmp_path: Path) -> None:
    """A new view is either promised to readers (and to README, by a test) or kept out of what they rely on."""
    con = connect(make_dataset(tmp_path / "data"))
    names = "select table_name from information_schema.tables"
    means = {"all_samples", "superseded", "all_verdicts", "verdict_files", "tested", "judged"}
    found = {str(name) for (name,) in con.execute(names).fetchall() if not str(name).startswith("empty_")}
    assert found == set(PUBLIC) | means


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


def test_a_copy_of_a_right_answer_is_right_in_a_pass_rate(dataset: Dataset) -> None:
    """By replica: right, a copy of it, a wrong one, and a copy of that one, which `duplicate` names first."""
    judge(dataset, 0, "duplicate", replica_in(0, 2))
    judge(dataset, 0, "math", replica_in(0, 1))
    judge(dataset, 1, "math", lambda row: "error" if row.replica else "pass")  # `duplicate` is still to come
    rates = {
        rate
        for require in (("duplicate", "math"), ("math", "duplicate"), ("math",))
        for rate in rated(dataset, require)
    }
    assert rates == {(2, 2, 0.5), (1, 0, 1.0)}
    con = connect(dataset, AcceptRule(("duplicate", "math"), pass_rate=(0.4, 0.6)))
    assert ask(con, "select shard, replica from accepted") == [(0, 0)]
    lost = ask(con, 'select replica, "check" from rejected where shard = 0 order by 1')
    assert lost == [(1, "duplicate"), (2, "math"), (3, "duplicate")]


def rated(dataset: Dataset, require: tuple[str, ...]) -> list[tuple[int, int, float]]:
    return ask(connect(dataset, AcceptRule(require)), "select passed, failed, pass_rate from pass_rates")


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


def judge_problems(dataset: Dataset, check: str, reasons: dict[int, str]) -> None:
    """Writes verdicts of `check` on problems 0 and 1: a fail where there is a reason."""
    rows = [
        ProblemVerdict(problem(n).problem_id, check, "1", Status.FAIL, 0.1, reasons[n], "a twin", 0.5)
        if n in reasons
        else ProblemVerdict(problem(n).problem_id, check, "1", Status.PASS, None, "fine")
        for n in (0, 1)
    ]
    write_problem_verdicts(dataset, check, "1", rows, 0.1)


def test_samples_of_an_excluded_problem_are_lost_before_anything_else(dataset: Dataset) -> None:
    judge(dataset, 0, "math", replica_in(0))
    judge(dataset, 1, "math")
    judge_problems(dataset, "duplicate", {0: "near_duplicate"})
    judge_problems(dataset, "audit", {0: "own_gold_fails"})
    con = connect(dataset, MATH)

    assert ask(con, 'select distinct shard, "check", reason, verdict from rejected') == [(0, "problem", "audit", None)]
    assert ask(con, "select step, samples, lost, reason from funnel") == [
        ("generated", 8, 0, None),
        ("problem", 4, 4, None),
        ("problem", None, 4, "audit"),
        ("verified", 4, 0, None),
        ("math", 4, 0, None),
        ("accepted", 4, 0, None),
    ]
    # A pass rate says how hard a problem is, not whether it is wanted.
    assert sorted(row["pass_rate"] for row in catalog.pass_rates(con).to_pylist()) == [0.25, 1.0]
    assert ask(
        con, "select check_name, verdict, reason, detail, milliseconds from problem_verdicts where score = 0.1"
    ) == [
        ("audit", "fail", "own_gold_fails", "a twin", 0.5),
        ("duplicate", "fail", "near_duplicate", "a twin", 0.5),
    ]
    only_twins = AcceptRule(("math",), problems=("duplicate",))
    assert ask(connect(dataset, only_twins), "select distinct reason from rejected") == [("duplicate",)]
    nothing = AcceptRule(("math",), problems=("contamination",))
    assert ask(connect(dataset, nothing), "select step from funnel where reason is null") == [
        ("generated",),
        ("verified",),
        ("math",),
        ("accepted",),
    ]


def test_the_funnel_of_problems_ends_with_those_to_learn_from(dataset: Dataset) -> None:
    held_out = problem(7, split="held_out")
    write_problems(dataset, [held_out], "000001")
    judge_problems(dataset, "duplicate", {1: "near_duplicate"})
    rows = [ProblemVerdict(held_out.problem_id, "audit", "1", Status.FAIL, None, "own_gold_fails")]
    write_problem_verdicts(dataset, "audit", "1", rows, 0.1)
    assert catalog.problem_funnel(connect(dataset)).to_pylist() == [
        {"step": step, "problems": problems, "lost": lost, "reason": reason}
        for step, problems, lost, reason in [
            ("loaded", 3, 0, None),
            ("held_out", 2, 1, None),
            ("audit", 2, 0, None),  # a held-out problem is told of and kept
            ("duplicate", 1, 1, None),
            ("duplicate", None, 1, "near_duplicate"),
            ("eligible", 1, 0, None),
        ]
    ]


def test_alternatives_lose_a_sample_together(dataset: Dataset) -> None:
    """Shard 0, by replica: math and judge say pass/fail, fail/pass, fail/error, unscorable/fail."""
    said = [("pass", "fail"), ("fail", "pass"), ("fail", "error"), ("unscorable", "fail")]
    for place, check in enumerate(("math", "judge")):
        reasons = {status: f"{check} {status}" for status in ("fail", "error", "unscorable")}
        judge(dataset, 0, check, lambda row, place=place: said[row.replica][place], reasons=reasons)
    judge(dataset, 1, "math", lambda row: ["pass", "fail", "error", "unscorable"][row.replica])
    con = connect(dataset, AcceptRule(("math|judge",)))

    assert ask(con, "select shard, replica from accepted order by 1, 2") == [(0, 0), (0, 1), (1, 0)]
    assert ask(con, 'select shard, replica, "check", reason, verdict from rejected order by 1, 2') == [
        (0, 2, "math|judge", "math fail", "fail"),
        (0, 3, "math|judge", "judge fail", "fail"),
        (1, 1, "math|judge", "fail", "fail"),
        (1, 2, "math|judge", "error", "error"),
        (1, 3, "pending", "no_judge_verdict", None),
    ]
    assert ask(con, "select step, samples from funnel where reason is null") == [
        ("generated", 8),
        ("verified", 7),
        ("math|judge", 3),
        ("accepted", 3),
    ]
    assert sorted(row["pass_rate"] for row in catalog.pass_rates(con).to_pylist()) == [0.5, 0.5]


@pytest.fixture
def lengths_and_novelty(dataset: Dataset) -> Dataset:
    """Problem 0's four samples: completion tokens 30, 10, 20, 10, novelty 1, 0.2, 0.9 and none (an error)."""
    tokens, novelty = (30, 10, 20, 10), (1.0, 0.2, 0.9, None)
    rows = from_table(dataset.read_table(sample_path(0)), Sample)
    rows = [replace(row, completion_tokens=tokens[row.replica]) for row in rows]
    table = to_table(rows, SAMPLE_SCHEMA)
    made = dataset.write_shard(sample_path(0), table, schema=SAMPLE_SCHEMA, fingerprint="g")
    scores = [Verdict(row.sample_id, "duplicate", "1", Status.PASS, novelty[row.replica], "unlike") for row in rows]
    dataset.write_shard(
        verdict_path("duplicate", "1", 0),
        to_table(scores, VERDICT_SCHEMA),
        schema=VERDICT_SCHEMA,
        fingerprint="v",
        extra=verdict_extra(made),
    )
    return dataset


@pytest.mark.parametrize(
    ("keep", "cap", "kept"),
    [
        ("first", 2, [0, 1]),
        ("shortest", 1, [1]),
        ("shortest", 3, [1, 2, 3]),
        ("diverse", 2, [0, 2]),
        ("diverse", 3, [0, 1, 2]),
    ],
)
def test_what_is_kept_under_the_cap(lengths_and_novelty: Dataset, keep: str, cap: int, kept: list[int]) -> None:
    con = connect(lengths_and_novelty, AcceptRule((), max_per_problem=cap, keep=keep))
    assert ask(con, "select replica from accepted where shard = 0 order by 1") == [(n,) for n in kept]


def test_audits_are_one_view_over_the_files_of_all_checks(dataset: Dataset) -> None:
    for check in ("math", "code"):
        row = Audit("p", "sums", check, "1", "gold", Status.PASS, Status.PASS, "equal_number", "4")
        path = f"audits/{check}.parquet"
        dataset.write_shard(path, to_table([row], AUDIT_SCHEMA), schema=AUDIT_SCHEMA, fingerprint="1")
    con = connect(dataset)
    assert ask(con, 'select "check", "case", verdict from audits order by 1') == [
        ("code", "gold", "pass"),
        ("math", "gold", "pass"),
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
    with pytest.raises(RecipeError, match="keep must be one of first, shortest, diverse"):
        AcceptRule(keep="longest")
    with pytest.raises(RecipeError, match="names a check left and right"):
        AcceptRule(require=("math|",))


def test_the_rule_of_the_last_recipe_is_the_default(dataset: Dataset) -> None:
    dataset.bind({}, {"accept": {"require": [], "max_per_problem": 3, "pass_rate": [0.0, 1.0]}})
    assert ask(connect(dataset), "select count(*) from accepted") == [(6,)]
    assert ask(connect(dataset, AcceptRule(())), "select count(*) from accepted") == [(8,)]


statuses = st.sampled_from(["pass", "pass", "fail", "error", "unscorable", None])
rules = st.builds(
    AcceptRule,
    require=st.sampled_from([(), ("math",), ("format", "math"), ("format|math",), ("format", "math|format")]),
    pass_rate=st.sampled_from([(0.0, 1.0), (0.3, 0.9), (0.5, 0.5)]),
    max_per_problem=st.integers(0, 2),
    distinct=st.booleans(),
    where=st.sampled_from(["", "replica > 0", "text = 'a'", "answer = 'x'"]),
    keep=st.sampled_from(["first", "shortest", "diverse"]),
    problems=st.sampled_from([(), ("audit",)]),
)


@settings(max_examples=12, deadline=None)
@given(
    verdicts=st.lists(st.tuples(statuses, statuses), min_size=8, max_size=8),
    texts=st.lists(st.sampled_from(["a", "b"]), min_size=8, max_size=8),
    rule=rules,
    excluding=st.booleans(),
)
def test_accepted_and_rejected_part_the_samples_and_the_funnel_adds_up(
    tmp_path_factory: pytest.TempPathFactory,
    verdicts: list[tuple[str | None, str | None]],
    texts: list[str],
    rule: AcceptRule,
    excluding: bool,
) -> None:
    dataset = make_dataset(tmp_path_factory.mktemp("data"), problems=2)
    plan(dataset, replicas=4, shard_size=4)
    for shard in (0, 1):
        generate(dataset, shard, text=lambda row, at=4 * shard: texts[at + row.replica])
        for column, check in enumerate(("format", "math")):
            mine = [pair[column] for pair in verdicts[4 * shard : 4 * shard + 4]]
            if None not in mine:
                judge(dataset, shard, check, lambda row, mine=mine: str(mine[row.replica]))
    if excluding:
        judge_problems(dataset, "audit", {0: "own_gold_fails"})
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
    _assert_rule_in_python_agrees(con, verdicts, rule)
    if excluding and rule.problems:
        assert ask(con, "select 1 from accepted where shard = 0") == []
    if rule.distinct:
        assert ask(con, "select 1 from accepted group by problem_id, text having count(*) > 1") == []
    if rule.max_per_problem:
        assert ask(con, f"select 1 from accepted group by problem_id having count(*) > {rule.max_per_problem}") == []


def _assert_rule_in_python_agrees(
    con: duckdb.DuckDBPyConnection, verdicts: list[tuple[str | None, str | None]], rule: AcceptRule
) -> None:
    """The view `tested` and model/rewards/rule.py, for the samples whose verdicts are all there."""
    complete = [all(pair is not None for at in range(4) for pair in verdicts[4 * s + at]) for s in (0, 1)]
    for shard, replica, lost_at, reason in ask(con, "select shard, replica, lost_at, reason from tested"):
        if complete[shard]:
            said = zip(("format", "math"), verdicts[4 * shard + replica], strict=True)
            judged = {check: Judgement(Status(str(status)), None, str(status)) for check, status in said}
            loss = first_loss(rule.require, judged)
            assert (lost_at, reason) == ((loss[0], loss[1].reason) if loss else (None, None))


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


def write_attempt(
    dataset: Dataset, stage: str, shard: int, run: str, seconds: tuple[int, int], rows: int, attempt: int = 1
) -> None:
    """One that was completed, between two seconds of the same minute."""
    start, end = (f"2026-01-01T00:00:{second:02d}+00:00" for second in seconds)
    took = float(seconds[1] - seconds[0])
    made = Attempt(stage, shard, attempt, "completed", run, 1, "host", start, end, seconds=took, rows=rows)
    dataset.write_text(f"attempts/{stage}/{shard:06d}-{attempt:03d}.json", json.dumps(asdict(made)))


def test_rows_seconds_and_rates_agree(tmp_path: Path) -> None:
    """Three shards of two samples: two in flight together in one run, with a wait between, and one in a newer run."""
    dataset = make_dataset(tmp_path / "data", problems=4)
    plan(dataset, replicas=2, shard_size=2)
    for shard, run, seconds in ((0, "a", (0, 6)), (1, "a", (2, 8)), (2, "b", (20, 21))):
        generate(dataset, shard)
        write_attempt(dataset, "generate", shard, run, seconds, rows=2)
    row = catalog.status(connect(dataset)).to_pylist()[0]
    assert (row["rows"], row["seconds"], row["rows_per_second"]) == (6, 9.0, pytest.approx(6 / 9))
    assert row["seconds_left"] == 1.0  # two rows at the newer run's rate
    assert unit_of("generate") == "samples"


def test_shards_verified_in_part_count_with_the_verdicts_they_have(tmp_path: Path) -> None:
    """`duplicate` waits for every shard: until then none is done, and yet work was done and some is left."""
    dataset = make_dataset(tmp_path / "data", problems=2)
    plan(dataset, replicas=2, shard_size=2)
    plan_verify(dataset, {"math": "1", "duplicate": "1"})
    generate(dataset, 0)
    judge(dataset, 0, "math")
    write_attempt(dataset, "verify", 0, "a", (0, 4), rows=2)
    row = {row["stage"]: row for row in catalog.status(connect(dataset)).to_pylist()}["verify"]
    assert (row["shards"], row["done"], row["pending"]) == (2, 0, 2)
    assert (row["rows"], row["seconds"], row["rows_per_second"]) == (2, 4.0, 0.5)
    assert row["seconds_left"] == 12.0  # 8 verdicts are planned
    assert checks_that_wait(dataset) == {"duplicate": 1}
    judge(dataset, 0, "duplicate")
    write_attempt(dataset, "verify", 0, "a", (6, 8), rows=2, attempt=2)
    row = {row["stage"]: row for row in catalog.status(connect(dataset)).to_pylist()}["verify"]
    assert (row["done"], row["rows"], row["seconds"], row["rows_per_second"]) == (1, 4, 6.0, pytest.approx(4 / 6))
    assert checks_that_wait(dataset) == {}


def test_an_evaluation_counts_answers_and_training_steps(dataset: Dataset) -> None:
    row = Evaluation("e", "student", 0, "held_out", "pass@1", 0.5, 0.4, 0.6, 10, 2, "t", "m", "2026")
    table = to_table([row], EVALUATION_SCHEMA)
    dataset.write_shard("evaluations/e.parquet", table, schema=EVALUATION_SCHEMA, fingerprint="e", seconds=3.0)
    answers = [Answer(f"{n}", "p", n, "student", 0, "s", True, "correct", "1", 5, "text") for n in range(2)]
    table = to_table(answers, ANSWER_SCHEMA)
    dataset.write_shard("evaluations/answers/e.parquet", table, schema=ANSWER_SCHEMA, fingerprint="e")
    dataset.write_text("students/sft/manifest.json", json.dumps({"steps": 12}))
    rows = {row["stage"]: row["rows"] for row in catalog.status(connect(dataset)).to_pylist()}
    assert (rows["evaluate/student"], rows["sft"]) == (2, 12)
    assert (unit_of("evaluate/student"), unit_of("sft"), unit_of("verify")) == ("answers", "steps", "verdicts")


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
    rows = [row for some in catalog.training_rows(connect(dataset, MATH)) for row in some]
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


def try_at(dataset: Dataset, stage: str, shard: int, start: int, end: int | None, run: str = "run-1") -> None:
    """An attempt from one second of a minute to another, or one that was killed."""
    times = [None if at is None else f"2026-01-01T00:00:{at:02d}+00:00" for at in (start, end)]
    state = "running" if end is None else "completed"
    made = Attempt(stage, shard, 1, state, run, 1, "host", str(times[0]), times[1])
    dataset.write_text(f"attempts/{stage}/{shard:06d}-001.json", json.dumps(asdict(made)))


def test_verification_adds_the_time_in_which_nothing_is_generated(tmp_path: Path) -> None:
    """From second 0 to 20; 12 to 14 and 18 to 20 belong to verification alone, 17 to 18 to nobody."""
    dataset = make_dataset(tmp_path / "data")
    try_at(dataset, "verify", 8, 40, 50, run="run-2")
    assert catalog.verification_share(connect(dataset)) is None  # nothing was generated
    try_at(dataset, "generate", 0, 0, 5)
    try_at(dataset, "generate", 1, 2, 12)
    try_at(dataset, "verify", 0, 5, 13)
    try_at(dataset, "verify", 1, 12, 14)
    try_at(dataset, "generate", 2, 14, 17)
    try_at(dataset, "verify", 2, 18, 20)
    try_at(dataset, "verify", 3, 19, None)
    assert catalog.verification_share(connect(dataset)) == pytest.approx(4 / 20)
    # What a later run verifies is not this run's; one that generates is the newest.
    try_at(dataset, "generate", 9, 30, 40, run="run-2")
    assert catalog.verification_share(connect(dataset)) == pytest.approx(10 / 20)


def test_verdicts_that_are_errors_are_counted_by_reason(dataset: Dataset) -> None:
    judge(dataset, 0, "math", lambda row: "error" if row.replica else "pass", reasons={"error": "timed_out"})
    judge(dataset, 1, "math", lambda row: "fail" if row.replica else "error", reasons={"error": "worker_died"})
    assert catalog.verdict_errors(connect(dataset)).to_pylist() == [
        {"check": "math", "reason": "timed_out", "verdicts": 3},
        {"check": "math", "reason": "worker_died", "verdicts": 1},
    ]


# ---- agreement of judge and rules


def test_agreement_counts_pairs_of_verdicts_per_rule_verdict(dataset: Dataset) -> None:
    """Of each problem's four samples `math` passes the first two; the judge was asked about all but the first."""
    said = {0: "unscorable", 1: "pass", 2: "pass", 3: "fail"}
    for shard in (0, 1):
        judge(dataset, shard, "math", replica_in(0, 1))
        judge(dataset, shard, "format", replica_in())
        judge(dataset, shard, "judge", lambda row: said[row.replica])
    con = connect(dataset, MATH)
    assert ask(con, "from agreement order by all") == [
        ("math", "fail", "fail", 2, 0.5),
        ("math", "fail", "pass", 2, 0.5),
        ("math", "pass", "pass", 2, 1.0),
    ]
    table = catalog.agreement(con).to_pylist()
    assert [tuple(row.values()) for row in table] == [("math", "pass", 2, 0, 0, 1.0), ("math", "fail", 2, 2, 0, 0.5)]


def test_a_judges_errors_and_a_rules_silence_agree_with_nothing(dataset: Dataset) -> None:
    for shard in (0, 1):
        judge(dataset, shard, "math", lambda row: ["pass", "fail", "unscorable", "error"][row.replica])
        judge(dataset, shard, "judge", lambda row, shard=shard: "error" if row.replica < 2 else ["pass", "fail"][shard])
    table = catalog.agreement(connect(dataset, MATH)).to_pylist()
    assert [tuple(row.values())[1:] for row in table] == [
        ("pass", 0, 0, 2, None),
        ("fail", 0, 0, 2, None),
        ("unscorable", 1, 1, 0, None),
        ("error", 1, 1, 0, None),
    ]


def test_agreement_is_empty_without_a_judge_and_leaves_other_domains_out(dataset: Dataset) -> None:
    judge(dataset, 0, "math", replica_in(0, 1))
    judge(dataset, 0, "code", lambda _: "unscorable", reasons={"unscorable": "other_domain"})
    assert catalog.agreement(connect(dataset, MATH)).num_rows == 0
    judge(dataset, 0, "judge")
    assert set(catalog.agreement(connect(dataset, MATH)).column("check").to_pylist()) == {"math"}
