"""Tests that share a process get the results that each would have had in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

import pytest

from model.rewards.check import Scored
from model.rewards.code import CodeCheck
from model.rewards.programs.run import Budget, Outcome, run_tests
from model.rewards.programs.tests import CodeTests
from model.rewards.programs.tests import tests_of as read
from model.rewards.settings import CheckSettings
from model.sandbox import Execution, Limits, Sandbox

P, W, E, T, U = (
    Outcome.PASSED,
    Outcome.WRONG_ANSWER,
    Outcome.RUNTIME_ERROR,
    Outcome.TIME_LIMIT,
    Outcome.UNFINISHED,
)
LIMITS, ENOUGH = Limits(cpu_seconds=0.5, wall_seconds=3.0), Budget()
ECHO = "print(input())"
# Fails for every input but the first of its process.
LEAKS = "import math\nassert not hasattr(math, 'met')\nmath.met = 1\nprint(input())"
# Right for one input after the other only because of what earlier ones left.
COUNTS = "import math\nmath.met = getattr(math, 'met', 0) + 1\nprint(math.met)"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


class Counting(Sandbox):
    """Counts the processes that ran the program."""

    processes = 0

    def run(
        self, program: str, inputs: Sequence[bytes], limits: Limits = LIMITS, argv: Sequence[str] = ()
    ) -> list[Execution]:
        self.processes += 1
        return super().run(program, inputs, limits, argv)


@pytest.fixture(scope="module")
def shared() -> Iterator[Counting]:
    with Counting() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared: Counting) -> Counting:
    shared.processes = 0
    return shared


def _tests(*outputs: object, checker: dict[str, object] | None = None) -> CodeTests:
    """Inputs 1, 2, … with these outputs."""
    cases = [{"input": f"{place}\n", "output": f"{output}"} for place, output in enumerate(outputs, 1)]
    return read({"mode": "stdin", "cases": cases} | ({"checker": checker} if checker else {}))


def _outcomes(
    program: str, tests: CodeTests, sandbox: Sandbox, budget: Budget = ENOUGH, backwards: bool = False
) -> list[Outcome]:
    return [result.outcome for result in run_tests(program, tests, sandbox, LIMITS, budget, backwards=backwards)]


def test_a_right_program_has_one_process_for_all_tests(sandbox: Counting) -> None:
    assert _outcomes(ECHO, _tests(*range(1, 21)), sandbox) == [P] * 20
    assert sandbox.processes == 1


def test_more_tests_than_a_process_takes(sandbox: Counting) -> None:
    assert _outcomes(ECHO, _tests(*range(1, 61)), sandbox) == [P] * 60
    assert sandbox.processes == 3


def test_what_an_input_leaves_costs_no_later_one_its_pass(sandbox: Counting) -> None:
    assert _outcomes(LEAKS, _tests(1, 2, 3, 4), sandbox) == [P] * 4
    assert sandbox.processes == 4


def test_a_failure_in_a_clean_process_settles_it(sandbox: Counting) -> None:
    assert _outcomes(ECHO, _tests(0, 2, 0, 4), sandbox) == [W, P, W, P]
    assert sandbox.processes == 1


def test_a_failure_after_others_is_tried_in_a_clean_process(sandbox: Counting) -> None:
    assert _outcomes(ECHO, _tests(1, 2, 0, 4, 0), sandbox) == [P, P, W, P, W]
    assert sandbox.processes == 2


def test_the_first_failure_is_the_one_that_a_process_of_its_own_has(sandbox: Counting) -> None:
    """The leak fails at 2 in the shared process, the program itself at 3."""
    program = f"{LEAKS.replace('print(input())', 'x = int(input())')}\nprint(0 if x == 3 else x)"
    assert _outcomes(program, _tests(1, 2, 3, 4), sandbox)[:3] == [P, P, W]


def test_an_answer_that_changes_when_it_is_asked_for_again_is_judged_afresh(sandbox: Counting) -> None:
    """Being run again tells a program that its answer was wrong: with two to choose from it would always win."""
    program = "import math\nx = int(input())\nprint('NO' if not hasattr(math, 'met') else 'YES')\nmath.met = 1"
    assert _outcomes(program, _tests("NO", "YES", "NO", "YES"), sandbox) == [P, W, P, W]
    assert W in _outcomes(program, _tests("NO", "YES", "NO", "YES"), sandbox, backwards=True)


def test_what_does_not_compile_is_compiled_once(sandbox: Counting) -> None:
    assert _outcomes("x = = 1", _tests(*range(40)), sandbox) == [Outcome.SYNTAX_ERROR] * 40
    assert sandbox.processes == 1


@pytest.mark.parametrize(
    ("limits", "program"),
    [
        (Limits(cpu_seconds=0.1), "import time\nwhile time.process_time() < 0.2: pass\nprint(input())"),
        (Limits(wall_seconds=0.2), "import time; time.sleep(0.5); print(input())"),
    ],
)
def test_limits_below_those_of_a_quick_program_hold(sandbox: Counting, limits: Limits, program: str) -> None:
    results = run_tests(program, _tests(1, 2), sandbox, limits, ENOUGH)
    assert [result.outcome for result in results] == [T, T]


def test_an_output_that_is_too_much_for_the_checker_is_wrong(sandbox: Counting) -> None:
    """The checker's fault would be an error, which would be the program's to choose."""
    source = (
        "def check(given, expected, output):\n    while int(output) > 9: pass\n    return int(output) == int(expected)"
    )
    checker = {"type": "custom", "source": source}
    program = "x = input(); print('99' if x == '2' else x)"
    assert _outcomes(program, _tests(1, 2, 3, checker=checker), sandbox) == [P, W, U]
    assert _outcomes("print(99)", _tests(1, 2, checker=checker), sandbox) == [W, U]
    assert _outcomes(ECHO, _tests(1, 22, checker=checker), sandbox)[1] is W
    never = {"type": "custom", "source": "def check(given, expected, output):\n    while True: pass"}
    assert _outcomes(ECHO, _tests(1, 2, checker=never), sandbox) == [Outcome.CHECKER_FAILED, U]


def test_a_crash_costs_its_own_test_only(sandbox: Counting) -> None:
    program = "x = int(input())\nif x == 2:\n  import ctypes; ctypes.string_at(0)\nprint(x)"
    assert _outcomes(program, _tests(1, 2, 3), sandbox) == [P, E, P]


def test_a_program_that_takes_its_time_has_all_of_it_for_each_test(sandbox: Counting) -> None:
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(input())"
    assert _outcomes(program, _tests(1, 2), sandbox) == [P, P]


def test_a_time_limit_is_reached_by_the_test_that_reaches_it(sandbox: Counting) -> None:
    program = "x = int(input())\nwhile x == 2: pass\nprint(x)"
    assert _outcomes(program, _tests(1, 2, 3), sandbox) == [P, T, P]
    assert _outcomes("while True: pass", _tests(1, 2, 3), sandbox, Budget(timeouts=1)) == [T, U, U]


def test_no_time_no_results(sandbox: Counting) -> None:
    assert _outcomes(ECHO, _tests(1, 2), sandbox, Budget(seconds=0.0)) == [U, U]
    assert sandbox.processes == 0


def test_a_custom_checker_decides_before_a_test_is_tried_again(sandbox: Counting) -> None:
    checker = {"type": "custom", "source": "def check(given, expected, output): return int(output) >= int(expected)"}
    assert _outcomes(ECHO, _tests(1, 1, 3, 9, checker=checker), sandbox) == [P, P, P, W]
    assert sandbox.processes == 2


def test_backwards_is_another_order_of_running_and_the_same_of_results(sandbox: Counting) -> None:
    assert _outcomes(ECHO, _tests(1, 0, 3), sandbox, backwards=True) == [P, W, P]
    assert _outcomes(COUNTS, _tests(1, 2, 3), sandbox) == [P, P, P]
    assert _outcomes(COUNTS, _tests(1, 2, 3), sandbox, backwards=True)[2] is W


def test_right_only_after_other_inputs_is_flaky() -> None:
    cases = [{"input": "", "output": str(place)} for place in (1, 2, 3)]
    check = CodeCheck(CheckSettings())
    try:
        item = Scored(
            text=f"```python\n{COUNTS}\n```", tests=json.dumps({"mode": "stdin", "cases": cases}), domain="code"
        )
        assert check(item).reason == "flaky"
    finally:
        check.close()
