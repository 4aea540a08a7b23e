"""The check `code` in a real sandbox: each reason by a program of its own, and what surrounds the verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from model.errors import CheckError, SandboxError
from model.records import Status
from model.rewards.check import Judgement, Scored
from model.rewards.code import CodeCheck, judge_again, judge_results
from model.rewards.programs.run import Budget, Outcome, Result, run_tests, with_prelude
from model.rewards.programs.tests import read_tests
from model.rewards.settings import CheckSettings, CodeSettings
from model.rewards.workers.pool import VerifierPool
from model.sandbox import Limits, Sandbox, Tier

QUICK = CodeSettings(cpu_seconds=0.4, wall_seconds=2.0)
DOUBLE = "print(2 * int(input()))"
DOUBLES = {"mode": "stdin", "cases": [{"input": f"{n}\n", "output": f"{2 * n}\n"} for n in range(5)]}
SUCCESSOR = "def f(n):\n    return n + 1"
CALLS = {"mode": "call", "entry": "f", "cases": [{"args": [n], "expected": n + 1} for n in range(5)]}


@pytest.fixture(scope="module")
def check() -> Iterator[CodeCheck]:
    made = CodeCheck(CheckSettings(code=QUICK))
    made.warm_up()
    yield made
    made.close()


def item(program: str, tests: Any, **changes: Any) -> Scored:
    text = f"<think>\nHm.\n</think>\n```python\n{program}\n```"
    return Scored(text=text, tests=tests if isinstance(tests, str) else json.dumps(tests), domain="code", **changes)


def stdin(**changes: Any) -> dict[str, Any]:
    return {**DOUBLES, **changes}


def calls(**changes: Any) -> dict[str, Any]:
    return {**CALLS, **changes}


def one(given: str, output: str, **changes: Any) -> dict[str, Any]:
    return stdin(cases=[{"input": given, "output": output}], **changes)


# --- reasons ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("program", "tests", "reason", "score", "letters"), [
    (DOUBLE, DOUBLES, "passed", 1.0, "PPPPP"),
    ("print(max(4, 2 * int(input())))", DOUBLES, "wrong_answer", 0.6, "WWPPP"),
    ("n = int(input())\nprint(2 * n // (n != 3))", DOUBLES, "runtime_error", 0.8, "PPPEP"),
    ("import sys\nprint(2 * int(input()))\nsys.exit(1)", DOUBLES, "runtime_error", 0.0, "EEEEE"),
    ("import sys\nprint(2 * int(input()))\nsys.exit()", DOUBLES, "passed", 1.0, "PPPPP"),
    ("print(2 * int(input())", DOUBLES, "syntax_error", 0.0, "SSSSS"),
    ("n = int(input())\nwhile n == 2: pass\nprint(2 * n)", DOUBLES, "time_limit", 0.8, "PPTPP"),
    ("x = bytearray(10**9)\nprint(2 * int(input()))", DOUBLES, "memory_limit", 0.0, "MMMMM"),
    ("print('a' * 2_000_000)", DOUBLES, "output_limit", 0.0, "OOOOO"),
    ("import numpy\nprint(2 * int(input()))", DOUBLES, "unsupported_import", 0.0, "IIIII"),
    (SUCCESSOR, CALLS, "passed", 1.0, "PPPPP"),
    ("def f(n):\n    return n | 1", CALLS, "wrong_answer", 0.6, "PWPWP"),
    ("def f(n):\n    return n + 1 // (n != 3)", CALLS, "runtime_error", 0.8, "PPPEP"),
    ("def f(n:\n    return n + 1", CALLS, "syntax_error", 0.0, "SSSSS"),
    ("def f(n):\n    while n == 2: pass\n    return n + 1", CALLS, "time_limit", 0.4, "PPTTT"),
    ("def g(n):\n    return n + 1", CALLS, "runtime_error", 0.0, "EEEEE"),
    ("def f(n):\n    return [0] * 10**9", CALLS, "memory_limit", 0.0, "MMMMM"),
])  # fmt: skip
def test_reasons(
    check: CodeCheck, program: str, tests: dict[str, Any], reason: str, score: float, letters: str
) -> None:
    judgement = check(item(program, tests))
    detail = json.loads(judgement.detail or "{}")
    assert (judgement.reason, judgement.score, detail["tests"]) == (reason, score, letters)
    assert judgement.verdict is (Status.PASS if reason == "passed" else Status.FAIL)
    assert (detail["of"], detail["passed"]) == (5, letters.count("P"))
    assert detail["isolation"] in ("A", "B", "C")


def test_the_first_failed_test_is_told(check: CodeCheck) -> None:
    detail = json.loads(check(item("n = int(input())\nprint(7 if n == 3 else 2 * n)", DOUBLES)).detail or "")
    assert detail["first"] == {"test": 4, "reason": "wrong_answer", "said": "7\n"}
    detail = json.loads(check(item("def f(n):\n    return {'n': [n] * 1000}", CALLS)).detail or "")
    assert detail["first"]["said"].startswith("dict of 1: 'n'")


@pytest.mark.parametrize(("changed", "verdict", "reason"), [
    ({"domain": "math"}, Status.UNSCORABLE, "other_domain"), ({"tests": None}, Status.UNSCORABLE, "no_tests"),
    ({"tests": " "}, Status.UNSCORABLE, "no_tests"), ({"tests": "{}"}, Status.UNSCORABLE, "bad_tests"),
    ({"text": "<think>\n</think>\nI do not know."}, Status.FAIL, "no_program"),
    ({"text": ""}, Status.FAIL, "no_program"),
    ({"text": "```python\nx = '\ud800'\n```"}, Status.FAIL, "syntax_error"),
    ({"text": "```python\n\0\n```"}, Status.FAIL, "syntax_error"),
    ({"text": "```python\n" + "(" * 100_000 + "\n```"}, Status.FAIL, "syntax_error"),
    ({"text": "```python\n" + "-" * 100_000 + "1\n```"}, Status.FAIL, None),
])  # fmt: skip
def test_items_without_a_program_or_tests(check: CodeCheck, changed: Any, verdict: Status, reason: str | None) -> None:
    judgement = check(replace(item(DOUBLE, DOUBLES), **changed))
    assert judgement.verdict is verdict
    assert reason in (judgement.reason, None)


def test_why_tests_are_bad_is_told(check: CodeCheck) -> None:
    judgement = check(item(DOUBLE, stdin(case=[])))
    assert (judgement.reason, judgement.score) == ("bad_tests", None)
    assert "unknown key 'case'" in (judgement.detail or "")


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(("args", "expected", "entry"), [
    (f"[{nested(90)}]", "1", "f"), (f"[{nested(900)}]", "1", "f"), (f"[{nested(50_000)}]", "1", "f"),
    ("[1]", nested(90), "f"), ("[1]", nested(900), "f"), ("[1]", '{"$dict": [[1, ' * 30 + "2" + "]]}" * 30, "f"),
    ('[{"$int": "' + "f" * 3_000_000 + '"}]', "1", "f"), ("[1]", "1", "f" * 100_000),
])  # fmt: skip
def test_what_cannot_travel_into_the_sandbox_is_bad_tests(
    check: CodeCheck, args: str, expected: str, entry: str
) -> None:
    """An error would be had again by every `rerun --errors`, and never mend."""
    tests = f'{{"mode": "call", "entry": "{entry}", "cases": [{{"args": {args}, "expected": {expected}}}]}}'
    judgement = check(item("def f(x):\n    return 1", tests))
    assert (judgement.verdict, judgement.reason) == (Status.UNSCORABLE, "bad_tests")


def test_values_nested_as_deep_as_tests_may_be_do_travel(check: CodeCheck) -> None:
    value = nested(86)
    tests = f'{{"mode": "call", "entry": "f", "cases": [{{"args": [{value}], "expected": {value}}}]}}'
    assert check(item("def f(x):\n    return x", tests)).reason == "passed"
    foreign = json.dumps({"inputs": [[json.loads(value)]], "outputs": [json.loads(value)], "fn_name": "f"})
    assert check(item("def f(x):\n    return x", foreign)).reason == "passed"


# --- what tests can ask for ---------------------------------------------------------------------------------


def test_accepted_alternatives_and_checkers(check: CodeCheck) -> None:
    either = stdin(cases=[{"input": "", "output": "1", "accept": ["2"]}])
    assert [check(item(f"print({n})", either)).reason for n in (1, 2, 3)] == ["passed", "passed", "wrong_answer"]
    numeric = one("", "0.333333", checker={"type": "numeric", "tolerance": 1e-3})
    assert [check(item(f"print({n})", numeric)).reason for n in ("1/3", "0.34")] == ["passed", "wrong_answer"]
    unordered = calls(cases=[{"args": [0], "expected": [1, 2]}], checker={"type": "unordered"})
    assert check(item("def f(n):\n    return [2, 1]", unordered)).reason == "passed"


CUSTOM = {
    "type": "custom",
    "source": "def check(input, expected, output):\n    return sum(map(int, output.split())) == 10",
}


def test_a_custom_checker_of_outputs(check: CodeCheck) -> None:
    tests = one("", "5 5", checker=CUSTOM)
    assert check(item("print(1, 9)", tests)).reason == "passed"
    assert check(item("print(1, 8)", tests)).reason == "wrong_answer"
    raised = check(item("print('many')", tests))
    assert (raised.verdict, raised.reason) == (Status.FAIL, "wrong_answer")
    assert "ValueError" in (raised.detail or "")


def test_a_custom_checker_of_values_sees_input_and_expected(check: CodeCheck) -> None:
    source = "def check(input, expected, output):\n    return output ** 2 == input[0] and expected == 2"
    tests = calls(cases=[{"args": [4], "expected": 2}], checker={"type": "custom", "source": source})
    assert check(item("def f(n):\n    return -2", tests)).reason == "passed"
    assert check(item("def f(n):\n    return 3", tests)).reason == "wrong_answer"


@pytest.mark.parametrize("body", ["while True: pass", "raise SystemExit", "pass\ndef check(:"])
def test_a_custom_checker_that_fails_is_an_error(check: CodeCheck, body: str) -> None:
    source = f"def check(input, expected, output):\n    {body}"
    judgement = check(item(DOUBLE, one("1", "2", checker={"type": "custom", "source": source})))
    assert (judgement.verdict, judgement.reason) == (Status.ERROR, "checker_failed")


@pytest.mark.parametrize("value", ["1", "'yes'", "[True]", "None"])
def test_only_true_is_a_custom_checkers_yes(check: CodeCheck, value: str) -> None:
    source = f"def check(input, expected, output):\n    return {value}"
    assert check(item(DOUBLE, one("1", "2", checker={"type": "custom", "source": source}))).verdict is Status.FAIL


def test_the_program_cannot_reach_its_custom_checker(check: CodeCheck) -> None:
    program = "import builtins\nbuiltins.sum = lambda *a: 10\nbuiltins.check = lambda *a: True\nprint(1)"
    assert check(item(program, one("", "5 5", checker=CUSTOM))).reason == "wrong_answer"


def test_numpy_where_the_problem_says_so(check: CodeCheck) -> None:
    program = "import numpy as np\nprint(int(np.sum(np.arange(2)) + 1) * int(input()))"
    assert check(item(program, stdin(numpy=True))).reason == "passed"


def test_limits_of_the_problem(check: CodeCheck) -> None:
    slow = "import time\nt = time.process_time()\nwhile time.process_time() < t + 0.7: pass\nprint(1)"
    assert check(item(slow, one("", "1"))).reason == "time_limit"
    assert check(item(slow, one("", "1", cpu_seconds=3, wall_seconds=20))).reason == "passed"
    large = "x = bytearray(200_000_000)\nprint(1)"
    assert check(item(large, one("", "1", memory_mb=100))).reason == "memory_limit"
    assert check(item(large, one("", "1", memory_mb=300, cpu_seconds=3, wall_seconds=20))).reason == "passed"


def test_a_prelude_stands_before_the_program(check: CodeCheck) -> None:
    tests = calls(prelude="import math\ndef f(n):\n    '''n + 1'''\n")
    assert check(item("    return math.ceil(n + 0.5)", tests)).reason == "passed"
    future = 'from __future__ import annotations\ndef f(n: "Any") -> int:\n    return n + 1'
    assert check(item(future, tests)).reason == "passed"
    assert with_prelude("", SUCCESSOR) == SUCCESSOR


def test_a_method_of_solution_is_found(check: CodeCheck) -> None:
    program = "class Solution:\n    def f(self, n):\n        return n + 1"
    assert check(item(program, CALLS)).reason == "passed"
    assert check(item(program, calls(entry="Solution.f"))).reason == "passed"


def test_tests_of_other_collections(check: CodeCheck) -> None:
    assert check(item(DOUBLE, {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]})).reason == "passed"
    assert check(item(SUCCESSOR, {"inputs": [[1]], "outputs": [[2]], "fn_name": "f"})).reason == "passed"


# --- the second run, budgets ----------------------------------------------------------------------------------

SET_ORDER = "print(*{'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})"


def test_what_depends_on_the_hash_seed_is_flaky(check: CodeCheck) -> None:
    """The order of a set under the first seed, as another interpreter gives it, is not that under the second."""
    order = subprocess.run(
        [sys.executable, "-c", SET_ORDER], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    ).stdout
    judgement = check(item(SET_ORDER, one("", order)))
    assert (judgement.verdict, judgement.reason) == (Status.FAIL, "flaky")
    lenient = CodeCheck(CheckSettings(code=replace(QUICK, rerun_passes=False)))
    assert lenient(item(SET_ORDER, one("", order))).reason == "passed"
    lenient.close()


def test_the_second_runs_word() -> None:
    good, bad = Result(Outcome.PASSED), Result(Outcome.WRONG_ANSWER)
    passed, wrong = judge_results([good], "A"), judge_results([good, bad], "A")
    assert judge_again(passed, passed) is passed
    assert judge_again(passed, wrong).reason == "flaky"
    assert judge_again(passed, judge_results([Result(Outcome.UNFINISHED)], "A")).reason == "unfinished"
    assert judge_again(passed, judge_results([Result(Outcome.CHECKER_FAILED)], "A")).verdict is Status.ERROR


@pytest.mark.parametrize(("outcomes", "isolation", "verdict", "reason"), [
    ("passed passed", "A", Status.PASS, "passed"), ("passed unfinished", "A", Status.FAIL, "unfinished"),
    ("checker_failed wrong_answer", "A", Status.FAIL, "wrong_answer"),
    ("passed checker_failed", "A", Status.ERROR, "checker_failed"),
    ("passed unsupported_import", "C", Status.UNSCORABLE, "unsupported_import"),
    ("passed unsupported_import", "B", Status.FAIL, "unsupported_import"),
    ("unsupported_import time_limit", "C", Status.FAIL, "time_limit"),
])  # fmt: skip
def test_results_together(outcomes: str, isolation: str, verdict: Status, reason: str) -> None:
    judgement = judge_results([Result(Outcome(outcome)) for outcome in outcomes.split()], isolation)
    assert (judgement.verdict, judgement.reason) == (verdict, reason)


def test_time_outs_and_time_are_bounded() -> None:
    """The loop takes its 0.2 s of CPU until the budget is spent; what is left then was not tried."""
    endless = "while True: pass"
    tests, limits = read_tests(json.dumps(DOUBLES)), Limits(cpu_seconds=0.2, wall_seconds=5.0)
    with Sandbox() as sandbox:
        by_count = run_tests(endless, tests, sandbox, limits, Budget(timeouts=2))
        assert [result.outcome for result in by_count] == [Outcome.TIME_LIMIT] * 2 + [Outcome.UNFINISHED] * 3
        asleep = "import time\ntime.sleep(60)"
        by_time = run_tests(asleep, tests, sandbox, limits, Budget(seconds=0.5))
        assert [result.outcome for result in by_time] == [Outcome.UNFINISHED] * 5


# --- the sandbox ------------------------------------------------------------------------------------------------


class BrokenSandbox:
    """Fails as a sandbox does whose zygote dies again and again."""

    tier = Tier.B

    def run(self, *_: Any) -> Any:
        raise SandboxError("the sandbox itself failed, twice")

    def close(self) -> None:
        pass


def test_a_failing_sandbox_is_an_error_and_the_next_sample_gets_a_new_one() -> None:
    check = CodeCheck(CheckSettings(code=QUICK))
    check._sandboxes[False, 0] = BrokenSandbox()  # type: ignore[assignment]
    broken = check(item(DOUBLE, DOUBLES))
    assert (broken.verdict, broken.reason, broken.score) == (Status.ERROR, "sandbox_failed", None)
    assert "twice" in (broken.detail or "")
    assert check(item(DOUBLE, DOUBLES)).reason == "passed"
    check.close()


def test_no_sandbox_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Sandbox) -> None:
        raise SandboxError("no safe way to run programs here; allow user namespaces")

    monkeypatch.setattr(Sandbox, "start", refused)
    check = CodeCheck(CheckSettings())
    with pytest.raises(CheckError, match="no sandbox here: no safe way"):
        check.warm_up()
    assert check(item(DOUBLE, DOUBLES)).reason == "sandbox_failed"


def test_no_isolation_is_stamped_on_the_verdict() -> None:
    check = CodeCheck(CheckSettings(code=replace(QUICK, isolation="none")))
    assert json.loads(check(item(DOUBLE, DOUBLES)).detail or "")["isolation"] == "none"
    assert json.loads(check(item("", DOUBLES)).detail or "")["isolation"] == "none"
    check.close()


def test_a_value_too_deep_for_the_custom_checker_is_a_fail(check: CodeCheck) -> None:
    """An `error` would be the program's to choose."""
    source = "def check(input, expected, output):\n    return True"
    tests = calls(cases=[{"args": [1], "expected": 2}], checker={"type": "custom", "source": source})
    deep = "def f(n):\n    value = n\n    for _ in range(99):\n        value = [value]\n    return value"
    assert check(item(deep, tests)).verdict is Status.FAIL


def test_settings_are_in_version_and_time_out() -> None:
    default, other = CodeCheck(CheckSettings()), CodeCheck(CheckSettings(code=QUICK))
    assert default.version == "2"
    assert other.version.startswith("2+")
    assert default.timeout_seconds > 2 * CodeSettings().total_seconds


def test_in_the_verifier_pool() -> None:
    items = [item(DOUBLE, DOUBLES), item("print(1)", DOUBLES), item("import os\nos.kill(1, 9)", DOUBLES)] * 4
    with VerifierPool(["code"], workers=2) as pool:
        judgements: list[Judgement] = [row["code"] for row in pool.judge(items)]
    assert [judgement.reason for judgement in judgements] == ["passed", "wrong_answer", "runtime_error"] * 4
