"""The SQL of the views: the stable public interface of a dataset. Text only; `tasks/catalog.py` runs it.

    raw samples -> samples -> tested (required checks) -> judged (problem, band, distinct, cap) -> accepted | rejected
                                  pass_rates <-'               '-> funnel

A sample is lost at the first step that it does not pass, in this order: `problem` (its problem fails one of the
rule's checks on problems), the required checks as the rule lists them (`pending` where one has no verdict yet),
`where`, `pass_rate`, `distinct`, `cap`. A requirement may be alternatives, `math|judge`: any one that passes will do
(`model/rewards/rule.py` says the same in Python). Of a problem's equal texts the first by replica stays.

Under its cap stay the samples that `keep` ranks first, ties going to the first by replica: `first`; `shortest`, by
completion tokens; `diverse`, by the score of `duplicate`, highest first: 1 - similarity to the most alike sample of
the problem made before, kept or not. So any two samples kept this way are at most 1 - (the lowest score kept) alike,
as far as MinHash names the most alike; a sample like one that was rejected ranks low, however unlike the kept ones.

A problem's pass rate is the share that passes all required checks among its samples for which that is known: an
error or an unscorable answer is not a fail, what became of the problem itself does not count, and neither does
`duplicate`, since a copy of a right answer is right. No view up to `judged` reads a text: equal texts are told by the
stored `text_hash`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.errors import RecipeError
from model.rewards.judge import RULES
from model.rewards.rule import alternatives

PROBLEM, PENDING, WHERE, PASS_RATE, DISTINCT, CAP = "problem", "pending", "where", "pass_rate", "distinct", "cap"
# What readers may rely on, tables of the catalog included; other names are means to these.
PUBLIC = (
    "problems", "samples", "verdicts", "accepted", "rejected", "outcomes", "shards", "attempts", "funnel", "pass_rates",
    "evaluations", "training", "problem_verdicts", "excluded_problems", "problem_funnel", "audits", "agreement",
)  # fmt: skip
KEEP = ("first", "shortest", "diverse")
NOVELTY = "duplicate"  # compares a sample with others: `diverse` ranks by its score, and no pass rate counts it


@dataclass(frozen=True, slots=True)
class AcceptRule:
    """Which samples are accepted. `pass_rate` is an inclusive band, `max_per_problem` 0 means no cap.

    `problems` are the checks on problems whose fails exclude; one without verdicts excludes nothing.
    """

    require: tuple[str, ...] = ("finish", "format", "math")
    pass_rate: tuple[float, float] = (0.0, 1.0)
    max_per_problem: int = 0
    distinct: bool = False
    where: str = ""
    problems: tuple[str, ...] = ("audit", "duplicate", "contamination")
    keep: str = "first"

    def __post_init__(self) -> None:
        low, high = self.pass_rate
        if not 0.0 <= low <= high <= 1.0:
            raise RecipeError(f"accept.pass_rate must be a band within [0, 1], not [{low}, {high}]")
        if self.max_per_problem < 0:
            raise RecipeError(f"accept.max_per_problem must be 0 (no cap) or more, not {self.max_per_problem}")
        if self.keep not in KEEP:
            raise RecipeError(f"accept.keep must be one of {', '.join(KEEP)}, not {self.keep!r}")
        if not all(name for requirement in self.require for name in alternatives(requirement)):
            raise RecipeError(f"accept.require names a check left and right of each `|`: {', '.join(self.require)}")

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
            problems=tuple(section.get("problems", default.problems)),
            keep=section.get("keep", default.keep),
        )

    def steps(self, excluding: bool) -> list[tuple[str, str | None]]:
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
        problem = [(PROBLEM, PROBLEM)] if excluding else []
        return [("generated", None), *problem, *checks, *chosen, ("accepted", None)]


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


def problem_verdicts(files: Sequence[str]) -> str:
    """What checks say of problems, the latest word of each check."""
    return f"""
        create view problem_verdicts as
        select problem_id, "check", "check" as check_name, version, verdict, score, reason, detail, milliseconds
        {read_files(files, "empty_problem_verdicts")}"""


def excluded_problems(checks: Sequence[str]) -> str:
    """Training problems that fail one of these checks, with the first that they fail. Others never do."""
    places = ", ".join(f"({place}, {quote(check)})" for place, check in enumerate(checks)) or "(0, null)"
    return f"""
        create view excluded_problems as
        select problem_id, arg_min("check", place) as "check", arg_min(v.reason, place) as reason
        from problem_verdicts v join (values {places}) wanted(place, "check") using ("check")
        where v.verdict = 'fail' and problem_id not in (select problem_id from problems where split <> 'train')
        group by problem_id"""


def problem_funnel(checks: Sequence[str]) -> str:
    """One row per step from what was loaded to what is learnt from (`reason` null), and one per reason below it."""
    steps = ["loaded", "held_out", "validation", *checks, "eligible"]
    rows = ", ".join(f"({place}, {quote(step)})" for place, step in enumerate(steps))
    return f"""
        create view problem_funnel as
        with losses as materialized (
            select coalesce(x."check", nullif(p.split, 'train')) as step, x.reason, count(*) as lost
            from problems p left join excluded_problems x using (problem_id) group by all),
        steps(position, step) as (values {rows}),
        totals as (
            select position, step, coalesce(sum(l.lost), 0)::bigint as lost
            from steps left join losses l using (step) group by position, step)
        select position, step,
               (select coalesce(sum(lost), 0) from losses)::bigint
               - (sum(lost) over (order by position))::bigint as problems, lost, null as reason
        from totals where step <> 'validation' or lost > 0
        union all
        select position, step, null, lost::bigint, reason from steps join losses using (step) where reason is not null
        order by position, reason nulls first"""


def tested(rule: AcceptRule, current: Mapping[str, Sequence[str]], superseding: bool) -> str:
    """One row per sample: the required check it was lost at (null: passed all), why, and that verdict.

    `own_verdict` is `pass`, or the verdict of the first loss by the sample's own doing: without NOVELTY.
    """
    requirements = [_Requirement(f"c{place}", text) for place, text in enumerate(rule.require)]
    own = [one for one in requirements if alternatives(one.text) != [NOVELTY]]
    sources = [source for requirement in requirements for source in requirement.sources]
    joins = [_join(alias, check, current, superseding) for alias, check in sources]
    preference = "0"
    if rule.keep == "shortest":
        preference = "s.completion_tokens"
    elif rule.keep == "diverse":
        joins.append(_join("novel", NOVELTY, current, superseding))
        preference = "-coalesce(novel.score, -1)"
    lines = "\n".join(joins)
    return f"""
        create view tested as
        select s.sample_id, s.problem_id, s.shard, s.replica, s.text_hash, s.chosen, {preference} as preference,
               {_first_loss(requirements, "lost_at")} as lost_at,
               {_first_loss(requirements, "reason")} as reason,
               {_first_loss(requirements, "verdict")} as verdict,
               {_first_loss(own, "verdict", met="'pass'")} as own_verdict
        from ({_candidates(rule)}) s
        {lines}"""


def pass_rates() -> str:
    """Per problem: all its samples, those whose outcome is known to be a pass or a fail, and the share."""
    return """
        create view pass_rates as
        select problem_id, count(*) as samples,
               count(*) filter (where own_verdict = 'pass') as passed,
               count(*) filter (where own_verdict = 'fail') as failed,
               passed / nullif(passed + failed, 0) as pass_rate
        from tested group by problem_id"""


def agreement() -> str:
    """Judge against rules, of the samples that both gave a verdict: a row per rule check and pair of verdicts.

    `share` is of that check's samples with that rule verdict. Rejected samples are all judged and accepted ones a
    fixed share, so shares over both together would say nothing.
    """
    return f"""
        create view agreement as
        select rule."check", rule.verdict as rule_verdict, judge.verdict as judge_verdict, count(*) as samples,
               count(*) / sum(count(*)) over (partition by rule."check", rule.verdict) as share
        from verdicts rule join verdicts judge using (sample_id)
        where rule.current and rule."check" in ({", ".join(map(quote, RULES))}) and rule.reason <> 'other_domain'
          and judge.current and judge."check" = 'judge' and judge.verdict <> 'unscorable'
        group by rule."check", rule.verdict, judge.verdict"""


def judged(rule: AcceptRule, excluding: bool) -> str:
    """One row per sample: what it was lost at under the whole rule (null: accepted), and why."""
    low, high = rule.pass_rate
    band = f"r.pass_rate not between {low!r} and {high!r}"
    return f"""
        create view judged as
        with filtered as (
            select t.* replace (
                case when x.reason is not null then '{PROBLEM}'
                     when t.lost_at is not null then t.lost_at
                     when not t.chosen then '{WHERE}'
                     when {band} then '{PASS_RATE}' end as lost_at,
                case when x.reason is not null then x.reason
                     when t.lost_at is not null then t.reason
                     when not t.chosen then 'predicate_false'
                     when {band} then if(r.pass_rate < {low!r}, 'below_band', 'above_band') end as reason,
                if(x.reason is null, t.verdict, null) as verdict)
            from tested t join pass_rates r using (problem_id)
            left join ({_excluded(excluding)}) x using (problem_id)),
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


def funnel(rule: AcceptRule, excluding: bool) -> str:
    """One row per step (samples left, samples lost there; `reason` null) and one per reason below it."""
    steps = rule.steps(excluding)
    rows = [f"({i}, {quote(step)}, {quote(at) if at else 'null'})" for i, (step, at) in enumerate(steps)]
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
    columns = "sample_id, problem_id, shard, replica, completion_tokens, text_hash"
    return f"select {columns}, {chosen} as chosen from samples"


def _excluded(excluding: bool) -> str:
    """The problems that are left out, and by which check; a scan of nothing where no check has run."""
    if not excluding:
        return "select null::varchar as problem_id, null::varchar as reason where false"
    return 'select problem_id, "check" as reason from excluded_problems'


def _verdicts_of(check: str, files: Sequence[str], superseding: bool) -> str:
    columns = "select sample_id, verdict, reason, score"
    if superseding:
        return f'{columns} from verdicts where current and "check" = {quote(check)}'
    return f"{columns} {read_files(files, 'empty_verdicts')}"


class _Requirement:
    """One item of `require` as SQL expressions over the joined verdicts of its alternatives.

    Not met, it is lost for the first alternative that failed, else the first in error, else the first without a
    verdict (then at `pending`), else the first that could not be scored.
    """

    def __init__(self, prefix: str, text: str) -> None:
        self.text = text
        self.sources = [(f"{prefix}_{place}", check) for place, check in enumerate(alternatives(text))]

    @property
    def met(self) -> str:
        return "(" + " or ".join(f"coalesce({alias}.verdict = 'pass', false)" for alias, _ in self.sources) + ")"

    def cases(self, column: str) -> str:
        """WHEN branches that give a column (lost_at, reason, verdict) of the loss, given that it is not met."""
        branches = []
        for status in ("fail", "error", None, "unscorable"):
            for alias, check in self.sources:
                is_so = f"{alias}.verdict = '{status}'" if status else f"{alias}.verdict is null"
                pending = {"lost_at": quote(PENDING), "reason": quote(f"no_{check}_verdict"), "verdict": "null"}
                found = {"lost_at": quote(self.text), "reason": f"{alias}.reason", "verdict": f"{alias}.verdict"}
                branches.append(f"when {is_so} then {(found if status else pending)[column]}")
        return " ".join(branches)


def _first_loss(requirements: Sequence[_Requirement], column: str, met: str = "null") -> str:
    """A CASE over the requirements in order: the column of the first that is not met, `met` where all are."""
    cases = " ".join(f"when not {one.met} then case {one.cases(column)} end" for one in requirements)
    return f"case {cases} else {met} end" if cases else f"{met}::varchar"


def _join(alias: str, check: str, current: Mapping[str, Sequence[str]], superseding: bool) -> str:
    return f"left join ({_verdicts_of(check, current.get(check, ()), superseding)}) {alias} using (sample_id)"


def _distinct(rule: AcceptRule) -> str:
    """Files every but the first of a problem's equal texts under `distinct`."""
    twice = _rank("problem_id, text_hash") + " > 1"
    return _lose("filtered", twice, DISTINCT, "same_text") if rule.distinct else "from filtered"


def _cap(rule: AcceptRule) -> str:
    over = f"{_rank('problem_id', 'preference, ')} > {rule.max_per_problem}"
    return _lose("single", over, CAP, "over_cap") if rule.max_per_problem else "from single"


def _rank(key: str, before: str = "") -> str:
    """Place among the samples still in the running; the others are counted apart and change nothing."""
    return f"row_number() over (partition by {key}, lost_at is null order by {before}replica, sample_id)"


def _lose(source: str, condition: str, at: str, reason: str) -> str:
    return f"""select * exclude (beyond) replace (
                if(beyond, {quote(at)}, lost_at) as lost_at, if(beyond, {quote(reason)}, reason) as reason)
            from (select *, lost_at is null and {condition} as beyond from {source})"""
