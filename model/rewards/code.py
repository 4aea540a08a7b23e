"""Does the completion's program do what the problem's tests ask for?

In order (parts in `programs/`): the program is taken from the text (`program.py`), the tests are read (`tests.py`, or
as others keep them, `foreign_tests.py`), the program runs on each in the sandbox (`run.py`, `model/sandbox/`), outputs
are compared outside it (`checkers.py`). A program that passed is run again under another hash seed, and on standard
input in the reverse order. The score is the share of tests that passed; only all of them are a pass.

Reasons. pass: passed. fail: no_program, wrong_answer, runtime_error, syntax_error, time_limit, memory_limit,
output_limit, unsupported_import (a module that is neither of the standard library nor allowed by the problem), flaky
(passed, and did not when run again), unfinished (the sample's time was up). The first test that failed gives the
reason. unscorable: other_domain, no_tests, bad_tests, and unsupported_import in tier C, which lacks modules that
others have. error: sandbox_failed, checker_failed. The detail is JSON: the sandbox's tier as `isolation`, the counts,
one letter per test and what the first failed one said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from model.errors import CheckError, SandboxError
from model.rewards.check import Judgement, Scored, errored, failed, passed, unscorable
from model.rewards.programs.foreign_tests import read_any_tests
from model.rewards.programs.program import extract_program
from model.rewards.programs.run import Budget, Outcome, Result, run_tests
from model.rewards.programs.tests import CodeTests
from model.rewards.settings import CheckSettings, CodeSettings
from model.rewards.versions import version_string

if TYPE_CHECKING:
    from model.sandbox import Limits, Sandbox

_SLACK_SECONDS = 15.0  # starting a sandbox, a custom checker, a busy machine
_TESTS_SHOWN = 200
_FIRST_SEED, _SECOND_SEED = 0, 20_201

_LETTERS = {
    Outcome.PASSED: "P",
    Outcome.WRONG_ANSWER: "W",
    Outcome.RUNTIME_ERROR: "E",
    Outcome.SYNTAX_ERROR: "S",
    Outcome.TIME_LIMIT: "T",
    Outcome.MEMORY_LIMIT: "M",
    Outcome.OUTPUT_LIMIT: "O",
    Outcome.UNFINISHED: "-",
    Outcome.UNSUPPORTED_IMPORT: "I",
    Outcome.CHECKER_FAILED: "C",
}


def judge_results(results: Sequence[Result], isolation: str) -> Judgement:
    """The verdict on the results of all tests of one program (at least one)."""
    score = sum(result.outcome is Outcome.PASSED for result in results) / len(results)
    detail = _detail(results, isolation)
    not_passed = [result.outcome for result in results if result.outcome is not Outcome.PASSED]
    faults = [outcome for outcome in not_passed if not _is_excused(outcome, isolation)]
    if faults:
        return failed(faults[0].value, score, detail)
    if Outcome.CHECKER_FAILED in not_passed:
        return errored(Outcome.CHECKER_FAILED.value, detail)
    if not_passed:
        return unscorable(Outcome.UNSUPPORTED_IMPORT.value, detail)
    return passed(Outcome.PASSED.value, 1.0, detail)


def _is_excused(outcome: Outcome, isolation: str) -> bool:
    """Whether a test that was not passed says nothing about the program."""
    return outcome is Outcome.CHECKER_FAILED or (outcome is Outcome.UNSUPPORTED_IMPORT and isolation == "C")


def judge_again(first: Judgement, second: Judgement) -> Judgement:
    """The verdict on a program that passed and was run again: `flaky` where it did not pass twice."""
    if second.reason in (Outcome.PASSED, Outcome.UNFINISHED):
        return first if second.reason == Outcome.PASSED else second
    if second.score is None:
        return second
    return failed("flaky", second.score, second.detail)


def _detail(results: Sequence[Result], isolation: str) -> str:
    letters = "".join(_LETTERS[result.outcome] for result in results)
    told = {"isolation": isolation, "passed": letters.count("P"), "of": len(letters), "tests": letters[:_TESTS_SHOWN]}
    place = next((place for place, result in enumerate(results) if result.outcome is not Outcome.PASSED), None)
    if place is None:
        return json.dumps(told)
    outcome, said = results[place].outcome, results[place].said
    return json.dumps({**told, "first": {"test": place + 1, "reason": outcome.value, "said": said}})


# Replicas of one problem come one after the other: one reading serves them all.
@lru_cache(maxsize=16)
def _tests(text: str) -> CodeTests | str:
    """The tests, or why they cannot be read."""
    try:
        return read_any_tests(text)
    except ValueError as error:
        return str(error)


class CodeCheck:
    """The check `code`. It owns up to four sandboxes (with numpy or without, one per hash seed): `close` ends them.

    `timeout_seconds` is the longest that one call may take, its two runs included.
    """

    name = "code"

    def __init__(self, settings: CheckSettings) -> None:
        self._settings = settings.code
        self.version = version_string(2, self._settings, CodeSettings())
        runs = 2 if self._settings.rerun_passes else 1
        self.timeout_seconds = runs * (self._settings.total_seconds + self._settings.wall_seconds) + _SLACK_SECONDS
        self._sandboxes: dict[tuple[bool, int], Sandbox] = {}

    def warm_up(self) -> None:
        """Start the sandbox. CheckError, with what is missing, where none can be had on this machine."""
        try:
            self._sandbox(numpy=False, seed=_FIRST_SEED)
        except SandboxError as error:
            raise CheckError(f"the check `code` has no sandbox here: {error}") from error

    def close(self) -> None:
        """End the sandboxes; the next call starts new ones."""
        while self._sandboxes:
            self._sandboxes.popitem()[1].close()

    def __call__(self, item: Scored) -> Judgement:
        if item.domain != "code":
            return unscorable("other_domain")
        if not item.tests or not item.tests.strip():
            return unscorable("no_tests")
        tests = _tests(item.tests)
        if isinstance(tests, str):
            return unscorable("bad_tests", tests[:500])
        try:
            return self._judge(item.text, tests)
        except SandboxError as error:
            self.close()
            return errored("sandbox_failed", str(error)[:500])

    def _judge(self, text: str, tests: CodeTests) -> Judgement:
        program = extract_program(text, tests.entry)
        isolation = self._sandbox(tests.numpy, _FIRST_SEED).tier.value
        if program is None:
            return failed("no_program", detail=json.dumps({"isolation": isolation}))
        first = self._run(program, tests)
        if first.reason != Outcome.PASSED or not self._settings.rerun_passes:
            return first
        return judge_again(first, self._run(program, tests, again=True))

    def _run(self, program: str, tests: CodeTests, *, again: bool = False) -> Judgement:
        """`again`: under another hash seed, and with the inputs in reverse."""
        sandbox = self._sandbox(tests.numpy, _SECOND_SEED if again else _FIRST_SEED)
        budget = Budget(self._settings.total_seconds, self._settings.most_timeouts or math.inf)
        results = run_tests(program, tests, sandbox, self._limits(tests), budget, backwards=again)
        return judge_results(results, sandbox.tier.value)

    def _sandbox(self, numpy: bool, seed: int) -> Sandbox:
        """The sandbox of this kind, started when first asked for. SandboxError where that does not work."""
        from model.sandbox import Sandbox, Tier

        if (numpy, seed) not in self._sandboxes:
            wanted = self._settings.isolation
            sandbox = Sandbox(
                tier=Tier(wanted) if wanted in ("A", "B", "C") else None,
                preload=("numpy",) if numpy else (),
                unsafe=wanted == "none",
                hash_seed=seed,
            )
            sandbox.start()
            self._sandboxes[numpy, seed] = sandbox
        return self._sandboxes[numpy, seed]

    def _limits(self, tests: CodeTests) -> Limits:
        from model.sandbox import Limits

        own = self._settings
        return Limits(
            cpu_seconds=tests.cpu_seconds or own.cpu_seconds,
            wall_seconds=tests.wall_seconds or own.wall_seconds,
            memory_bytes=(tests.memory_mb or own.memory_mb) << 20,
        )
