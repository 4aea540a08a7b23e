"""Checks on trial in a tiny dataset: a bad gold, an unscorable one, a weak check, and what has to be done again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from model.records import Problem, problem_id
from model.rewards.check import Check
from model.rewards.workers.pool import VerifierPool
from tasks.audit import (
    AuditRules,
    audit_file,
    audit_version,
    chosen_problems,
    completion,
    drop_other_audits,
    is_up_to_date,
    pending_files,
    write_verdicts,
)
from tasks.audit_report import audit_mistakes, audit_rates, failing_golds, quarantined, unscorable_golds
from tasks.catalog import connect, run_sql
from tasks.problem_verdicts import excluded
from tasks.progress import Ticker
from tasks.run import Run
from tasks.store import Dataset
from tests.tasks.small_dataset import write_problems

RULES = AuditRules()
WEAK, PICKY = "tests.tasks.trial_checks:Weak", "tests.tasks.trial_checks:Picky"


def question(gold: str | None, split: str = "train", domain: str = "math") -> Problem:
    prompt = f"What is {gold}, {split}?"
    return Problem(problem_id(domain, prompt, gold), domain, "riddles", prompt, gold, split=split)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    dataset = Dataset.create(tmp_path / "data")
    golds = [question("4"), question("71"), question("666"), question("0"), question("666", "held_out")]
    write_problems(dataset, [*golds, question("print(1)", domain="code")])
    return Run(dataset, "run-1")


def audit(run: Run, names: Sequence[str], rules: AuditRules = RULES) -> list[Check]:
    """Everything that is to be done, as the flow does it."""
    checks: list[Check] = []
    for name in names:
        with VerifierPool([name], workers=1) as pool:
            checks += pool.checks
            for file in pending_files(run.dataset, pool.checks[0], rules):
                audit_file.fn(run, pool, file, rules, Ticker("audit", None, "problems"))
    drop_other_audits(run.dataset, checks)
    write_verdicts(run.dataset, checks, rules, 0.0)
    return checks


def test_a_gold_that_fails_is_quarantined_with_its_reason(run: Run) -> None:
    audit(run, [PICKY])
    con = connect(run.dataset)
    bad = question("666").problem_id
    assert excluded(run.dataset, ["audit"]) == {bad: "audit"}
    assert quarantined(con) == {"train": 1, "held_out": 1}
    verdicts = run_sql(con, f"select verdict, score, reason, detail from problem_verdicts where problem_id = '{bad}'")
    assert verdicts.to_pylist() == [
        {"verdict": "fail", "score": 0.0, "reason": "gold_fails:beastly", "detail": "picky: 666"}
    ]
    assert {(row["split"], row["reason"]) for row in failing_golds(con, 10)} == {
        ("train", "beastly"),
        ("held_out", "beastly"),
    }


def test_unscorable_golds_are_listed_apart_and_other_domains_are_not(run: Run) -> None:
    audit(run, [PICKY])
    con = connect(run.dataset)
    (listed,) = unscorable_golds(con)
    assert (listed["verdict"], listed["reason"], listed["golds"], listed["example"]) == (
        "unscorable",
        "nothing",
        1,
        "0",
    )
    counts = run_sql(con, "select verdict, count(*) n from problem_verdicts group by all order by all").to_pylist()
    assert [(row["verdict"], row["n"]) for row in counts] == [("fail", 2), ("pass", 2), ("unscorable", 1)]


def test_rates_are_those_that_a_person_counts(run: Run) -> None:
    audit(run, [PICKY])
    (rates,) = audit_rates(connect(run.dataset))
    assert (rates["source"], rates["check"], rates["golds"], rates["golds_failing"]) == ("riddles", "picky", 5, 2)
    # 4 and 71 pass as they are; boxed or respelled they fail, and 666 does in all three spellings, twice.
    assert (rates["right"], rates["false_rejects"], rates["unscorable"]) == (12, 10, 1)
    assert rates["false_reject_rate"] == pytest.approx(10 / 12)
    assert (rates["false_accepts"], rates["errors"]) == (0, 0)
    assert rates["wrong"] > 20


def test_a_check_that_passes_everything_is_told_and_quarantines_nothing(run: Run) -> None:
    audit(run, [WEAK])
    con = connect(run.dataset)
    (rates,) = audit_rates(con)
    assert (rates["false_rejects"], rates["golds_failing"], rates["false_accept_rate"]) == (0, 0, 1.0)
    assert rates["golds"] == 6
    assert excluded(run.dataset, ["audit"]) == {}
    mistakes = {row["case"]: row for row in audit_mistakes(con)}
    assert {"empty", "only_in_thought", "sign_flipped", "off_by_one", "other_answer"} <= mistakes.keys()
    assert mistakes["empty"]["mistakes"] == mistakes["empty"]["answers"] == 6
    assert "mutant:constant" in mistakes


def test_math_knows_right_from_wrong(run: Run) -> None:
    audit(run, ["math"])
    (rates,) = audit_rates(connect(run.dataset))
    assert (rates["golds"], rates["false_rejects"], rates["false_accepts"], rates["errors"]) == (5, 0, 0, 0)
    assert rates["wrong"] > 25
    assert excluded(run.dataset, ["audit"]) == {}


def test_what_is_up_to_date_and_what_makes_it_stale(run: Run) -> None:
    checks = audit(run, [PICKY])
    (check,) = checks
    assert is_up_to_date(run.dataset, checks, RULES)
    assert not is_up_to_date(run.dataset, checks, AuditRules(corruptions=False))
    assert not is_up_to_date(run.dataset, checks, AuditRules(limit=2))

    write_problems(run.dataset, [question("5")], file="000001")
    assert not is_up_to_date(run.dataset, checks, RULES)
    assert [file.shard for file in pending_files(run.dataset, check, RULES)] == [1]
    before = (run.dataset.path / "audits/picky-000000.parquet").stat().st_mtime_ns
    audit(run, [PICKY])
    assert is_up_to_date(run.dataset, checks, RULES)
    assert (run.dataset.path / "audits/picky-000000.parquet").stat().st_mtime_ns == before


def test_another_version_of_a_check_is_audited_again(run: Run) -> None:
    (check,) = audit(run, [PICKY])
    newer = VerifierPool([PICKY]).checks[0]
    newer.version = "2"  # type: ignore[misc]
    assert pending_files(run.dataset, check, RULES) == []
    assert len(pending_files(run.dataset, newer, RULES)) == 1
    assert audit_version([check], RULES) != audit_version([newer], RULES)


def test_checks_that_could_not_be_carried_out_are_tried_again(run: Run) -> None:
    write_problems(run.dataset, [question("13")], file="000001")
    checks = audit(run, [PICKY])
    assert [file.shard for file in pending_files(run.dataset, checks[0], RULES)] == [1]
    assert excluded(run.dataset, ["audit"]).keys() == {question("666").problem_id}
    assert {row["verdict"]: row["golds"] for row in unscorable_golds(connect(run.dataset))} == {
        "unscorable": 1,
        "error": 1,
    }


def test_a_check_that_is_no_longer_audited_leaves_the_view(run: Run) -> None:
    audit(run, [PICKY, WEAK])
    assert {row["check"] for row in audit_rates(connect(run.dataset))} == {"picky", "weak"}
    audit(run, [WEAK])
    assert {row["check"] for row in audit_rates(connect(run.dataset))} == {"weak"}
    assert excluded(run.dataset, ["audit"]) == {}


def test_a_limit_takes_the_same_problems_every_time(run: Run) -> None:
    chosen = chosen_problems(run.dataset, 3)
    assert chosen is not None
    ids = run_sql(connect(run.dataset), "select problem_id from problems order by all").column(0).to_pylist()
    assert sorted(chosen) == ids[:3]
    audit(run, [WEAK], AuditRules(limit=3))
    assert audit_rates(connect(run.dataset))[0]["golds"] == 3


def test_without_corruptions_only_right_answers_are_tried(run: Run) -> None:
    audit(run, [WEAK], AuditRules(corruptions=False))
    cases = run_sql(connect(run.dataset), 'select distinct "case" from audits order by all').column(0).to_pylist()
    assert cases == ["boxed", "gold", "respelled"]


def test_answers_are_wrapped_as_a_model_gives_them() -> None:
    assert completion("math", "7") == "<think>\n\n</think>\n<answer>7</answer>"
    assert completion("code", "x = 1") == "<think>\n\n</think>\n<answer>\n```python\nx = 1\n```\n</answer>"
    assert completion("code", "") == "<think>\n\n</think>\n<answer></answer>"
