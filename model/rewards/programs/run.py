"""A program is carried out on a problem's tests: one result per test, none left out, none guessed.

The program runs in the sandbox and meets inputs only. Outputs and values come out and are compared here with what
was expected; a custom checker runs in the sandbox too, in a fork of its own that has never seen the program. A
SandboxError passes through: it says nothing about the program. What the results mean together is `code.py`'s.

A process costs ten times what a usual test in it does, so a program meets its inputs one after the other in one
process. What an input leaves behind must not cost a later one its pass: a test that is not passed there is run again
as the first of a process, until one is not passed even so; what later ones say then touches the score alone. Nor may
it earn one: to be run again tells a program that its answer was wrong, so where another answer is right then, every
test has a process of its own. So has a program that takes its time, with all of a test's limits.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from model.rewards.programs.checkers import text_matches, value_matches
from model.rewards.programs.program import defines
from model.rewards.programs.tests import Case, CodeTests
from model.sandbox import MOST_INPUTS, Call, CallResult, End, Execution, Limits

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
# What the tests that share a process may take together. Beyond it the cost of a process is nothing to a test.
_QUICK_CPU_SECONDS, _QUICK_WALL_SECONDS = 0.25, 2.0


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


def run_tests(
    program: str, tests: CodeTests, sandbox: Sandbox, limits: Limits, budget: Budget, *, backwards: bool = False
) -> list[Result]:
    """One result per case, in order; what the budget did not suffice for is `unfinished`. Raises SandboxError.

    `backwards`: the inputs are met from the last to the first. A custom checker has `limits` of its own.
    """
    if tests.mode == "call":
        return _run_calls(program, tests, sandbox, limits, budget)
    source = with_prelude(tests.prelude, program)
    if not backwards:
        return _run_stdin(source, tests, sandbox, limits, budget)
    return _run_stdin(source, replace(tests, cases=tests.cases[::-1]), sandbox, limits, budget)[::-1]


def with_prelude(prelude: str, program: str) -> str:
    """The prelude before the program; `from __future__` lines, which must come first, do."""
    if not prelude:
        return program
    future = "".join(f"{line}\n" for line in _FUTURE.findall(program))
    return f"{future}{prelude}\n{_FUTURE.sub('', program)}" if future else f"{prelude}\n{program}"


# --- stdin mode -------------------------------------------------------------------------------------------


def _run_stdin(program: str, tests: CodeTests, sandbox: Sandbox, limits: Limits, budget: Budget) -> list[Result]:
    deadline = time.monotonic() + budget.seconds
    results: list[Result] = []
    for run in (_run_together, _run_apart):
        left = replace(budget, seconds=deadline - time.monotonic())
        results += run(program, replace(tests, cases=tests.cases[len(results) :]), sandbox, limits, left)
    return results + [Result(Outcome.UNFINISHED)] * (len(tests.cases) - len(results))


def _run_together(program: str, tests: CodeTests, sandbox: Sandbox, limits: Limits, budget: Budget) -> list[Result]:
    """Results of the first cases: of all, or of those before the one at which the program took its time."""
    deadline = time.monotonic() + budget.seconds
    cpu, wall = min(limits.cpu_seconds, _QUICK_CPU_SECONDS), min(limits.wall_seconds, _QUICK_WALL_SECONDS)
    quick = replace(limits, cpu_seconds=cpu, wall_seconds=wall)
    results: list[Result] = []
    is_quick, was_wrong = True, False
    while is_quick and len(results) < len(tests.cases) and time.monotonic() < deadline:
        cases = tests.cases[len(results) :][:MOST_INPUTS]
        executions = sandbox.run(program, [case.input.encode() for case in cases], quick)
        is_quick = executions[-1].end not in _TIMEOUTS
        ended = executions if is_quick else executions[:-1]
        if ended and ended[0].end is End.SYNTAX:
            cases, ended = tests.cases[len(results) :], ended * len(tests.cases)  # it compiles for no other input
        judged = _judged(tests, cases, ended, sandbox, limits)
        if was_wrong and (not judged or judged[0].outcome is Outcome.PASSED):
            return []  # it changed its answer, or may yet
        believed = _believed(judged, results)
        was_wrong = len(believed) < len(judged) and judged[len(believed)].outcome is Outcome.WRONG_ANSWER
        results += believed
    return results


def _believed(judged: list[Result], before: list[Result]) -> list[Result]:
    """Up to the first that was not passed, unless its process was clean or one was not passed already."""
    has_failed = any(result.outcome is not Outcome.PASSED for result in [*before, *judged[:1]])
    passed = list(takewhile(lambda result: result.outcome is Outcome.PASSED, judged))
    return judged if has_failed else passed


def _run_apart(program: str, tests: CodeTests, sandbox: Sandbox, limits: Limits, budget: Budget) -> list[Result]:
    """Results of the first cases: as many as the budget suffices for."""
    deadline = time.monotonic() + budget.seconds
    executions: list[Execution] = []
    timeouts, wall = 0, limits.wall_seconds
    while (
        len(executions) < len(tests.cases) and timeouts < budget.timeouts and (left := deadline - time.monotonic()) > 0
    ):
        wall = min(limits.wall_seconds, left)
        case = tests.cases[len(executions)]
        executions += sandbox.run(program, [case.input.encode()], replace(limits, wall_seconds=wall))
        timeouts += executions[-1].end in _TIMEOUTS
    results = _judged(tests, tests.cases, executions, sandbox, limits)
    if wall < limits.wall_seconds and executions[-1].end is End.WALL_TIME:
        results[-1] = Result(Outcome.UNFINISHED)  # it had less than its time
    return results


def _judged(
    tests: CodeTests, cases: Sequence[Case], executions: Sequence[Execution], sandbox: Sandbox, limits: Limits
) -> list[Result]:
    """One result per execution, of the first cases."""
    pairs = list(zip(cases, executions, strict=False))
    results = [_execution_result(tests, *pair) for pair in pairs]
    if tests.checker.type != "custom":
        return results
    given = [(case.input, case.expected[0], _decoded(execution.stdout)) for case, execution in pairs]
    return _checked(tests, sandbox, limits, results, given)


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
    cannot be compiled, has no `check` or does not come to an end has failed itself, unless only this output does that
    to it: that must not be the program's way out. What was to be asked after it is `unfinished`.
    """
    decided = dict(enumerate(results))
    waiting = [place for place, result in decided.items() if result.outcome is Outcome.WRONG_ANSWER]
    answers = _asked(tests, sandbox, limits, [given[place] for place in waiting])
    for place, answer in zip(waiting, answers, strict=True):
        if _is_word(answer):
            decided[place] = _word_of_checker(answer, results[place])
    silent = waiting[len(list(takewhile(_is_word, answers))) :]
    for place in silent:
        (alone,) = _asked(tests, sandbox, limits, [given[place]])
        if not _is_word(alone):
            decided |= dict.fromkeys(silent[silent.index(place) :], Result(Outcome.UNFINISHED))
            decided[place] = _result_of_silence(tests, sandbox, limits, given[place], alone)
            break
        decided[place] = _word_of_checker(alone, results[place])
    return list(decided.values())


def _asked(
    tests: CodeTests, sandbox: Sandbox, limits: Limits, given: Sequence[tuple[Any, Any, Any]]
) -> list[CallResult]:
    """The checker's answers, all from one process; after one that ends the process there are none."""
    return sandbox.call(tests.checker.source, "check", [Call(each) for each in given], limits) if given else []


def _is_word(answer: CallResult) -> bool:
    return answer.end in (End.OK, End.EXCEPTION)


def _word_of_checker(answer: CallResult, result: Result) -> Result:
    if answer.end is End.OK:
        return Result(Outcome.PASSED) if answer.value is True else result
    return Result(Outcome.WRONG_ANSWER, f"checker: {answer.error}"[:_SAID])


def _result_of_silence(
    tests: CodeTests, sandbox: Sandbox, limits: Limits, given: tuple[Any, Any, Any], answer: CallResult
) -> Result:
    """Whose fault it is that the checker gave no word: the output's, where it has one on what was expected."""
    question, expected, _ = given
    said = f"checker: {answer.end}: {answer.error}"[:_SAID]
    (on_expected,) = _asked(tests, sandbox, limits, [(question, expected, expected)])
    return Result(Outcome.WRONG_ANSWER if _is_word(on_expected) else Outcome.CHECKER_FAILED, said)
