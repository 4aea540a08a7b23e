"""HumanEval as a built-in set: references pass the check, plain mistakes do not, and its rows are always the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from model.errors import ProblemsError, SandboxError
from model.records import Problem, Status
from model.rewards.check import Judgement, Scored
from model.rewards.code import CodeCheck
from model.rewards.programs.tests import read_tests
from model.rewards.settings import CheckSettings, CodeSettings
from model.sandbox import Sandbox
from tasks.builtin_problems import BUILTIN_SETS, builtin_rows
from tasks.human_eval_further import FURTHER_CALLS
from tasks.problems import load_problems
from tasks.sources import ProblemSource


@pytest.fixture(scope="module")
def problems() -> dict[str, Problem]:
    loaded = load_problems([ProblemSource("builtin", name="humaneval-strict")]).problems
    return {json.loads(problem.metadata)["task_id"]: problem for problem in loaded}


@pytest.fixture(scope="module")
def check() -> Iterator[CodeCheck]:
    made = CodeCheck(CheckSettings(code=CodeSettings(rerun_passes=False)))
    yield made
    made.close()


def judged(check: CodeCheck, problem: Problem, program: str) -> Judgement:
    return check(Scored(text=f"```python\n{program}\n```", tests=problem.tests, domain=problem.domain))


def test_all_references_pass(problems: dict[str, Problem], check: CodeCheck) -> None:
    assert len(problems) == BUILTIN_SETS["humaneval-strict"].size == 164
    for name, problem in problems.items():
        assert problem.domain == "code"
        assert problem.gold is not None
        judgement = judged(check, problem, problem.gold)
        assert judgement.verdict is Status.PASS, (name, judgement)


def test_an_empty_function_passes_nowhere(problems: dict[str, Problem], check: CodeCheck) -> None:
    for name, problem in problems.items():
        entry = read_tests(problem.tests or "").entry
        judgement = judged(check, problem, f"def {entry}(*args):\n    return None")
        assert judgement.verdict is Status.FAIL, name


def test_any_zero_of_a_polynomial_is_right(problems: dict[str, Problem], check: CodeCheck) -> None:
    newton = """
def find_zero(xs):
    x = 50.0
    for _ in range(10_000):
        value = sum(c * x ** i for i, c in enumerate(xs))
        slope = sum(i * c * x ** (i - 1) for i, c in enumerate(xs) if i)
        x = x - value / slope if slope else x + 1.37
        if abs(value) < 1e-9:
            break
    return x"""
    detail = json.loads(judged(check, problems["HumanEval/32"], newton).detail or "{}")
    assert detail["passed"] > 60  # from one start, Newton's steps do not always meet a zero
    assert judged(check, problems["HumanEval/32"], "def find_zero(xs):\n    return 0.0").verdict is Status.FAIL


def test_a_body_alone_completes_the_prompt(problems: dict[str, Problem], check: CodeCheck) -> None:
    assert judged(check, problems["HumanEval/53"], "    return x + y").verdict is Status.PASS


def test_own_calls_come_first_and_further_ones_after(problems: dict[str, Problem]) -> None:
    own = {row["metadata"]["task_id"]: read_tests(row["tests"]) for row in builtin_rows("humaneval")}
    for name, problem in problems.items():
        cases = read_tests(problem.tests or "").cases
        further = FURTHER_CALLS.get(name, [])
        assert cases[: len(own[name].cases)] == own[name].cases
        assert [case.args for case in cases[len(own[name].cases) :]] == further


def test_rows_are_always_the_same(problems: dict[str, Problem]) -> None:
    again = load_problems([ProblemSource("builtin", name="humaneval-strict")]).problems
    assert [problem.problem_id for problem in again] == [problem.problem_id for problem in problems.values()]


def test_without_a_sandbox_the_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Sandbox) -> None:
        raise SandboxError("no safe way to run programs here")

    monkeypatch.setattr(Sandbox, "start", refused)
    rows: Iterator[dict[str, Any]] = builtin_rows("humaneval")
    with pytest.raises(ProblemsError, match="no sandbox: no safe way"):
        next(rows)
