"""One poisoned sample of each kind changes nothing for the samples around it, and no text costs more than its length.

All checks that look at one sample are run, in a real pool. A shard of a thousand healthy samples is judged twice, once
with a poisoned one after every so many; the healthy ones' verdicts must be the same. So is a shard of a thousand
programs, whose poison is in programs, in what they print and return, and in their problems' tests. Parquet cannot store
lone surrogates, so those meet the checks only where these are called directly (as rewards); they are judged all the
same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from model.rewards.check import Judgement, Scored
from model.rewards.registry import CHECKS, build_checks
from model.rewards.settings import CheckSettings, CodeSettings, ContaminationSettings
from model.rewards.workers.pool import VerifierPool

HEALTHY = 1000
WALL_SECONDS = 10.0  # what must end needs a second or two of a core, and shares the cores with other tests
QUOTED = "A shepherd counts seven times as many sheep as dogs, and there are four dogs; how many legs is that?"
NAMES = [name for name in CHECKS if name != "code"]  # programs have a shard of their own
TEXT_CHECKS = [
    "format", "language", "mixed_language", "repetition", "long_paragraph", "code_block", "contamination", "length",
]  # fmt: skip


def healthy(number: int) -> Scored:
    thought = f"We add {number} and one to see what the sum of these two numbers is, and so we find it."
    if number % 5 == 0:
        thought += "\nDas ist nun aber wirklich nicht die Sprache, in der gefragt worden war."
    if number % 40 == 1:
        thought += f"\n{QUOTED}"
    text = f"<think>\n{thought}\n</think>\n<answer>{number + 1}</answer>"
    prompt = f"What is the sum of {number} and one?"
    return Scored(text=text, gold=str(number + (number % 7 != 0)), reasoning=thought, prompt=prompt)


def answering(answer: str, gold: str = "7") -> Scored:
    return Scored(text=f"<think>\nhm\n</think>\n<answer>{answer}</answer>", gold=gold, reasoning="hm")


def thinking(thought: str) -> Scored:
    return Scored(text=f"<think>{thought}</think><answer>7</answer>", gold="7", reasoning=thought)


# Each with what `math` has to say; None: whatever it is.
POISON: dict[str, tuple[Scored, str | None]] = {
    "NUL bytes": (answering("7\0"), "equal_string"),
    "a megabyte of NUL bytes": (thinking("\0" * 1_000_000), "equal_string"),
    "lone surrogates": (answering("7 \ud800"), None),
    "a chain of lone surrogates": (thinking("so\udfff we\ud800 " * 20_000), "equal_string"),
    "right-to-left marks": (answering("\u202e7\u202c"), "equal_string"),
    "a chain of right-to-left marks": (thinking("\u202e\u202c" * 500_000), "equal_string"),
    "ten to the nine to the nine": (answering("10^9^9"), "out_of_bounds"),
    "LaTeX bomb": (answering("\\frac{1}{" * 500 + "2" + "}" * 500), "out_of_bounds"),
    "open braces": (answering("{" * 1900), "out_of_bounds"),
    "ten thousand thoughts": (Scored(text="<think>" * 10_000, gold="7"), "no_answer"),
    "ten thousand closed thoughts": (Scored(text="<think></think>" * 10_000 + "7", gold="7"), "equal_string"),
    "fifty megabytes": (Scored(text="x" * 50_000_000 + "</think> 7", gold="7"), "equal_string"),
    "megabytes of digits": (Scored(text="7" * 5_000_000, gold="7"), "out_of_bounds"),
    "megabytes of boxes": (Scored(text="\\boxed{" * 1_000_000, gold="7"), "no_answer"),
    "many dollars": (Scored(text="$" * 1_000_000, gold="7"), None),
    "a gold that explodes": (answering("7", gold="9^{9^{9^9}}"), "gold_out_of_bounds"),
    "factorials that explode": (answering("(((9!)!)!)!"), "timed_out"),
    "a word in every script by turns": (thinking("ab 中 вг αβ עב กข " * 50_000), "equal_string"),
    "accents upon accents": (thinking("a" + "\u0301" * 1_000_000), "equal_string"),
    "a loop without end": (thinking("the " * 500_000), "equal_string"),
    "a million fences": (thinking("```\n" * 1_000_000), "equal_string"),
    "environments that never end": (thinking("\\begin{" * 500_000), "equal_string"),
    "a megabyte of blanks and tabs": (thinking(" \t" * 500_000 + "if"), "equal_string"),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> CheckSettings:
    """With a benchmark that one healthy sample in forty quotes."""
    file: Path = tmp_path_factory.mktemp("bench") / "bench.jsonl"
    file.write_text(json.dumps({"question": QUOTED}))
    return CheckSettings(contamination=ContaminationSettings(files=(str(file),)))


Rows = list[list[Judgement]]


def with_and_without(pool: VerifierPool, items: list[Scored], poison: Sequence[Scored]) -> tuple[Rows, Rows, Rows]:
    """The healthy items' judgements alone, the same in poisoned company, and those of the poison."""
    step = len(items) // len(poison)
    mixed: list[Scored] = []
    for number, poisoned in enumerate(poison):
        mixed += [*items[number * step : (number + 1) * step], poisoned]
    mixed += items[len(poison) * step :]
    rows = [[judgement for judgement, _ in row] for row in pool.run(mixed)]
    alone = [[judgement for judgement, _ in row] for row in pool.run(items)]
    places = {(step + 1) * number + step for number in range(len(poison))}
    company = [row for place, row in enumerate(rows) if place not in places]
    return alone, company, [row for place, row in enumerate(rows) if place in places]


@pytest.fixture(scope="module")
def shards(settings: CheckSettings) -> tuple[Rows, Rows, Rows]:
    items = [healthy(number) for number in range(HEALTHY)]
    with VerifierPool(NAMES, settings, workers=2, timeout_seconds=WALL_SECONDS) as pool:
        return with_and_without(pool, items, [poison for poison, _ in POISON.values()])


def test_the_healthy_samples_are_judged_as_ever(shards: Any) -> None:
    alone, company, _ = shards
    assert len(alone) == HEALTHY
    assert company == alone


def test_the_healthy_samples_are_not_all_alike(shards: Any) -> None:
    reasons = {name: {row[place].reason for row in shards[0]} for place, name in enumerate(NAMES)}
    assert reasons["language"] == {"target_language", "other_language"}
    assert reasons["mixed_language"] == {"one_language", "mixed_languages"}
    assert reasons["math"] == {"equal_string", "not_equal"}
    assert reasons["contamination"] == {"overlap", "no_overlap"}


@pytest.mark.parametrize("kind", POISON)
def test_a_poisoned_sample_gets_verdicts_with_reasons(kind: str, shards: Any) -> None:
    row = shards[2][list(POISON).index(kind)]
    reasons = [judgement.reason for judgement in row]
    expected = POISON[kind][1]
    assert expected is None or reasons[NAMES.index("math")] == expected
    assert [reason for reason in reasons if reason in ("timed_out", "worker_died", "raised", "out_of_memory")] == (
        ["timed_out"] if expected == "timed_out" else []
    )


def test_what_is_repeated_without_end_is_told(shards: Any) -> None:
    row = shards[2][list(POISON).index("a loop without end")]
    assert row[NAMES.index("repetition")].reason == "loop"
    row = shards[2][list(POISON).index("fifty megabytes")]
    assert row[NAMES.index("long_paragraph")].reason == "long_paragraph"


# --- programs ---------------------------------------------------------------------------------------------

STDIN = json.dumps({"mode": "stdin", "cases": [{"input": f"{n}\n", "output": f"{n + 1}\n"} for n in (1, 6)]})
CALL = json.dumps({"mode": "call", "entry": "f", "cases": [{"args": [n], "expected": n + 1} for n in (1, 6)]})
PROGRAMS = {
    "passed": ("print(int(input()) + 1)", "def f(n):\n    return n + 1"),
    "wrong_answer": ("print(max(3, int(input()) + 1))", "def f(n):\n    return n | 1"),
    "runtime_error": ("print(6 // (6 - int(input())) + 1)", "def f(n):\n    return n + 6 // (6 - n)"),
    "syntax_error": ("print(int(input() + 1)", "def f(n:\n    return n + 1"),
}
RIGHT, SUCCESSOR = PROGRAMS["passed"]
PATIENT = json.dumps({"mode": "stdin", "cpu_seconds": 8, "cases": [{"input": "1", "output": "2"}]})
OVERFLOW = "import sys\nsys.setrecursionlimit(10**9)\ncompile('+'.join('a' * 700_000), '', 'exec')"  # of the C stack


def programmed(program: str, tests: str = STDIN) -> Scored:
    return Scored(text=f"<think>\nhm\n</think>\n```python\n{program}\n```", tests=tests, domain="code")


def called(program: str) -> Scored:
    return programmed(program, CALL)


def posed(args: str, **further: object) -> Scored:
    """A right program, and a problem whose tests these are."""
    head = json.dumps({"mode": "call", "entry": "f", **further})
    return programmed(SUCCESSOR, f'{head[:-1]}, "cases": [{{"args": {args}, "expected": 2}}]}}')


def honest(number: int) -> Scored:
    """Three of four are right; half are whole programs, half functions."""
    reason = list(PROGRAMS)[number // 4 % 3 + 1] if number % 4 == 3 else "passed"
    return (programmed, called)[number // 2 % 2](PROGRAMS[reason][number // 2 % 2])


# Each with the reason of its verdict.
CODE_POISON: dict[str, tuple[Scored, str]] = {
    "NUL bytes in a program": (programmed(f"{RIGHT}  # \0"), "syntax_error"),
    "NUL bytes printed": (programmed("print(int(input()) + 1, '\\0' * 500_000)"), "wrong_answer"),
    "NUL bytes given": (called("def f(n):\n    return bytes(500_000)"), "wrong_answer"),
    "NUL bytes after the tests": (programmed(RIGHT, f"{STDIN}\0"), "bad_tests"),
    "a program of fifty megabytes": (programmed(f"x = '{'x' * 50_000_000}'\n{RIGHT}"), "no_program"),
    "a program of a megabyte": (programmed(f"x = '{'x' * 999_900}'\n{RIGHT}"), "passed"),
    "a line of fifty megabytes before a program": (
        Scored(text=f"{'x' * 50_000_000}</think>\n```python\n{RIGHT}\n```", tests=STDIN, domain="code"), "passed"),
    "fifty megabytes printed": (programmed("print('x' * 50_000_000)"), "output_limit"),
    "fifty megabytes given": (called("def f(n):\n    return 'x' * 50_000_000"), "output_limit"),
    "fifty megabytes of input": (
        programmed("print(len(input()))", json.dumps(
            {"mode": "stdin", "cases": [{"input": "x" * 50_000_000, "output": "50000000"}]})), "passed"),
    "fifty megabytes of bad tests": (programmed(RIGHT, "[" * 50_000_000), "bad_tests"),
    "lone surrogates in a program": (programmed(f"x = '\ud800'\n{RIGHT}"), "syntax_error"),
    "lone surrogates printed": (programmed("print('\\udfff')"), "runtime_error"),
    "lone surrogates given": (called("def f(n):\n    return '\\udfff'"), "wrong_answer"),
    "lone surrogates raised": (called("def f(n):\n    raise ValueError('\\ud800')"), "runtime_error"),
    "lone surrogates in tests": (posed('[{"$\\ud800": 1}]'), "bad_tests"),
    "ten to the nine to the nine, folded": (programmed("print(10**9**9)"), "time_limit"),
    "ten to the nine to the nine, given": (called("def f(n):\n    return n * 10**9**9"), "time_limit"),
    "ten to the nine to the nine in a checker": (
        posed("[1]", checker={"type": "custom", "source": "def check(*_):\n    return 10**9**9"}), "checker_failed"),
    "LaTeX bomb": (programmed("\\frac{1}{" * 500 + "2" + "}" * 500), "syntax_error"),
    "right-to-left marks around a program": (programmed(f"\u202e{RIGHT}\u202c"), "syntax_error"),
    "right-to-left marks printed": (programmed("print(f'\u202e{int(input()) + 1}\u202c')"), "wrong_answer"),
    "ten thousand thoughts": (
        Scored(text=f"{'<think>' * 10_000}\n```python\n{RIGHT}\n```", tests=STDIN, domain="code"), "no_program"),
    "ten thousand closed thoughts": (
        Scored(text=f"{'<think></think>' * 10_000}\n```python\n{RIGHT}\n```", tests=STDIN, domain="code"), "passed"),
    "brackets without end": (programmed("(" * 100_000), "syntax_error"),
    "signs without end": (programmed("-" * 100_000 + "1"), "memory_limit"),  # as the parser calls its own depth
    "sums without end": (programmed("x = " + "1+" * 200_000 + "1"), "syntax_error"),
    "a compiler that crashes": (programmed(OVERFLOW, PATIENT), "runtime_error"),
    "tests nested to a value's end": (posed(f"[{'[' * 900}{']' * 900}]"), "bad_tests"),
    "tests nested without end": (posed("[" * 100_000), "bad_tests"),
    "a number of a million digits in tests": (posed(f"[{'7' * 1_000_000}]"), "bad_tests"),
    "a number of millions of digits in tests": (posed(f'[{{"$int": "{"7" * 3_000_000}"}}]'), "bad_tests"),
    "a function's name without end": (posed("[1]", entry="f" * 1_000_000), "bad_tests"),
    "equal hashes in tests": (
        posed('[{"$set": [' + ", ".join(str(n * (2**61 - 1)) for n in range(3000)) + "]}]"), "runtime_error"),
    "a hundred thousand tests": (
        programmed(f"import time\ntime.sleep(0.001)\n{RIGHT}", json.dumps(
            {"mode": "stdin", "cases": [{"input": "1", "output": "2"}] * 100_000})), "unfinished"),
}  # fmt: skip


@pytest.fixture(scope="module")
def code_shards() -> tuple[Rows, Rows, Rows]:
    settings = CheckSettings(code=CodeSettings(cpu_seconds=0.5, total_seconds=WALL_SECONDS, most_timeouts=1))
    with VerifierPool(["code"], settings, workers=2) as pool:
        items = [honest(number) for number in range(HEALTHY)]
        return with_and_without(pool, items, [poison for poison, _ in CODE_POISON.values()])


def test_the_honest_programs_are_judged_as_ever(code_shards: Any) -> None:
    alone, company, _ = code_shards
    assert len(alone) == HEALTHY
    assert company == alone


def test_the_honest_programs_are_not_all_right(code_shards: Any) -> None:
    assert Counter(row[0].reason for row in code_shards[0]) == {
        "passed": 750, "wrong_answer": 84, "runtime_error": 83, "syntax_error": 83,
    }  # fmt: skip


@pytest.mark.parametrize("kind", CODE_POISON)
def test_a_poisoned_program_gets_a_verdict_with_its_reason(kind: str, code_shards: Any) -> None:
    [judgement] = code_shards[2][list(CODE_POISON).index(kind)]
    assert judgement.reason == CODE_POISON[kind][1], judgement


# --- time -------------------------------------------------------------------------------------------------

# Patterns that a careless regular expression takes quadratic time for.
PATTERNS = [
    "x", " ", "\n", "a ", "$", "$a", "<", "<a", "\\", "\\begin{", "\\begin{\\end{", "`", "```\n", "```math\n", "~~~",
    "    if a:", "    x = f\n", "https://", "a'", ". ", "1 ", "_", "a\u0301", "ab 中 ", "\0", "\ud800", "\u202e",
    "((", "{",
]  # fmt: skip


@pytest.mark.parametrize("name", TEXT_CHECKS)
def test_no_text_takes_more_than_its_length(name: str, settings: CheckSettings) -> None:
    """In quadratic time each of these texts would take hours, and the suite's time limit would end this test."""
    (check,) = build_checks([name], settings)
    check.warm_up()
    for pattern in PATTERNS:
        text = f"start {pattern * (200_000 // len(pattern))}\nend"
        assert re.fullmatch("[a-z_]+", check(Scored(text=text, prompt="What is this?")).reason)
