"""A program is carried out on a problem's tests: one result per test, none left out, none guessed.

The program runs in the sandbox and meets inputs only. Outputs and values come out and are compared here with what
was expected; a custom checker runs in the sandbox too, in a fork of its own that has never seen the program. A
SandboxError passes through: it says nothing about the program. What the results mean together is `code.py`'s.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from model.rewards.programs.checkers import text_matches, value_matches
from model.rewards.programs.program import defines
from model.rewards.programs.tests import Case, CodeTests
from model.sandbox import Call, CallResult, End, Execution, Limits

if TYPE_CHECKING:
    from model.sandbox import Sandbox

_SAID = 120  # characters of an output, a value or an error that a result keeps
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
_SOLUTION = "Solution"  # the class in which some sites want a function to be a method


class Outcome(StrEnum):
    """What became of one test."""

    PASSED = "passed"
    WRONG_ANSWER = "wrong_answer"
    RUNTIME_ERROR = "runtime_error"
    SYNTAX_ERROR = "syntax_error"
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    UNFINISHED = "unfinished"  # the sample's time was up before this test's
    UNSUPPORTED_IMPORT = "unsupported_import"  # the sandbox lacks the module
    CHECKER_FAILED = "checker_failed"  # the problem's own checker gave no word on it


_OUTCOMES = {
    End.EXCEPTION: Outcome.RUNTIME_ERROR,
    End.EXIT: Outcome.RUNTIME_ERROR,
    End.SIGNAL: Outcome.RUNTIME_ERROR,
    End.CPU_TIME: Outcome.TIME_LIMIT,
    End.WALL_TIME: Outcome.TIME_LIMIT,
    End.MEMORY: Outcome.MEMORY_LIMIT,
    End.OUTPUT: Outcome.OUTPUT_LIMIT,
    End.UNSUPPORTED: Outcome.UNSUPPORTED_IMPORT,
    End.SYNTAX: Outcome.SYNTAX_ERROR,
}


_TIMEOUTS = (End.CPU_TIME, End.WALL_TIME)


@dataclass(frozen=True, slots=True)
class Budget:
    """What all tests of one program may take together: wall seconds, and tests that ran into a time limit."""

    seconds: float = math.inf
    timeouts: float = math.inf


@dataclass(frozen=True, slots=True)
class Result:
    """One test's outcome and, where it is not a pass, what the program printed, gave or raised."""

    outcome: Outcome
    said: str = ""


def run_tests(program: str, tests: CodeTests, sandbox: Sandbox, limits: Limits, budget: Budget) -> list[Result]:
    """One result per case, in order; what the budget did not suffice for is `unfinished`. Raises SandboxError.

    A custom checker has `limits` of its own.
    """
    if tests.mode == "call":
        return _run_calls(program, tests, sandbox, limits, budget)
    return _run_stdin(with_prelude(tests.prelude, program), tests, sandbox, limits, budget)


def with_prelude(prelude: str, program: str) -> str:
    """The prelude before the program; `from __future__` lines, which must come first, do."""
    if not prelude:
        return program
    future = "".join(f"{line}\n" for line in _FUTURE.findall(program))
    return f"{future}{prelude}\n{_FUTURE.sub('', program)}" if future else f"{prelude}\n{program}"


# --- stdin mode -------------------------------------------------------------------------------------------


def _run_stdin(program: str, tests: CodeTests, sandbox: Sandbox, limits: Limits, budget: Budget) -> list[Result]:
    inputs = [case.input.encode() for case in tests.cases]
    executions, was_cut = _execute(program, inputs, sandbox, limits, budget)
    results = [_execution_result(tests, *pair) for pair in zip(tests.cases, executions, strict=False)]
    if was_cut and executions[-1].end is End.WALL_TIME:
        results[-1] = Result(Outcome.UNFINISHED)
    if tests.checker.type == "custom":
        given = [
            (case.input, case.expected[0], _decoded(e.stdout)) for case, e in zip(tests.cases, executions, strict=False)
        ]
        results = _checked(tests, sandbox, limits, results, given)
    return results + [Result(Outcome.UNFINISHED)] * (len(inputs) - len(results))


def _execute(
    program: str, inputs: Sequence[bytes], sandbox: Sandbox, limits: Limits, budget: Budget
) -> tuple[list[Execution], bool]:
    """Executions until the budget is spent, and whether the last of them had less than its wall time."""
    deadline = time.monotonic() + budget.seconds
    executions: list[Execution] = []
    timeouts, wall = 0, limits.wall_seconds
    while len(executions) < len(inputs) and timeouts < budget.timeouts and (left := deadline - time.monotonic()) > 0:
        wall = min(limits.wall_seconds, left)
        (execution,) = sandbox.run(program, [inputs[len(executions)]], replace(limits, wall_seconds=wall))
        executions.append(execution)
        timeouts += execution.end in _TIMEOUTS
        if execution.end is End.SYNTAX:
            # It will not compile for any other input.
            executions += [execution] * (len(inputs) - len(executions))
    return executions, wall < limits.wall_seconds


def _execution_result(tests: CodeTests, case: Case, execution: Execution) -> Result:
    if execution.end is not End.OK:
        return Result(_OUTCOMES[execution.end], _error_line(execution))
    output = _decoded(execution.stdout)
    # A custom checker's word comes later; until then the test has none.
    is_right = tests.checker.type != "custom" and any(text_matches(tests.checker, output, e) for e in case.expected)
    return Result(Outcome.PASSED) if is_right else Result(Outcome.WRONG_ANSWER, output[:_SAID])


def _decoded(output: bytes) -> str:
    return output.decode("utf-8", errors="replace")


def _error_line(execution: Execution) -> str:
    lines = _decoded(execution.stderr[-4096:]).strip().splitlines()
    return (execution.detail or (lines[-1] if lines else ""))[:_SAID]


# --- call mode --------------------------------------------------------------------------------------------


def _run_calls(program: str, tests: CodeTests, sandbox: Sandbox, limits: Limits, budget: Budget) -> list[Result]:
    source = with_prelude(tests.prelude, program)
    wall = min(limits.wall_seconds, budget.seconds)
    calls = [Call(case.args, case.kwargs) for case in tests.cases]
    answers = sandbox.call(source, _entry(program, tests), calls, replace(limits, wall_seconds=wall))
    pairs = list(zip(tests.cases, answers, strict=True))
    results = [_call_result(tests, *pair) for pair in pairs]
    if tests.checker.type == "custom":
        given = [(case.args, case.expected[0], answer.value) for case, answer in pairs]
        results = _checked(tests, sandbox, limits, results, given)
    return results


def _entry(program: str, tests: CodeTests) -> str:
    """The name to call: the function, or the method of `Solution` where the program has only that."""
    has_function = defines(program, tests.entry, nested=False)
    is_method = not has_function and "." not in tests.entry and defines(program, _SOLUTION, nested=False)
    return f"{_SOLUTION}.{tests.entry}" if is_method else tests.entry


def _call_result(tests: CodeTests, case: Case, answer: CallResult) -> Result:
    if answer.end is not End.OK:
        return Result(_OUTCOMES[answer.end], answer.error[:_SAID])
    is_right = tests.checker.type != "custom" and any(
        value_matches(tests.checker, answer.value, expected) for expected in case.expected
    )
    return Result(Outcome.PASSED) if is_right else Result(Outcome.WRONG_ANSWER, _shown(answer.value))


def _shown(value: Any) -> str:
    """The beginning of the value's text, without making all of it."""
    if isinstance(value, str | bytes):
        return repr(value[:_SAID])
    if isinstance(value, int) and value.bit_length() > 4 * _SAID:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple | set | frozenset | dict):
        items = ", ".join(_shown(item) for _, item in zip(range(5), value, strict=False))
        return f"{type(value).__name__} of {len(value)}: {items}"[:_SAID]
    return repr(value)[:_SAID]


# --- custom checkers --------------------------------------------------------------------------------------


def _checked(
    tests: CodeTests, sandbox: Sandbox, limits: Limits, results: list[Result], given: Sequence[tuple[Any, Any, Any]]
) -> list[Result]:
    """The results with the custom checker's word on each test that ran to its end.

    Only `True` is a pass. A checker that raises says no: it may meet anything where it expects a number. One that
    cannot be compiled, has no `check` or does not come to an end has failed itself.
    """
    asked = [place for place, result in enumerate(results) if result.outcome is Outcome.WRONG_ANSWER]
    if not asked:
        return results
    answers = sandbox.call(tests.checker.source, "check", [Call(given[place]) for place in asked], limits)
    decided = list(results)
    for place, answer in zip(asked, answers, strict=True):
        decided[place] = _word_of_checker(answer, results[place])
    return decided


def _word_of_checker(answer: CallResult, result: Result) -> Result:
    if answer.end is End.OK:
        return Result(Outcome.PASSED) if answer.value is True else result
    if answer.end is End.EXCEPTION:
        return Result(Outcome.WRONG_ANSWER, f"checker: {answer.error}"[:_SAID])
    return Result(Outcome.CHECKER_FAILED, f"{answer.end}: {answer.error}"[:_SAID])
