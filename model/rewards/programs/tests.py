r"""The tests of a code problem: the JSON in `problem.tests`, read strictly. Nothing here runs anything.

    {"mode": "stdin", "cases": [{"input": "1 2\n", "output": "3\n"}]}
    {"mode": "call", "entry": "add", "cases": [{"args": [1, 2], "kwargs": {}, "expected": 3}]}

Beside these, both modes may have:
  checker      {"type": "tokens"}; see `checkers.py` for the types and what each accepts
  prelude      program text that stands before the completion's (imports, helpers)
  cpu_seconds, wall_seconds, memory_mb   limits of one test (call mode: of all calls together)
  numpy        true: numpy can be imported
A case may have `accept`, a list of further right outputs or values. `entry` is a function's name, or
`Class.method`: the method of a new object.

Values beyond JSON are objects with one key: {"$tuple": […]}, {"$set": […]}, {"$frozenset": […]},
{"$bytes": "hex digits"}, {"$float": "nan" | "inf" | "-inf"}, {"$complex": [re, im]}, {"$int": "hex digits"} and
{"$dict": [[key, value], …]} for keys that are not strings or begin with `$`. Anything else (unknown keys, NaN as
a bare word, no case at all) is a ValueError that says where. Other projects' records are read by
`foreign_tests.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.rewards.programs.checkers import CHECKER_TYPES, Checker

_SHARED = {"mode", "cases", "checker", "prelude", "cpu_seconds", "wall_seconds", "memory_mb", "numpy"}
_TESTS_KEYS = {"stdin": _SHARED, "call": _SHARED | {"entry"}}
_CASE_KEYS = {"stdin": {"input", "output", "accept"}, "call": {"args", "kwargs", "expected", "accept"}}
_CHECKER_KEYS = {"type", "tolerance", "absolute", "relative", "source", "sequences"}
_JSON_DIGITS = 4000  # longer integers travel as $int: Python's JSON reader stops at 4,300 digits
# What is beyond these does not travel into the sandbox.
_MOST_LEVELS = 90  # of the whole JSON; a value may have 100 there, and stands in a few of its own
_MOST_HEX_DIGITS = 2_000_000
_LONGEST_ENTRY = 1000  # characters


@dataclass(frozen=True, slots=True)
class Case:
    """One test: what goes in, and the outputs (stdin: texts, call: values) of which any one is right."""

    input: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    expected: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class CodeTests:
    """All tests of one problem. A limit that is None is the check's own."""

    mode: str
    cases: tuple[Case, ...]
    checker: Checker
    entry: str = ""
    prelude: str = ""
    cpu_seconds: float | None = None
    wall_seconds: float | None = None
    memory_mb: int | None = None
    numpy: bool = False


def read_tests(text: str) -> CodeTests:
    """The tests in `text`. ValueError for anything but the form above."""
    return tests_of(load_json(text))


def load_json(text: str) -> Any:
    """JSON with no bare NaN or Infinity. ValueError for all that it is not, deep nesting included."""
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if _is_deep(data):
        raise ValueError("nested too deep")
    return data


def _is_deep(data: Any) -> bool:
    """Whether containers stand in one another to more than `_MOST_LEVELS`; level by level, without recursion."""
    level = [data]
    for _ in range(_MOST_LEVELS):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def tests_of(data: Any) -> CodeTests:
    """From the JSON's values."""
    tests = _object(data, "tests")
    mode = tests.get("mode")
    if mode not in _TESTS_KEYS:
        raise ValueError(f"mode is {mode!r}; use stdin or call")
    _known(tests, _TESTS_KEYS[mode], "tests")
    if mode == "call" and not _is_entry(tests.get("entry")):
        raise ValueError(f"entry is {tests.get('entry')!r}; give a function's name, or Class.method")
    return CodeTests(
        mode=mode,
        cases=_cases(tests.get("cases"), mode),
        checker=_checker(tests.get("checker"), mode),
        entry=tests.get("entry", ""),
        prelude=_text(tests.get("prelude", ""), "prelude"),
        cpu_seconds=_limit(tests, "cpu_seconds"),
        wall_seconds=_limit(tests, "wall_seconds"),
        memory_mb=_memory(tests),
        numpy=_flag(tests.get("numpy", False), "numpy"),
    )


def _cases(data: Any, mode: str) -> tuple[Case, ...]:
    if not isinstance(data, list) or not data:
        raise ValueError("cases is no list, or an empty one")
    read = _stdin_case if mode == "stdin" else _call_case
    return tuple(_placed(f"case {number}", read, case) for number, case in enumerate(data, start=1))


def _placed(where: str, read: Callable[[Mapping[str, Any]], Case], data: Any) -> Case:
    try:
        return read(_object(data, "it"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _stdin_case(case: Mapping[str, Any]) -> Case:
    _known(case, _CASE_KEYS["stdin"], "it")
    accept = [_text(output, "accept") for output in _list(case.get("accept", []), "accept")]
    return Case(
        input=_text(case.get("input"), "input"),
        expected=(_text(case.get("output"), "output"), *accept),
    )


def _call_case(case: Mapping[str, Any]) -> Case:
    _known(case, _CASE_KEYS["call"], "it")
    if "expected" not in case:
        raise ValueError("it has no expected")
    kwargs = _object(case.get("kwargs", {}), "kwargs")
    accept = _list(case.get("accept", []), "accept")
    return Case(
        args=tuple(decode_value(value) for value in _list(case.get("args", []), "args")),
        kwargs={name: decode_value(value) for name, value in kwargs.items()},
        expected=tuple(decode_value(value) for value in (case["expected"], *accept)),
    )


def _checker(data: Any, mode: str) -> Checker:
    if data is None:
        return Checker("tokens" if mode == "stdin" else "equal")
    values = _object(data, "checker")
    _known(values, _CHECKER_KEYS, "checker")
    kind = values.get("type")
    if kind not in CHECKER_TYPES[mode]:
        raise ValueError(f"checker type is {kind!r}; in mode {mode} use {', '.join(CHECKER_TYPES[mode])}")
    tolerance = _tolerance(values, "tolerance", Checker(kind).absolute)
    source = _text(values.get("source", ""), "source")
    if (kind == "custom") != bool(source.strip()):
        raise ValueError("a custom checker has a source, and no other checker has one")
    sequences = values.get("sequences", "strict")
    if sequences not in ("strict", "alike"):
        raise ValueError(f"sequences is {sequences!r}; use strict or alike")
    return Checker(
        kind,
        absolute=_tolerance(values, "absolute", tolerance),
        relative=_tolerance(values, "relative", tolerance),
        sequences_alike=sequences == "alike",
        source=source,
    )


# --- values -----------------------------------------------------------------------------------------------


def encode_value(value: Any) -> Any:
    """A plain Python value as JSON in the encoding above. ValueError for a type that it does not have."""
    if value is None or type(value) in (bool, str):
        return value
    if type(value) in _ENCODERS:
        return _ENCODERS[type(value)](value)
    raise ValueError(f"a {type(value).__name__} cannot be written as a test's value")


def _encode_int(value: int) -> Any:
    # 3.3 bits a digit: a bound that needs no conversion, which Python limits too.
    return value if value.bit_length() < 3.3 * _JSON_DIGITS else {"$int": hex(value)}


def _encode_float(value: float) -> Any:
    return value if value - value == 0 else {"$float": str(value)}


def _encode_dict(value: dict[Any, Any]) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode_value(item) for key, item in value.items()}
    return {"$dict": [[encode_value(key), encode_value(item)] for key, item in value.items()]}


def _encode_set(value: set[Any] | frozenset[Any]) -> Any:
    # Sorted by their JSON: the same set is the same text under any hash seed.
    items = sorted((encode_value(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return {"$set" if type(value) is set else "$frozenset": items}


_ENCODERS: dict[type, Callable[[Any], Any]] = {
    int: _encode_int,
    float: _encode_float,
    complex: lambda value: {"$complex": [_encode_float(value.real), _encode_float(value.imag)]},
    bytes: lambda value: {"$bytes": value.hex()},
    list: lambda value: [encode_value(item) for item in value],
    tuple: lambda value: {"$tuple": [encode_value(item) for item in value]},
    set: _encode_set,
    frozenset: _encode_set,
    dict: _encode_dict,
}


def decode_value(data: Any) -> Any:
    """The value that this JSON stands for. ValueError for an unknown or misused `$` key."""
    if isinstance(data, list):
        return [decode_value(item) for item in data]
    if not isinstance(data, dict):
        return data
    marks = [key for key in data if key.startswith("$")]
    if not marks:
        return {key: decode_value(item) for key, item in data.items()}
    if len(data) > 1 or marks[0] not in _DECODERS:
        raise ValueError(f"{marks[0]} is not an encoding of a value, or does not stand alone")
    try:
        return _DECODERS[marks[0]](data[marks[0]])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{marks[0]}: {error}") from None


def _decode_items(data: Any) -> list[Any]:
    return [decode_value(item) for item in _list(data, "it")]


def _decode_dict(data: Any) -> dict[Any, Any]:
    return dict(_decode_items([_list(pair, "a pair") for pair in _list(data, "it")]))


def _decode_complex(data: Any) -> complex:
    real, imaginary = _decode_items(data)
    return complex(real, imaginary)


def _decode_float(data: Any) -> float:
    if data not in ("nan", "inf", "-inf"):
        raise ValueError(f"{data!r} is not nan, inf or -inf")
    return float(data)


def _decode_integer(data: Any) -> int:
    if len(_text(data, "it")) > _MOST_HEX_DIGITS:
        raise ValueError("an integer of too many digits")
    return int(data, 16)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$tuple": lambda data: tuple(_decode_items(data)),
    "$set": lambda data: set(_decode_items(data)),
    "$frozenset": lambda data: frozenset(_decode_items(data)),
    "$bytes": lambda data: bytes.fromhex(_text(data, "it")),
    "$float": _decode_float,
    "$complex": _decode_complex,
    "$int": _decode_integer,
    "$dict": _decode_dict,
}


# --- fields -----------------------------------------------------------------------------------------------


def _object(data: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{name} is a {type(data).__name__}, not an object")
    return data


def _list(data: Any, name: str) -> Sequence[Any]:
    if not isinstance(data, list):
        raise ValueError(f"{name} is a {type(data).__name__}, not a list")
    return data


def _text(data: Any, name: str) -> str:
    if not isinstance(data, str):
        raise ValueError(f"{name} is a {type(data).__name__}, not a text")
    try:
        data.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8") from None
    return data


def _flag(data: Any, name: str) -> bool:
    if not isinstance(data, bool):
        raise ValueError(f"{name} is {data!r}; use true or false")
    return data


def _known(data: Mapping[str, Any], names: set[str], where: str) -> None:
    unknown = sorted(set(data) - names)
    if unknown:
        raise ValueError(f"{where} has an unknown key {unknown[0]!r} (known: {', '.join(sorted(names))})")


def _is_entry(data: Any) -> bool:
    parts = data.split(".") if isinstance(data, str) and len(data) <= _LONGEST_ENTRY else []
    return 1 <= len(parts) <= 2 and all(part.isidentifier() for part in parts)


def _number(data: Any, name: str, low: float, high: float) -> float:
    if isinstance(data, bool) or not isinstance(data, int | float) or not low <= data <= high:
        raise ValueError(f"{name} is {data!r}; it must be a number from {low:g} to {high:g}")
    return data


def _limit(tests: Mapping[str, Any], name: str) -> float | None:
    data = tests.get(name)
    return None if data is None else float(_number(data, name, 0.01, 3600))


def _memory(tests: Mapping[str, Any]) -> int | None:
    data = tests.get("memory_mb")
    return None if data is None else int(_number(data, "memory_mb", 16, 1 << 20))


def _tolerance(checker: Mapping[str, Any], name: str, default: float) -> float:
    data = checker.get(name)
    return default if data is None else float(_number(data, name, 0.0, 1e300))


def _no_constant(name: str) -> Any:
    raise ValueError(f'{name} is not JSON; write {{"$float": …}}')
