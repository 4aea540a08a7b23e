"""The SQL of the views: the stable public interface of a dataset. Text only; `tasks/catalog.py` runs it.

    raw samples -> samples -> tested (required checks) -> judged (band, distinct, cap) -> accepted | rejected
                                  pass_rates <-'               '-> funnel

A sample is lost at the first step that it does not pass, in this order: the required checks as the rule lists
them (`pending` where one has no verdict yet), `where`, `pass_rate`, `distinct`, `cap`. Of a problem's equal
texts, and under its cap, the first by replica stay. A problem's pass rate is the share that passes all
required checks among its samples for which that is known: an error or an unscorable answer is not a fail. No
view up to `judged` reads a text: equal texts are told by the stored `text_hash`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.errors import RecipeError

PENDING, WHERE, PASS_RATE, DISTINCT, CAP = "pending", "where", "pass_rate", "distinct", "cap"


@dataclass(frozen=True, slots=True)
class AcceptRule:
    """Which samples are accepted. `pass_rate` is an inclusive band, `max_per_problem` 0 means no cap."""

    require: tuple[str, ...] = ("finish", "format", "math")
    pass_rate: tuple[float, float] = (0.0, 1.0)
    max_per_problem: int = 0
    distinct: bool = False
    where: str = ""

    def __post_init__(self) -> None:
        low, high = self.pass_rate
        if not 0.0 <= low <= high <= 1.0:
            raise RecipeError(f"accept.pass_rate must be a band within [0, 1], not [{low}, {high}]")
        if self.max_per_problem < 0:
            raise RecipeError(f"accept.max_per_problem must be 0 (no cap) or more, not {self.max_per_problem}")

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> AcceptRule:
        """The rule of a recipe's `[accept]` section; keys that are not part of it are left to others."""
        default = cls()
        low, high = section.get("pass_rate", default.pass_rate)
        return cls(
            require=tuple(section.get("require", default.require)),
            pass_rate=(low, high),
            max_per_problem=section.get("max_per_problem", default.max_per_problem),
            distinct=section.get("distinct", default.distinct),
            where=section.get("where", default.where),
        )

    @property
    def steps(self) -> list[tuple[str, str | None]]:
        """The funnel's steps that can lose a sample under this rule: (step, what the loss is filed under)."""
        low, high = self.pass_rate
        optional = (
            (WHERE, bool(self.where.strip())),
            (PASS_RATE, (low, high) != (0.0, 1.0)),
            (DISTINCT, self.distinct),
            (CAP, self.max_per_problem > 0),
        )
        checks = [("verified", PENDING), *((check, check) for check in self.require)] if self.require else []
        chosen = [(name, name) for name, active in optional if active]
        return [("generated", None), *checks, *chosen, ("accepted", None)]


def quote(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def file_list(files: Sequence[str]) -> str:
    """An SQL list of file names."""
    return "[" + ", ".join(map(quote, files)) + "]"


def read_files(files: Sequence[str], empty: str, options: str = "") -> str:
    """A scan of exactly these files, or of the empty table where there are none."""
    return f"from read_parquet({file_list(files)}{options})" if files else f"from {empty}"


def samples(superseding: bool) -> str:
    """The rows that count: of a sample that was made again, the newest."""
    return f"create view samples as select s.* from all_samples s {_but_superseded('s', superseding)}"


def all_verdicts(files: Sequence[str]) -> str:
    """Every valid verdict with its shard; `current` marks the version of a check that counts there."""
    return f"""
        create view all_verdicts as
        select v.sample_id, v."check", v.version, v.verdict, v.score, v.reason, v.detail, v.milliseconds,
               v."check" as check_name, f.shard, f.current
        from (select * {read_files(files, "empty_verdicts", ", filename = true")}) v
        join verdict_files f using (filename)"""


def verdicts(superseding: bool) -> str:
    """Verdicts on the rows that count."""
    return f"create view verdicts as select v.* from all_verdicts v {_but_superseded('v', superseding)}"


def tested(rule: AcceptRule, current: Mapping[str, Sequence[str]], superseding: bool) -> str:
    """One row per sample: the required check it was lost at (null: passed all), why, and that verdict."""
    checks = range(len(rule.require))
    lost_at = _first_loss([quote(PENDING)] * len(checks), [quote(name) for name in rule.require])
    reason = _first_loss([quote(f"no_{name}_verdict") for name in rule.require], [f"c{i}.reason" for i in checks])
    verdict = _first_loss(["null"] * len(checks), [f"c{i}.verdict" for i in checks])
    joins = "\n".join(
        f"left join ({_verdicts_of(check, current.get(check, ()), superseding)}) c{i} using (sample_id)"
        for i, check in enumerate(rule.require)
    )
    return f"""
        create view tested as
        select s.sample_id, s.problem_id, s.shard, s.replica, s.text_hash, s.chosen,
               {lost_at} as lost_at, {reason} as reason, {verdict} as verdict
        from ({_candidates(rule)}) s
        {joins}"""


def pass_rates() -> str:
    """Per problem: all its samples, those whose outcome is known to be a pass or a fail, and the share."""
    return """
        create view pass_rates as
        select problem_id, count(*) as samples,
               count(*) filter (where lost_at is null) as passed,
               count(*) filter (where verdict = 'fail') as failed,
               passed / nullif(passed + failed, 0) as pass_rate
        from tested group by problem_id"""


def judged(rule: AcceptRule) -> str:
    """One row per sample: what it was lost at under the whole rule (null: accepted), and why."""
    low, high = rule.pass_rate
    band = f"r.pass_rate not between {low!r} and {high!r}"
    return f"""
        create view judged as
        with filtered as (
            select t.* replace (
                case when t.lost_at is not null then t.lost_at
                     when not t.chosen then '{WHERE}'
                     when {band} then '{PASS_RATE}' end as lost_at,
                case when t.lost_at is not null then t.reason
                     when not t.chosen then 'predicate_false'
                     when {band} then if(r.pass_rate < {low!r}, 'below_band', 'above_band') end as reason)
            from tested t join pass_rates r using (problem_id)),
        single as ({_distinct(rule)})
        {_cap(rule)}"""


def accepted() -> str:
    """The samples under the rule, with all their columns."""
    return """
        create view accepted as
        from samples s
        where exists (select 1 from judged j where j.sample_id = s.sample_id and j.lost_at is null)"""


def rejected() -> str:
    """Every other sample once, with the first thing it was lost at and the reason."""
    return 'create view rejected as from outcomes where "check" is not null'


def outcomes() -> str:
    """Every sample with what became of it: "check", reason and verdict are null where it was accepted."""
    return """
        create view outcomes as
        select s.*, j.lost_at as "check", j.lost_at as check_name, j.reason, j.verdict
        from samples s join judged j using (sample_id)"""


def funnel(rule: AcceptRule) -> str:
    """One row per step (samples left, samples lost there; `reason` null) and one per reason below it."""
    rows = [f"({i}, {quote(step)}, {quote(at) if at else 'null'})" for i, (step, at) in enumerate(rule.steps)]
    return f"""
        create view funnel as
        with losses as materialized (select lost_at, reason, count(*) as lost from judged group by all),
        steps(position, step, lost_at) as (values {", ".join(rows)}),
        totals as (
            select position, step, coalesce(sum(l.lost), 0)::bigint as lost
            from steps left join losses l using (lost_at) group by position, step)
        select position, step,
               (select coalesce(sum(lost), 0) from losses)::bigint
               - (sum(lost) over (order by position))::bigint as samples, lost, null as reason
        from totals
        union all
        select position, step, null, lost::bigint, reason from steps join losses using (lost_at)
        order by position, reason nulls first"""


def _but_superseded(alias: str, superseding: bool) -> str:
    newer = f"p.sample_id = {alias}.sample_id and {alias}.shard < p.shard"
    return f"anti join superseded p on {newer}" if superseding else ""


def _candidates(rule: AcceptRule) -> str:
    chosen = f"coalesce((\n{rule.where}\n), false)" if rule.where.strip() else "true"
    return f"select sample_id, problem_id, shard, replica, text_hash, {chosen} as chosen from samples"


def _verdicts_of(check: str, files: Sequence[str], superseding: bool) -> str:
    columns = "select sample_id, verdict, reason"
    if superseding:
        return f'{columns} from verdicts where current and "check" = {quote(check)}'
    return f"{columns} {read_files(files, 'empty_verdicts')}"


def _first_loss(missing: Sequence[str], lost: Sequence[str]) -> str:
    """A CASE over the checks in order: `missing[i]` where check i has no verdict, else `lost[i]`."""
    cases = " ".join(
        f"when c{i}.verdict is null then {none} when c{i}.verdict <> 'pass' then {failed}"
        for i, (none, failed) in enumerate(zip(missing, lost, strict=True))
    )
    return f"case {cases} end" if cases else "null::varchar"


def _distinct(rule: AcceptRule) -> str:
    """Files every but the first of a problem's equal texts under `distinct`."""
    twice = _rank("problem_id, text_hash") + " > 1"
    return _lose("filtered", twice, DISTINCT, "same_text") if rule.distinct else "from filtered"


def _cap(rule: AcceptRule) -> str:
    over = f"{_rank('problem_id')} > {rule.max_per_problem}"
    return _lose("single", over, CAP, "over_cap") if rule.max_per_problem else "from single"


def _rank(key: str) -> str:
    """Place among the samples still in the running; the others are counted apart and change nothing."""
    return f"row_number() over (partition by {key}, lost_at is null order by replica, sample_id)"


def _lose(source: str, condition: str, at: str, reason: str) -> str:
    return f"""select * exclude (beyond) replace (
                if(beyond, {quote(at)}, lost_at) as lost_at, if(beyond, {quote(reason)}, reason) as reason)
            from (select *, lost_at is null and {condition} as beyond from {source})"""
