"""SQL over a dataset: an in-memory DuckDB connection with the views of the design, and the questions we ask.

Parquet is the truth, DuckDB the lens: there is no database file, any number of readers may ask while a run
is going on, and each sees what was complete when it connected. A connection reads the dataset's own files
and nothing else, and `run_sql` lets no statement through that would write. The views are in `tasks/views.py`.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from model.errors import RecipeError, StoreError
from model.records import (
    AUDIT_SCHEMA,
    EVALUATION_SCHEMA,
    PROBLEM_SCHEMA,
    PROBLEM_VERDICT_SCHEMA,
    SAMPLE_SCHEMA,
    VERDICT_SCHEMA,
)
from tasks import views
from tasks.snapshot import Snapshot, take_snapshot
from tasks.store import TEXT_HASH, Dataset
from tasks.views import AcceptRule

Connection = duckdb.DuckDBPyConnection

_EMPTY = {
    "empty_problems": PROBLEM_SCHEMA,
    "empty_samples": SAMPLE_SCHEMA.append(pa.field(TEXT_HASH, pa.uint64())),
    "empty_verdicts": VERDICT_SCHEMA.append(pa.field("filename", pa.string())),
    "empty_evaluations": EVALUATION_SCHEMA,
    "empty_problem_verdicts": PROBLEM_VERDICT_SCHEMA,
    "empty_audits": AUDIT_SCHEMA,
}
_EXPLAINED = re.compile(r"\s*explain(?:\s+analyze)?\s+(.*)", re.IGNORECASE | re.DOTALL)
_SHORTEST_PREFIX = 6


class QueryError(RecipeError):
    """SQL that a user wrote does not parse, names an unknown column, or would write."""


def connect(dataset: Dataset | str | Path, accept: AcceptRule | None = None) -> duckdb.DuckDBPyConnection:
    """A connection with all views over what is complete now; `accept` None takes the rule of the last recipe.

    Raises StoreError where there is no dataset, QueryError where the rule's `where` is no predicate.
    """
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    snapshot, rule = take_snapshot(dataset), accept or stored_rule(dataset)
    con = duckdb.connect(":memory:", config=_config())
    con.execute(f"set allowed_paths = {views.file_list(snapshot.files())}")
    con.execute("set enable_external_access = false")
    con.execute("set lock_configuration = true")
    _create_tables(con, snapshot)
    _create_views(con, snapshot, rule)
    return con


def stored_rule(dataset: Dataset) -> AcceptRule:
    """The accept rule of the recipe that last ran, or the default one."""
    recipe = dataset.recipe() or {}
    return AcceptRule.of(recipe.get("accept", {}))


def run_sql(con: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The result of one reading statement; QueryError with one line for any other."""
    with _query_errors():
        _refuse_writing(con.extract_statements(query))
    return _ask(con, query)


def check_predicate(con: duckdb.DuckDBPyConnection, view: str, predicate: str) -> None:
    """QueryError unless `predicate` is one SQL condition over the columns of `view`."""
    query = f"select 1 from {view} where (\n{predicate}\n)"
    with _query_errors(f"`{predicate}` is no condition over {view}: "):
        _refuse_writing(con.extract_statements(query))
        con.execute(f"explain {query}").fetchall()


def sample_ids(con: duckdb.DuckDBPyConnection, where: str) -> list[str]:
    """Ids of the samples for which `where` holds, a condition over `outcomes`; QueryError for a wrong one.

    `outcomes` has all columns of `samples` and what a rejected one was lost at: "check", reason, verdict.
    """
    check_predicate(con, "outcomes", where)
    query = f"select sample_id from outcomes where (\n{where}\n) order by shard, sample_id"
    ids: list[str] = _ask(con, query).column(0).to_pylist()
    return ids


def funnel(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Where samples are lost: a row per step (`reason` null), then one per reason; no idle steps."""
    return _ask(con, "select step, samples, lost, reason from funnel")


def problem_funnel(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Where problems are lost before a sample is made: a row per step (`reason` null), then one per reason."""
    return _ask(con, "select step, problems, lost, reason from problem_funnel")


def reasons(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Rejected samples by the check they were lost at and its reason, most first."""
    return _ask(
        con,
        """
        select "check", reason, count(*) as samples from rejected
        group by all order by samples desc, "check", reason""",
    )


def agreement(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """What the judge says where a rule says pass, fail, …: counts per rule check; empty where only one of them ran.

    `agreement` is the share, of the passes and fails by the judge, that are the rule's own verdict. There is one for
    each rule verdict and none for all: the judge sees all rejected samples, but few of the accepted.
    """
    return _ask(
        con,
        """
        select "check", rule_verdict,
               coalesce(sum(samples) filter (judge_verdict = 'pass'), 0)::bigint as judge_pass,
               coalesce(sum(samples) filter (judge_verdict = 'fail'), 0)::bigint as judge_fail,
               coalesce(sum(samples) filter (judge_verdict = 'error'), 0)::bigint as judge_error,
               case rule_verdict when 'pass' then judge_pass when 'fail' then judge_fail end
               / nullif(judge_pass + judge_fail, 0) as agreement
        from agreement group by "check", rule_verdict
        order by "check", list_position(['pass', 'fail', 'unscorable', 'error'], rule_verdict)""",
    )


def pass_rates(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Per problem: samples, passed, failed, pass_rate; hardest first."""
    return _ask(con, "from pass_rates order by pass_rate, problem_id")


def evaluations(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Every metric of every evaluated model, with its interval, in the order in which they were made."""
    return _ask(con, "from evaluations order by created_at, model, suite, metric")


def failures(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Shards that failed or crashed, and the error of their last attempt."""
    return _ask(
        con,
        """
        select stage, shard, state, attempts, error_type, error from shards
        where state in ('failed', 'crashed') order by stage, shard""",
    )


def status(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Per stage: shards by state, the rows there are, the seconds they took, rows per second, and seconds left.

    Rows are of one kind per stage (`tasks.snapshot.unit_of`). Seconds are wall time in which at least one completed
    attempt ran: several in flight count once, waiting for another stage does not, and rows_per_second is rows over
    seconds. Left are the planned rows that are not there, at the rate of the newest run that completed an attempt.
    Null where nothing was completed.
    """
    return _ask(
        con,
        """
        with completed as (
            select *, max(ended_at) over (partition by stage order by started_at, ended_at
                                          rows between unbounded preceding and 1 preceding) as busy_until
            from attempts where state = 'completed'),
        newest as (select stage, arg_max(run_id, started_at) as run_id from completed group by stage),
        added as (
            select c.*, c.run_id = n.run_id as of_newest,
                   epoch(greatest(ended_at, busy_until) - greatest(started_at, busy_until)) as busy
            from completed c join newest n using (stage)),
        times as (
            select stage, sum(busy) as seconds,
                   sum(a.rows) filter (of_newest) / nullif(sum(busy) filter (of_newest), 0) as newest_rate
            from added a group by stage)
        select s.stage, count(*) as shards,
               count(*) filter (where state = 'done') as done,
               count(*) filter (where state = 'running') as running,
               count(*) filter (where state = 'pending') as pending,
               count(*) filter (where state = 'failed') as failed,
               count(*) filter (where state = 'crashed') as crashed,
               sum(s.rows)::bigint as rows, coalesce(any_value(t.seconds), sum(s.seconds)) as seconds,
               sum(s.rows) / nullif(any_value(t.seconds), 0) as rows_per_second,
               sum(s.planned_rows - coalesce(s.rows, 0)) / any_value(t.newest_rate) as seconds_left
        from shards s left join times t using (stage)
        group by s.stage order by min(s.finished_at) nulls last, s.stage""",
    )


def verdict_errors(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Current verdicts that are errors, by check and reason, most first: what `rerun --errors` verifies again."""
    return _ask(
        con,
        """
        select v."check", v.reason, count(*) as verdicts from all_verdicts v
        where v.current and v.verdict = 'error' group by all order by verdicts desc, v."check", v.reason""",
    )


def verification_share(con: duckdb.DuckDBPyConnection) -> float | None:
    """The share of wall time that verification added to the newest run that generated; None where none did.

    Added is time in which a verify attempt runs and no generate attempt does; the whole is from the first start to
    the last end of both. Attempts that never ended (a killed run's) do not count.
    """
    query = """
        with tries as (
            select stage, run_id, started_at, ended_at from attempts
            where stage in ('generate', 'verify') and ended_at is not null),
        newest as (
            from tries where run_id = (select arg_max(run_id, started_at) from tries where stage = 'generate')),
        changes as (
            select started_at as moment, (stage = 'generate')::int as generating, (stage = 'verify')::int as verifying
            from newest
            union all
            select ended_at, -(stage = 'generate')::int, -(stage = 'verify')::int from newest),
        counts as (
            select moment, sum(generating) over sweep as generating, sum(verifying) over sweep as verifying,
                   lead(moment) over sweep as later
            from changes window sweep as (order by moment))
        select sum(epoch(later - moment)) filter (verifying > 0 and generating = 0) as added,
               epoch(max(moment) - min(moment)) as whole
        from counts"""
    row = _dicts(con, query)[0]
    return (row["added"] or 0.0) / row["whole"] if row["whole"] else None


def training_rows(con: duckdb.DuckDBPyConnection, at_once: int = 1024) -> Iterator[list[dict[str, Any]]]:
    """Accepted samples: sample_id, problem_id, the problem's prompt, text, gold; by problem and replica.

    At most `at_once` of them are held at a time; what has to be sorted spills to disk where memory is short.
    """
    query = """
        select a.sample_id, a.problem_id, p.prompt, a.text, p.gold
        from accepted a join problems p using (problem_id)
        order by a.problem_id, a.replica"""
    with _query_errors(), con.cursor() as cursor:
        for batch in cursor.sql(query).to_arrow_reader(at_once):
            yield batch.to_pylist()


@dataclass(frozen=True, slots=True)
class SampleHistory:
    """All that the dataset knows of one sample. Each list holds rows as dicts, oldest first.

    `samples` has more than one row where it was made again; `outcome` is `accepted` or `rejected`, then with
    `check` and `reason`; `attempts` are those of the shards it was in.
    """

    sample_id: str
    outcome: str
    check: str | None
    reason: str | None
    problem: dict[str, Any]
    samples: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    attempts: list[dict[str, Any]]


def explain_sample(con: duckdb.DuckDBPyConnection, sample: str) -> SampleHistory:
    """One sample's whole history, found by its id or by its first 6 or more digits.

    QueryError when no sample or more than one begins so.
    """
    full = _find(con, sample)
    made = _dicts(con, "select * from all_samples where sample_id = ? order by shard", full)
    lost = _dicts(con, "select lost_at, reason from judged where sample_id = ?", full)[0]
    shards = ", ".join(str(row["shard"]) for row in made)
    return SampleHistory(
        sample_id=full,
        outcome="rejected" if lost["lost_at"] else "accepted",
        check=lost["lost_at"],
        reason=lost["reason"],
        problem=next(iter(_dicts(con, "from problems where problem_id = ?", made[-1]["problem_id"])), {}),
        samples=made,
        verdicts=_dicts(con, 'from all_verdicts where sample_id = ? order by shard, "check", version', full),
        attempts=_dicts(
            con,
            f"from attempts where stage in ('generate', 'verify') and shard in ({shards}) order by started_at",
        ),
    )


def _find(con: duckdb.DuckDBPyConnection, sample: str) -> str:
    if len(sample) < _SHORTEST_PREFIX:
        raise QueryError(f"`{sample}` is too short for a sample id: give {_SHORTEST_PREFIX} digits or more")
    query = "select distinct sample_id from samples where starts_with(sample_id, ?) order by 1 limit 2"
    rows = _ask(con, query, sample).column(0).to_pylist()
    if not rows:
        raise QueryError(f"no sample's id begins with `{sample}`; `select sample_id from samples` lists them")
    if len(rows) > 1:
        raise QueryError(f"several samples' ids begin with `{sample}` ({rows[0]}, {rows[1]}, …): give more digits")
    return str(rows[0])


def _ask(con: duckdb.DuckDBPyConnection, query: str, *values: Any) -> pa.Table:
    """A query's whole result, on a cursor of its own: half-read results of others do not get in the way."""
    with _query_errors(), con.cursor() as cursor:
        return cursor.sql(query, params=list(values)).to_arrow_table()


@contextmanager
def _query_errors(context: str = "") -> Iterator[None]:
    """DuckDB's refusals as ours: a file that does not read is the store's, anything else the query's."""
    try:
        yield
    except duckdb.IOException as error:
        raise StoreError(f"{context}{_one_line(error)}") from error
    except duckdb.Error as error:
        raise QueryError(f"{context}{_one_line(error)}") from error


def _dicts(con: duckdb.DuckDBPyConnection, query: str, *values: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _ask(con, query, *values).to_pylist()
    return rows


def _config() -> dict[str, Any]:
    """No network, no extensions fetched; what does not fit in memory spills outside the dataset."""
    return {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,  # a table's name never means a variable of ours
        "enable_external_file_cache": False,  # a file may be replaced under an open connection
        "temp_directory": str(Path(tempfile.gettempdir()) / f"stillhouse-sql-{os.getpid()}"),
    }


def _create_tables(con: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    """What lives in memory: shards, attempts, training curves, and the types of the empty tables."""
    empty = {name: schema.empty_table() for name, schema in _EMPTY.items()}
    tables = {
        "shards": snapshot.shards,
        "attempts": snapshot.attempts,
        "training": snapshot.training,
        "verdict_files": snapshot.verdict_table,
    }
    for name, table in (empty | tables).items():
        con.register("arriving", table)
        con.execute(f"create table {name} as from arriving")
        con.unregister("arriving")


def _create_views(con: duckdb.DuckDBPyConnection, snapshot: Snapshot, rule: AcceptRule) -> None:
    superseding = bool(snapshot.superseding)
    checks = [check for check in rule.problems if check in snapshot.problem_verdicts]
    _scan(con, "problems", snapshot.problems, "empty_problems")
    _scan(con, "evaluations", snapshot.evaluations, "empty_evaluations")
    _scan(con, "audits", snapshot.audits, "empty_audits")
    _scan(con, "all_samples", snapshot.samples, "empty_samples")
    replaced = views.read_files(snapshot.superseding, "empty_samples")
    con.execute(f"create table superseded as select sample_id, max(shard) as shard {replaced} group by sample_id")
    con.execute(views.samples(superseding))
    con.execute(views.all_verdicts(snapshot.verdict_table.column("filename").to_pylist()))
    con.execute(views.verdicts(superseding))
    if rule.where.strip():
        check_predicate(con, "samples", rule.where)
    con.execute(views.tested(rule, _current_files(snapshot), superseding))
    con.execute(views.pass_rates())
    con.execute(views.agreement())
    con.execute(views.problem_verdicts(list(snapshot.problem_verdicts.values())))
    con.execute(views.excluded_problems(checks))
    con.execute(views.problem_funnel(checks))
    con.execute(views.judged(rule, bool(checks)))
    for view in (views.outcomes(), views.accepted(), views.rejected(), views.funnel(rule, bool(checks))):
        con.execute(view)


def _scan(con: duckdb.DuckDBPyConnection, view: str, files: Sequence[str], empty: str) -> None:
    con.execute(f"create view {view} as {views.read_files(files, empty)}")


def _current_files(snapshot: Snapshot) -> Mapping[str, list[str]]:
    """Per check the verdict files that count."""
    current: dict[str, list[str]] = {}
    for file in snapshot.verdict_table.to_pylist():
        if file["current"]:
            current.setdefault(file["check"], []).append(file["filename"])
    return current


def _refuse_writing(statements: list[Any]) -> None:
    if len(statements) != 1:
        raise QueryError(f"one SQL statement is expected, not {len(statements)}")
    if not _only_reads(statements[0]):
        raise QueryError(
            "a dataset is read with SQL, never written: use select, from, with, pivot, describe or explain"
        )


def _only_reads(statement: Any) -> bool:
    """SELECT in all spellings, PIVOT, and EXPLAIN of those (EXPLAIN ANALYZE carries out what it explains)."""
    if statement.type == duckdb.StatementType.EXPLAIN:
        inner = _EXPLAINED.fullmatch(statement.query)
        return inner is not None and all(map(_only_reads, duckdb.extract_statements(inner[1])))
    return statement.type in (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI)


def _one_line(error: duckdb.Error) -> str:
    """DuckDB's message without the picture of the query; a table or column that it proposes is kept."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hints = [line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))]
    return " ".join(lines[:1] + hints[:1])
