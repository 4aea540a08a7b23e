"""Tests as other collections keep them, turned into ours (`tests.py`). Nothing is unpickled or run.

Known by their shape: APPS and TACO, {"inputs": […], "outputs": […], "fn_name": …}, and LiveCodeBench, a list of
{"input": …, "output": …, "testtype": "stdin" | "functional"}. Their functions are methods of `Solution` where
the program has that class, their lists and tuples are alike, and a value in a list of its own may stand for the
value: all three as their own harnesses have it. LiveCodeBench's hidden tests are pickles and refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from model.rewards.programs.tests import CodeTests, load_json, tests_of

# What the sites where these problems come from import before a solution.
_PRELUDE = """\
import bisect, collections, functools, heapq, itertools, math, operator, re, string, sys
from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache, lru_cache, reduce
from heapq import heapify, heappop, heappush
from itertools import accumulate, combinations, permutations, product
from math import ceil, comb, floor, gcd, inf, sqrt
from typing import *
"""


def read_any_tests(text: str, entry: str = "") -> CodeTests:
    """Tests in our form or one of theirs. `entry` names the function where the record does not.

    ValueError for what is neither.
    """
    data = load_json(text)
    return tests_of(data if isinstance(data, Mapping) and "mode" in data else convert_tests(data, entry))


def convert_tests(data: Any, entry: str = "") -> dict[str, Any]:
    """The JSON values of our form. ValueError for records of no known shape."""
    if isinstance(data, Mapping) and {"inputs", "outputs"} <= set(data):
        return _from_parallel_lists(data, data.get("fn_name") or entry)
    if isinstance(data, list) and data and all(isinstance(case, Mapping) for case in data):
        return _from_cases(data, entry)
    raise ValueError("no tests: give {'mode': …}, {'inputs': …, 'outputs': …} or [{'input': …, 'output': …}]")


def _from_parallel_lists(data: Mapping[str, Any], entry: str) -> dict[str, Any]:
    inputs, outputs = data["inputs"], data["outputs"]
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise ValueError("inputs and outputs are not two lists of one length")
    pairs = zip(inputs, outputs, strict=True)
    if entry:
        return _calls(entry, [_call(args, output) for args, output in pairs])
    return {"mode": "stdin", "cases": [{"input": _lines(given), "output": _lines(out)} for given, out in pairs]}


def _from_cases(cases: list[Mapping[str, Any]], entry: str) -> dict[str, Any]:
    kinds = {case.get("testtype", "stdin") for case in cases}
    if not kinds <= {"stdin", "functional"} or len(kinds) > 1:
        raise ValueError(f"testtype is {sorted(map(str, kinds))}; all stdin or all functional is known")
    if not all({"input", "output"} <= set(case) for case in cases):
        raise ValueError("a test has no input or no output")
    if kinds == {"stdin"}:
        return {"mode": "stdin", "cases": [{"input": case["input"], "output": case["output"]} for case in cases]}
    if not entry:
        raise ValueError("functional tests need the function's name")
    return _calls(entry, [_functional(case) for case in cases])


def _functional(case: Mapping[str, Any]) -> dict[str, Any]:
    """One argument per line of the input, each as JSON."""
    args = [_escaped(load_json(line)) for line in _lines(case["input"]).splitlines() if line.strip()]
    return {"args": args, "expected": _escaped(load_json(_lines(case["output"])))}


def _call(args: Any, output: Any) -> dict[str, Any]:
    if not isinstance(args, list):
        raise ValueError("an input of a function is no list of arguments")
    case = {"args": [_escaped(value) for value in args], "expected": _escaped(output)}
    if isinstance(output, list) and len(output) == 1:
        case["accept"] = [_escaped(output[0])]
    return case


def _calls(entry: str, cases: list[dict[str, Any]]) -> dict[str, Any]:
    checker = {"type": "numeric", "sequences": "alike"}
    return {"mode": "call", "entry": entry, "prelude": _PRELUDE, "checker": checker, "cases": cases}


def _escaped(value: Any) -> Any:
    """Their JSON has no encodings: an object with a `$` key is just that."""
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    items = {key: _escaped(item) for key, item in value.items()}
    return {"$dict": [[key, item] for key, item in items.items()]} if any(k.startswith("$") for k in items) else items


def _lines(text: Any) -> str:
    """A text, or a list of lines."""
    if isinstance(text, list) and all(isinstance(line, str) for line in text):
        return "\n".join(text)
    if not isinstance(text, str):
        raise ValueError(f"a {type(text).__name__} stands where a text should: {json.dumps(text)[:60]}")
    return text
