"""The questions that an audit answers: how often each check is wrong, on what, and whom that leaves out.

All are queries over the view `audits`. A false reject is a right answer that failed, a false accept a wrong one that
passed; rates are over the answers on which the check had a say (`pass` or `fail`).
"""

from __future__ import annotations

from typing import Any

from tasks.catalog import Connection, run_sql

Rows = list[dict[str, Any]]

# A row of the view, and whether it is right: null where the check had no say.
_TOLD = """
    with told as (
        select *, case when verdict in ('pass', 'fail') then verdict = expected end as is_right from audits)"""


def audit_rates(con: Connection) -> Rows:
    """Per source and check: golds, how many fail, are unscorable or errors, and the two error rates, in [0, 1].

    `false_rejects` counts right answers in all spellings, of which `right` had a verdict; `golds_failing` the golds as
    they stand in the source, `unscorable` those beside which any answer was. `false_accepts` are of `wrong` corrupted
    answers. `errors` are of any answers.
    """
    return _rows(
        con,
        f"""
        {_TOLD}
        select source, "check",
               count(*) filter ("case" = 'gold') as golds,
               count(*) filter ("case" = 'gold' and verdict = 'fail') as golds_failing,
               count(distinct problem_id) filter (verdict = 'unscorable') as unscorable,
               count(*) filter (verdict = 'error') as errors,
               count(*) filter (expected = 'pass' and is_right is not null) as "right",
               count(*) filter (expected = 'pass' and not is_right) as false_rejects,
               false_rejects / nullif("right", 0) as false_reject_rate,
               count(*) filter (expected = 'fail' and is_right is not null) as wrong,
               count(*) filter (expected = 'fail' and not is_right) as false_accepts,
               false_accepts / nullif(wrong, 0) as false_accept_rate
        from told group by source, "check" order by source, "check" """,
    )


def audit_mistakes(con: Connection) -> Rows:
    """Per check and case the verdicts that are wrong: how many, of how many, and the first one as an example."""
    return _rows(
        con,
        f"""
        {_TOLD},
        counted as (
            select "check", "case", expected, count(*) filter (not is_right) as mistakes, count(is_right) as answers,
                   min(problem_id) filter (not is_right) as problem_id
            from told group by all),
        examples as (
            select "check", "case", problem_id, min(answer) as answer, min(reason) as reason
            from told where not is_right group by all)
        select c."check", c."case", c.expected, c.mistakes, c.answers, e.reason, p.gold, e.answer, c.problem_id
        from counted c join examples e using ("check", "case", problem_id) join problems p using (problem_id)
        where mistakes > 0 order by c."check", expected desc, mistakes desc, c."case" """,
    )


def failing_golds(con: Connection, count: int) -> Rows:
    """Problems whose own gold fails: those that the audit leaves out, and held-out ones, which stay."""
    return _rows(
        con,
        f"""
        select a.problem_id, a.source, p.split, a."check", a.reason, p.gold
        from audits a join problems p using (problem_id)
        where "case" = 'gold' and verdict = 'fail' order by a.source, a.problem_id limit {int(count)}""",
    )


def unscorable_golds(con: Connection) -> Rows:
    """Golds with which a check cannot compare, or could not: per check, verdict and reason, with an example.

    One that passes letter by letter is among them where it was unscorable beside any other answer.
    """
    return _rows(
        con,
        """
        select a."check", verdict, reason, count(distinct problem_id) as golds, arg_min(p.gold, problem_id) as example,
               min(problem_id) as problem_id
        from audits a join problems p using (problem_id)
        where verdict = 'unscorable' or ("case" = 'gold' and verdict = 'error')
        group by all order by golds desc, reason""",
    )


def quarantined(con: Connection) -> dict[str, int]:
    """How many training problems the audit leaves out, and how many held-out ones fail it and stay."""
    return _rows(
        con,
        """
        select count(*) filter (p.split = 'train') as train, count(*) filter (p.split = 'held_out') as held_out
        from problem_verdicts v join problems p using (problem_id)
        where v."check" = 'audit' and v.verdict = 'fail'""",
    )[0]


def _rows(con: Connection, query: str) -> Rows:
    rows: Rows = run_sql(con, query).to_pylist()
    return rows
