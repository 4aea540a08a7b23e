"""The questions behind the page of results, the report, the plan's measured rates and the UI's previews."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tasks import catalog
from tasks.catalog import Connection, run_sql, stored_rule
from tasks.problems import VALIDATION
from tasks.store import Dataset
from tasks.work import current_checks, pending_verify

Rows = list[dict[str, Any]]
CURRENT = "evaluations/current.json"  # keys of the newest evaluation of the whole recipe, and accept.require then


def current_evaluations(con: Connection, dataset: Dataset) -> Rows:
    """Each model's metrics at its last step, of the students as they are now, in the recipe's order."""
    keys = (dataset.read_json(CURRENT) or {"keys": []})["keys"]
    listed = ", ".join(f"'{key}'" for key in keys) or "''"
    return _rows(
        con,
        f"""
        select model, step, suite, metric, value, low, high, problems, samples from evaluations
        where key in ({listed})
        qualify row_number() over (partition by model, suite, metric order by step desc, created_at desc) = 1
        order by list_position([{listed}], key), suite""",
    )


def newest_evaluations(con: Connection) -> Rows:
    """Each metric of each model and step as it was measured last; in the order in which they were first measured.

    Without the validation problems: those are part of the training curves.
    """
    return _rows(
        con,
        f"""
        select model, step, suite, metric, value, low, high, problems, samples from evaluations
        where suite <> '{VALIDATION}'
        qualify row_number() over (partition by model, step, suite, metric order by created_at desc) = 1
        order by min(created_at) over (partition by model, step), model, step, suite, metric""",
    )


def teacher_on_validation(con: Connection) -> float | None:
    """The teacher's newest pass@1 on the validation problems, once the evaluation has measured it."""
    wanted = f"model = 'teacher' and suite = '{VALIDATION}' and metric = 'pass@1'"
    rows = _rows(con, f"select value from evaluations where {wanted} order by created_at desc limit 1")
    return float(rows[0]["value"]) if rows else None


def other_requirement(dataset: Dataset) -> list[str]:
    """What an answer had to pass to be right in the current evaluations, where that is not what the rule requires."""
    noted = (dataset.read_json(CURRENT) or {}).get("require")
    return noted if noted is not None and tuple(noted) != stored_rule(dataset).require else []


def problem_counts(con: Connection) -> dict[str, int]:
    """Problems by split, and samples."""
    return _rows(
        con,
        """
        select count(*) filter (where split = 'train') as train, count(*) filter (where split = 'held_out') as held_out,
               count(*) filter (where split = 'validation') as validation,
               (select count(*) from samples) as samples from problems""",
    )[0]


def funnel_steps(con: Connection) -> Rows:
    """Each step of the funnel: step, samples, lost, and `reasons`, the lost ones by reason."""
    steps: dict[str, dict[str, Any]] = {}
    for row in catalog.funnel(con).to_pylist():
        if row["reason"] is None:
            steps[row["step"]] = {key: row[key] for key in ("step", "samples", "lost")} | {"reasons": {}}
        else:
            steps[row["step"]]["reasons"][row["reason"]] = row["lost"]
    return list(steps.values())


def pass_rates_by_source(con: Connection) -> Rows:
    """Per source the problems that have samples, their mean pass rate, and how many never, sometimes and always pass.

    `unknown` are problems none of whose samples has a pass or a fail yet; best source first.
    """
    return _rows(
        con,
        """
        select source, count(*) as problems, sum(samples)::bigint as samples, avg(pass_rate) as pass_rate,
               count(*) filter (pass_rate = 0) as never,
               count(*) filter (pass_rate > 0 and pass_rate < 1) as sometimes,
               count(*) filter (pass_rate = 1) as always,
               count(*) filter (pass_rate is null) as unknown
        from pass_rates join problems using (problem_id)
        group by source order by avg(pass_rate) desc nulls last, source""",
    )


def completion_lengths(con: Connection) -> Rows:
    """Completion tokens of the accepted and of the rejected samples: count, sum, 5 %, median, 95 % and most."""
    return _rows(
        con,
        """
        select if("check" is null, 'accepted', 'rejected') as outcome, count(*) as samples,
               sum(completion_tokens)::bigint as tokens,
               quantile_cont(completion_tokens, 0.05) as low, quantile_cont(completion_tokens, 0.5) as median,
               quantile_cont(completion_tokens, 0.95) as high, max(completion_tokens) as most
        from outcomes group by outcome order by outcome""",
    )


def failed_attempts(con: Connection, count: int) -> Rows:
    """What went wrong, also where a later try went well: attempts and shards by stage and error, newest first.

    An attempt that crashed has no error: its process ended before it could say one.
    """
    return _rows(
        con,
        f"""
        select stage, state, error_type, error, count(*) as attempts, count(distinct shard) as shards,
               max(started_at) as newest
        from attempts where state in ('failed', 'crashed')
        group by stage, state, error_type, error order by newest desc, stage, error limit {int(count)}""",
    )


def generation_speed(con: Connection) -> dict[str, Any]:
    """Samples, completion tokens, and tokens per second of wall time in the newest run that generated."""
    return _rows(
        con,
        """
        with done as (select * from attempts where stage = 'generate' and state = 'completed'),
        newest as (select * from done where run_id = (select arg_max(run_id, started_at) from done)),
        span as (select epoch(max(ended_at) - min(started_at)) as seconds from newest)
        select count(*) as samples, sum(completion_tokens)::bigint as tokens,
               sum(completion_tokens) filter (where shard in (select shard from newest))
               / nullif((select seconds from span), 0) as tokens_per_second
        from samples""",
    )[0]


def training_summary(con: Connection) -> Rows:
    """Per training stage: steps and seconds of its last completed attempt."""
    return _rows(
        con,
        """
        select stage, arg_max(rows, started_at) as steps, arg_max(seconds, started_at) as seconds from attempts
        where stage in ('sft', 'distill', 'on_policy', 'grpo') and state = 'completed'
        group by stage order by max(started_at)""",
    )


def measured_rates(con: Connection) -> dict[str, float]:
    """What a pilot has measured, under the names of `flows/planning.py`; only what is known."""
    row = _rows(
        con,
        """
        select avg(prompt_tokens) as mean_prompt_tokens, avg(completion_tokens) as mean_completion_tokens,
               (select count(*) from accepted) / nullif(count(*), 0) as accepted_share
        from samples""",
    )[0]
    row["tokens_per_second"] = generation_speed(con)["tokens_per_second"]
    return {name: float(value) for name, value in row.items() if value}


def checks_that_wait(dataset: Dataset) -> dict[str, int]:
    """Checks whose verdicts alone are missing on shards that have others already, and on how many shards each."""
    checks = len(current_checks(dataset))
    partly = [work for work in pending_verify(dataset) if len(work.checks) < checks]
    return dict(Counter(name for work in partly for name, _ in work.checks))


def accepted_preview(con: Connection, count: int) -> Rows:
    """A few accepted samples to read, with what they were asked."""
    return _with_texts(con, _rows(con, f"select sample_id, shard from accepted order by sample_id limit {int(count)}"))


def rejected_preview(con: Connection, count: int) -> Rows:
    """One rejected sample for each reason, most frequent reasons first; `samples` are lost for the same one."""
    chosen = _rows(
        con,
        f"""
        select min(sample_id) as sample_id, arg_min(shard, sample_id) as shard, "check", reason, count(*) as samples
        from rejected group by "check", reason order by count(*) desc, sample_id limit {int(count)}""",
    )
    return _with_texts(con, chosen)


def _with_texts(con: Connection, chosen: Rows) -> Rows:
    """These rows with their texts and problems, without their shards, which say where those are: no other is read."""
    if not chosen:
        return []
    shards = ", ".join(str(shard) for shard in {row["shard"] for row in chosen})
    ids = ", ".join(f"'{row['sample_id']}'" for row in chosen)
    found = _rows(
        con,
        f"""
        select s.sample_id, s.text, s.completion_tokens, s.finish_reason, p.source, p.prompt, p.gold
        from samples s left join problems p using (problem_id)
        where s.shard in ({shards}) and s.sample_id in ({ids})""",
    )
    texts = {row["sample_id"]: row for row in found}
    return [{k: v for k, v in row.items() if k != "shard"} | texts[row["sample_id"]] for row in chosen]


def telling_sample(con: Connection) -> str | None:
    """A sample whose history is worth explaining: a wrong answer where there is one."""
    rows = _rows(con, """select sample_id from rejected order by "check" = 'math' desc, sample_id limit 1""") or _rows(
        con, "select sample_id from samples order by sample_id limit 1"
    )
    return rows[0]["sample_id"] if rows else None


def _rows(con: Connection, query: str) -> Rows:
    rows: Rows = run_sql(con, query).to_pylist()
    return rows
