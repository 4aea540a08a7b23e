"""`stillhouse audit` through the command: the table, the quarantine, what is up to date, and refusals in one line."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.recipe import load_recipe
from tasks.catalog import connect, run_sql
from tests.fake_endpoint import FakeEndpoint

Command = Callable[..., subprocess.CompletedProcess[str]]
WriteRecipe = Callable[..., Path]
NOWHERE = "http://127.0.0.1:9/v1"  # the discard port: nothing listens there
OWN = 'audit.checks=["tests.tasks.trial_checks:Picky"]'
WITHOUT_MATH = ("verify.checks=['finish','format']", "accept.require=['finish']")


@pytest.fixture
def riddles(tmp_path: Path, write_recipe: WriteRecipe) -> Path:
    """A recipe with three problems of its own, one of which the check `picky` refuses."""
    rows = [{"prompt": f"Say {gold}.", "gold": gold} for gold in ("4", "666", "0")]
    (tmp_path / "riddles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(NOWHERE)
    head, _, tail = recipe.read_text().partition("[[problems]]")
    source = f'[[problems]]\ntype = "jsonl"\npath = "{tmp_path / "riddles.jsonl"}"\n[template]'
    recipe.write_text(head + source + tail.partition("[template]")[2])
    return recipe


def refused(done: subprocess.CompletedProcess[str], *words: str) -> bool:
    (line,) = done.stderr.strip().splitlines()
    return done.returncode == 2 and all(word in line for word in words)


def test_a_recipe_is_audited_and_then_its_dataset(stillhouse: Command, riddles: Path, tmp_path: Path) -> None:
    words = [word for override in (OWN, *WITHOUT_MATH) for word in ("--set", override)]
    first = stillhouse("audit", riddles, *words)
    assert first.returncode == 0, first.stderr
    for told in ("checks on trial", "riddles", "picky", "1 problems are quarantined", "gold answers that fail: 1"):
        assert told in first.stdout, first.stdout
    strict = stillhouse("audit", tmp_path / "dataset", "--strict")
    assert strict.returncode == 1
    assert "up to date" in strict.stderr
    assert strict.stdout.partition("all of them")[0] == first.stdout.partition("all of them")[0]
    reasons = run_sql(connect(tmp_path / "dataset"), "select reason from problem_verdicts where verdict = 'fail'")
    assert reasons.column(0).to_pylist() == ["gold_fails:beastly"]


def test_the_code_problem_of_the_documentation_is_one(
    stillhouse: Command, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "checks.md").read_text(encoding="utf-8")
    section = text.partition("## A recipe for code problems")[2].partition("\n## ")[0]
    (problem,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    (added,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    (tmp_path / "code.jsonl").write_text(json.dumps(json.loads(problem)) + "\n")
    recipe = write_recipe(NOWHERE)
    head = recipe.read_text().partition("[[problems]]")[0]
    recipe.write_text(head + added.replace('"code.jsonl"', f'"{tmp_path / "code.jsonl"}"'))
    done = stillhouse("audit", recipe, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr
    query = """select verdict, count(*) > 0, bool_or(detail like '%isolation%') from audits where "check" = 'code'
               and verdict = expected group by all order by all"""
    found = run_sql(connect(tmp_path / "dataset"), query).to_pylist()
    assert [row["verdict"] for row in found] == ["fail", "pass"]


def test_a_run_audits_before_it_generates(
    stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    done = stillhouse("run", write_recipe(endpoint.url, problems=8), "--only", "problems,audit")
    assert done.returncode == 0, done.stderr
    counts = run_sql(connect(tmp_path / "dataset"), "select count(*) from audits where \"case\" = 'gold'")
    assert counts.column(0).to_pylist() == [8]
    assert run_sql(connect(tmp_path / "dataset"), "from samples").num_rows == 0


def test_nothing_to_audit_leaves_no_trace(cli: Command, riddles: Path, tmp_path: Path) -> None:
    words = [word for override in WITHOUT_MATH for word in ("--set", override)]
    assert refused(cli("audit", riddles, *words), "no check to audit", "verify.checks")
    assert not (tmp_path / "dataset").exists()


def test_what_a_user_gets_wrong_is_told_in_one_line(cli: Command, riddles: Path, tmp_path: Path) -> None:
    assert refused(cli("audit", tmp_path / "none.toml"), "no such recipe")
    assert refused(cli("audit", tmp_path), "is not a dataset")
    assert refused(cli("audit", riddles, "--set", "audit.limit=-1"), "audit.limit")
    assert refused(cli("audit", riddles, "--set", "audit.limmit=1"), "audit.limmit", "audit.limit")
    assert refused(cli("audit", riddles, "--set", "audit.checks=['maths']"), "there is no check 'maths'")
    off = cli("run", riddles, "--only", "audit", "--set", "audit.enabled=false")
    assert refused(off, "audit.enabled is false in the recipe")


def test_accuracy_checks_are_audited_and_those_that_are_named(riddles: Path) -> None:
    assert load_recipe(riddles).audited_checks() == ["math"]
    both = load_recipe(riddles, ["audit.checks=['format','math']"])
    assert both.audited_checks() == ["math", "format"]
    assert both.has_audit()
    assert not load_recipe(riddles, WITHOUT_MATH).has_audit()
    assert not load_recipe(riddles, ["audit.enabled=false"]).has_audit()
