"""The checks on trial: every verifier on its own gold answers, and on answers that are wrong in a known way.

For each check and problem file one file `audits/CHECK-NNNNNN.parquet` with a row per made-up answer; a file that is
there, of this version and these problems, is not made again, so that more problems cost only their own audit. A gold
must pass, also spelled otherwise; a corrupted one must fail. Where a problem's own gold fails, the problem's verdict
`audit` is `fail` and keeps it out of generation (`accept.problems`); a wrong answer that passes accuses the check, not
the problem. Golds with nothing to compare (`unscorable`) and checks that could not be carried out (`error`) are
listed apart. Memory holds one batch of problems, and one small row per problem for the verdicts at the end.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE

from model.records import (
    AUDIT_SCHEMA,
    PROBLEM_SCHEMA,
    Audit,
    Problem,
    ProblemVerdict,
    Status,
    content_hash,
    from_table,
    to_table,
)
from model.rewards.check import Check, Judgement, Scored
from model.rewards.corruption import RULES, Corruption, corruptions, other_answer, spellings, wrong_programs
from model.rewards.programs.foreign_tests import read_any_tests
from model.rewards.workers.pool import VerifierPool
from tasks.problem_verdicts import stale, write_problem_verdicts
from tasks.progress import Ticker
from tasks.run import Run
from tasks.store import AUDITS, PROBLEMS, Dataset, Manifest

NAME = "audit"
GOLD = "gold"
BATCH = 250  # problems that are judged together
NEIGHBOURS = 50  # problems among which another one's answer is looked for
_LONGEST = 4_000  # characters of an answer that a row keeps
_OTHER_DOMAIN = "other_domain"


@dataclass(frozen=True, slots=True)
class AuditRules:
    """What is tried: whether wrong answers too, how many mutants of a program, and on how many problems (0: all)."""

    corruptions: bool = True
    mutants: int = 8
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """One made-up answer to one problem, and what a check should say of it."""

    problem: Problem
    case: str
    expected: Status
    answer: str
    thought: str = ""


def audit_version(checks: Sequence[Check], rules: AuditRules) -> str:
    """Of the problems' verdict `audit`: the corruptions' rules, and a digest of checks, versions and extent."""
    versions = sorted((check.name, check.version) for check in checks)
    return f"{RULES}+{content_hash(versions, rules.limit, digits=6)}"


def pending_files(dataset: Dataset, check: Check, rules: AuditRules) -> list[Manifest]:
    """Problem files without an audit by this check, in its version and to this extent."""
    chosen = chosen_problems(dataset, rules.limit)
    return [m for m in dataset.manifests(PROBLEMS) if not _is_audited(dataset, m, check, rules, chosen)]


def is_up_to_date(dataset: Dataset, checks: Sequence[Check], rules: AuditRules) -> bool:
    """Whether there is nothing to audit, and the problems' verdicts are drawn from all there is."""
    if stale(dataset, NAME, audit_version(checks, rules)):
        return False
    return not any(pending_files(dataset, check, rules) for check in checks)


def chosen_problems(dataset: Dataset, limit: int) -> frozenset[str] | None:
    """The `limit` problems with the smallest ids, which are hashes and so a sample of all; None: every problem."""
    if limit == 0:
        return None
    tables = (dataset.read_table(m.relative, ["problem_id"]) for m in dataset.manifests(PROBLEMS))
    return frozenset(heapq.nsmallest(limit, (row for table in tables for row in table["problem_id"].to_pylist())))


@task(name="audit", task_run_name="audit {file.relative}", cache_policy=NO_CACHE)
def audit_file(run: Run, pool: VerifierPool, file: Manifest, rules: AuditRules, ticker: Ticker) -> None:
    """Puts the pool's one check on trial with the problems of one file."""
    started = time.monotonic()
    (check,) = pool.checks
    chosen = chosen_problems(run.dataset, rules.limit)
    tables, errors, wrong = [AUDIT_SCHEMA.empty_table()], 0, 0
    for problems in _batches(run.dataset, file, chosen):
        rows = audit_rows(pool, problems, rules)
        wrong += _wrong(rows)
        errors += sum(row.verdict == Status.ERROR and row.reason != "timed_out" for row in rows)
        tables.append(to_table(rows, AUDIT_SCHEMA))
        ticker.advance(len(problems), f"{check.name}: {wrong} wrong verdicts")
    run.dataset.write_shard(
        _path(check, file),
        pa.concat_tables(tables),
        schema=AUDIT_SCHEMA,
        fingerprint=_fingerprint(check, rules),
        extra={"tie": _tie(file, chosen), "errors": errors},
        seconds=time.monotonic() - started,
    )


def audit_rows(pool: VerifierPool, problems: Sequence[Problem], rules: AuditRules) -> list[Audit]:
    """What the pool's one check says of these problems' golds and, where it can say anything, of other answers."""
    golds = _judged(pool, [Trial(p, GOLD, Status.PASS, p.gold or "") for p in problems])
    golds = [(trial, row) for trial, row in golds if row.reason != _OTHER_DOMAIN]
    rows = [row for _, row in golds]
    scorable = [trial.problem for trial, row in golds if row.verdict in (Status.PASS, Status.FAIL)]
    return rows + [row for _, row in _judged(pool, list(_further_trials(scorable, rules)))]


def completion(domain: str, answer: str, thought: str = "") -> str:
    """An answer as a model would give it, thought, tags and fence included."""
    body = f"\n```python\n{answer}\n```\n" if domain == "code" and answer else answer
    return f"<think>\n{thought}\n</think>\n<answer>{body}</answer>"


def write_verdicts(dataset: Dataset, checks: Sequence[Check], rules: AuditRules, seconds: float) -> None:
    """One verdict per audited problem: `fail` if a check rejects its gold, else `pass` if one accepts it."""
    version, worst = audit_version(checks, rules), dict[str, ProblemVerdict]()
    for manifest in _audits(dataset, checks):
        table = dataset.read_table(manifest.relative, ["problem_id", "check", "case", "verdict", "reason", "detail"])
        for row in table.filter(pc.field("case") == GOLD).to_pylist():
            verdict = _problem_verdict(version=version, **row)
            before = worst.get(verdict.problem_id)
            if before is None or _SEVERITY.index(verdict.verdict) < _SEVERITY.index(before.verdict):
                worst[verdict.problem_id] = verdict
    write_problem_verdicts(dataset, NAME, version, list(worst.values()), seconds)


def drop_other_audits(dataset: Dataset, checks: Sequence[Check]) -> None:
    """Removes what checks that are no longer on trial once said, so that the view `audits` holds one audit."""
    kept = {manifest.relative for manifest in _audits(dataset, checks)}
    for manifest in dataset.manifests(AUDITS):
        if manifest.relative not in kept:
            dataset.remove_shard(manifest.relative)


# What counts for a problem that several checks speak of: a `pass` outweighs a check that has nothing to compare.
_SEVERITY = (Status.FAIL, Status.PASS, Status.ERROR, Status.UNSCORABLE)


def _problem_verdict(
    problem_id: str, check: str, case: str, verdict: str, reason: str, detail: str | None, version: str
) -> ProblemVerdict:
    status, reason = Status(verdict), sys.intern(reason)
    score = {Status.PASS: 1.0, Status.FAIL: 0.0}.get(status)
    said = f"{case}_fails:{reason}" if status == Status.FAIL else reason
    shown = f"{check}: {detail or reason}" if status == Status.FAIL else None
    return ProblemVerdict(problem_id, NAME, version, status, score, said, shown)


def _audits(dataset: Dataset, checks: Sequence[Check]) -> list[Manifest]:
    found = [dataset.read_manifest(_path(c, m)) for c in checks for m in dataset.manifests(PROBLEMS)]
    return [manifest for manifest in found if manifest is not None]


def _further_trials(problems: Sequence[Problem], rules: AuditRules) -> Iterator[Trial]:
    """The golds in other words, and the wrong answers."""
    neighbours = _neighbours(problems)
    for problem in problems:
        others = neighbours[problem.source]
        others.rotate(-1)
        gold = problem.gold or ""
        right = [] if problem.domain == "code" else spellings(gold)
        for made in right:
            yield Trial(problem, made.case, Status.PASS, made.answer, made.thought)
        for made in _wrong_answers(problem, others, rules) if rules.corruptions else ():
            yield Trial(problem, made.case, Status.FAIL, made.answer, made.thought)


def _wrong_answers(problem: Problem, others: deque[str], rules: AuditRules) -> list[Corruption]:
    gold = problem.gold or ""
    if problem.domain == "code":
        return wrong_programs(gold, rules.mutants, _entry(problem))
    nearest = (others[place] for place in range(min(len(others), NEIGHBOURS)))
    return corruptions(gold, other_answer(gold, nearest))


def _entry(problem: Problem) -> str | None:
    """The function that the problem's tests call; None where they call none, or cannot be read."""
    try:
        return read_any_tests(problem.tests or "").entry or None
    except ValueError:
        return None


def _neighbours(problems: Sequence[Problem]) -> dict[str, deque[str]]:
    """By source the golds in order; turned by one for each problem, they begin with the problem's next."""
    golds: dict[str, deque[str]] = {}
    for problem in problems:
        golds.setdefault(problem.source, deque()).append(problem.gold or "")
    return golds


def _judged(pool: VerifierPool, trials: Sequence[Trial]) -> list[tuple[Trial, Audit]]:
    (check,) = pool.checks
    timed = pool.run([_scored(trial) for trial in trials])
    return [(t, _row(t, check, *verdict)) for t, (verdict,) in zip(trials, timed, strict=True)]


def _scored(trial: Trial) -> Scored:
    problem = trial.problem
    return Scored(
        text=completion(problem.domain, trial.answer, trial.thought),
        gold=problem.gold,
        prompt=problem.prompt,
        tests=problem.tests,
        domain=problem.domain,
        problem_id=problem.problem_id,
        reasoning=trial.thought,
        answer=trial.answer,
    )


def _row(trial: Trial, check: Check, judgement: Judgement, milliseconds: float) -> Audit:
    return Audit(
        problem_id=trial.problem.problem_id,
        source=trial.problem.source,
        check=check.name,
        version=check.version,
        case=trial.case,
        expected=trial.expected,
        verdict=judgement.verdict,
        reason=judgement.reason,
        answer=trial.answer[:_LONGEST],
        detail=judgement.detail,
        milliseconds=milliseconds,
    )


def _batches(dataset: Dataset, file: Manifest, chosen: frozenset[str] | None) -> Iterator[list[Problem]]:
    """The chosen problems of one file, a batch at a time."""
    with pq.ParquetFile(dataset.file(file.relative)) as parquet:
        for batch in parquet.iter_batches(BATCH, columns=PROBLEM_SCHEMA.names):
            rows: list[Problem] = from_table(pa.Table.from_batches([batch]), Problem)
            wanted = [problem for problem in rows if chosen is None or problem.problem_id in chosen]
            if wanted:
                yield wanted


def _is_audited(
    dataset: Dataset, file: Manifest, check: Check, rules: AuditRules, chosen: frozenset[str] | None
) -> bool:
    found = dataset.read_manifest(_path(check, file))
    if found is None or found.fingerprint != _fingerprint(check, rules):
        return False
    return found.extra == {"tie": _tie(file, chosen), "errors": 0}


def _path(check: Check, file: Manifest) -> str:
    return f"{AUDITS}/{check.name}-{file.shard:06d}.parquet"


def _fingerprint(check: Check, rules: AuditRules) -> str:
    return content_hash(NAME, RULES, check.name, check.version, rules.corruptions, rules.mutants, digits=12)


def _tie(file: Manifest, chosen: frozenset[str] | None) -> str:
    return content_hash(file.sha256, None if chosen is None else sorted(chosen), digits=12)


def _wrong(rows: Sequence[Audit]) -> int:
    """Verdicts that a check should not have given, for the progress bar."""
    return sum(row.verdict != row.expected and row.verdict in (Status.PASS, Status.FAIL) for row in rows)
