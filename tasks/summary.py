"""The questions behind the page of results, the plan's measured rates and the UI's previews, one function each."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tasks.catalog import Connection, run_sql, stored_rule
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
    """A few accepted samples to read."""
    return _with_texts(con, _rows(con, f"select sample_id, shard from accepted order by sample_id limit {int(count)}"))


def rejected_preview(con: Connection, count: int) -> Rows:
    """One rejected sample for each reason, most frequent reasons first."""
    chosen = _rows(
        con,
        f"""
        select min(sample_id) as sample_id, arg_min(shard, sample_id) as shard, "check", reason from rejected
        group by "check", reason order by count(*) desc, sample_id limit {int(count)}""",
    )
    return _with_texts(con, chosen)


def _with_texts(con: Connection, chosen: Rows) -> Rows:
    """These rows with their texts, and without their shards, which say where those are: no other text is read."""
    if not chosen:
        return []
    shards = ", ".join(str(shard) for shard in {row["shard"] for row in chosen})
    ids = ", ".join(f"'{row['sample_id']}'" for row in chosen)
    found = _rows(con, f"select sample_id, text from samples where shard in ({shards}) and sample_id in ({ids})")
    texts = {row["sample_id"]: row["text"] for row in found}
    return [{k: v for k, v in row.items() if k != "shard"} | {"text": texts[row["sample_id"]]} for row in chosen]


def telling_sample(con: Connection) -> str | None:
    """A sample whose history is worth explaining: a wrong answer where there is one."""
    rows = _rows(con, """select sample_id from rejected order by "check" = 'math' desc, sample_id limit 1""") or _rows(
        con, "select sample_id from samples order by sample_id limit 1"
    )
    return rows[0]["sample_id"] if rows else None


def _rows(con: Connection, query: str) -> Rows:
    rows: Rows = run_sql(con, query).to_pylist()
    return rows
