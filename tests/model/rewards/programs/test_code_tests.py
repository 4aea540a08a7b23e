"""The JSON of tests: what is read, what is refused with what words, and values that survive the way there and back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.rewards.programs.checkers import Checker, value_matches
from model.rewards.programs.tests import Case, decode_value, encode_value, read_tests

STDIN: dict[str, Any] = {"mode": "stdin", "cases": [{"input": "1 2\n", "output": "3\n"}]}
CALL: dict[str, Any] = {"mode": "call", "entry": "f", "cases": [{"args": [1], "expected": 2}]}


def read(base: dict[str, Any], **changes: Any) -> Any:
    return read_tests(json.dumps({**base, **changes}))


def test_stdin_defaults() -> None:
    tests = read(STDIN)
    assert (tests.mode, tests.cases, tests.checker) == ("stdin", (Case("1 2\n", expected=("3\n",)),), Checker("tokens"))
    assert (tests.cpu_seconds, tests.wall_seconds, tests.memory_mb, tests.numpy, tests.prelude) == (
        None,
        None,
        None,
        False,
        "",
    )


def test_call_defaults() -> None:
    tests = read(CALL)
    assert (tests.mode, tests.entry, tests.checker) == ("call", "f", Checker("equal"))
    assert tests.cases == (Case(args=(1,), kwargs={}, expected=(2,)),)


def test_everything_that_can_be_said() -> None:
    checker = {"type": "numeric", "tolerance": 0.5, "relative": 0, "sequences": "alike"}
    case = {"args": [{"$tuple": [1]}], "kwargs": {"x": {"$set": [1]}}, "expected": 1, "accept": [2, None]}
    tests = read(
        CALL, entry="Solution.f", cases=[case], checker=checker, prelude="import math", cpu_seconds=1, wall_seconds=2.5,
        memory_mb=64, numpy=True,
    )  # fmt: skip
    assert tests.checker == Checker("numeric", absolute=0.5, relative=0.0, sequences_alike=True)
    assert tests.cases == (Case(args=((1,),), kwargs={"x": {1}}, expected=(1, 2, None)),)
    assert (tests.entry, tests.prelude, tests.numpy) == ("Solution.f", "import math", True)
    assert (tests.cpu_seconds, tests.wall_seconds, tests.memory_mb) == (1.0, 2.5, 64)


@pytest.mark.parametrize(("base", "changes", "said"), [
    (STDIN, {"mode": "pipe"}, "mode is 'pipe'"), (STDIN, {"case": []}, "unknown key 'case'"),
    (STDIN, {"cases": []}, "empty"),
    (STDIN, {"cases": {}}, "no list"), (STDIN, {"entry": "f"}, "unknown key 'entry'"),
    (STDIN, {"cases": ["x"]}, "case 1"),
    (STDIN, {"cases": [STDIN["cases"][0], {"input": 1, "output": ""}]}, "case 2: input is a int"),
    (STDIN, {"cases": [{"input": ""}]}, "output is a NoneType"),
    (STDIN, {"cases": [{"input": "", "output": "\ud800"}]}, "UTF-8"),
    (STDIN, {"cases": [{"input": "", "output": "", "accept": "x"}]}, "accept is a str"),
    (STDIN, {"checker": {"type": "equal"}}, "use tokens, exact"),
    (STDIN, {"checker": {"type": "custom"}}, "has a source"),
    (STDIN, {"checker": {"type": "tokens", "source": "x"}}, "no other checker"),
    (STDIN, {"checker": "tokens"}, "not an object"),
    (STDIN, {"checker": {"type": "numeric", "tolerance": -1}}, "tolerance is -1"),
    (STDIN, {"checker": {"type": "numeric", "tol": 1}}, "unknown key 'tol'"),
    (STDIN, {"cpu_seconds": 0}, "cpu_seconds is 0"), (STDIN, {"cpu_seconds": True}, "cpu_seconds is True"),
    (STDIN, {"memory_mb": "64"}, "memory_mb is '64'"), (STDIN, {"numpy": 1}, "numpy is 1"),
    (STDIN, {"prelude": 1}, "prelude"),
    (CALL, {"entry": "f()"}, "entry is 'f()'"), (CALL, {"entry": "a.b.c"}, "entry"), (CALL, {"entry": None}, "entry"),
    (CALL, {"cases": [{"args": [1]}]}, "no expected"), (CALL, {"cases": [{"args": 1, "expected": 1}]}, "args is a int"),
    (CALL, {"cases": [{"kwargs": [], "expected": 1}]}, "kwargs"),
    (CALL, {"checker": {"type": "tokens"}}, "use equal, numeric"),
    (CALL, {"checker": {"type": "equal", "sequences": "any"}}, "strict or alike"),
    (CALL, {"cases": [{"args": [{"$list": []}], "expected": 1}]}, "case 1: .list is not an encoding"),
    (CALL, {"cases": [{"args": [{"$set": [[1]]}], "expected": 1}]}, "unhashable"),
    (CALL, {"cases": [{"args": [{"$tuple": [], "x": 1}], "expected": 1}]}, "does not stand alone"),
    (CALL, {"cases": [{"args": [{"$float": "1.0"}], "expected": 1}]}, "not nan, inf"),
    (CALL, {"cases": [{"args": [{"$complex": [1]}], "expected": 1}]}, "complex"),
    (CALL, {"cases": [{"args": [{"$bytes": "0g"}], "expected": 1}]}, "bytes"),
    (CALL, {"cases": [{"args": [{"$dict": [[1]]}], "expected": 1}]}, "dict"),
])  # fmt: skip
def test_refused(base: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        read(base, **changes)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "NaN", '{"mode": "stdin", "cases": NaN}', "[" * 100_000, "9" * 5000]
)
def test_texts_that_are_no_tests(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (each has its own words)
        read_tests(text)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
KEYS = st.text(max_size=3) | st.sampled_from(["$set", "$"]) | st.integers() | st.tuples(st.integers())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_values_come_back_with_their_types(value: Any) -> None:
    back = decode_value(json.loads(json.dumps(encode_value(value), allow_nan=False)))
    assert value_matches(Checker("equal"), back, value)
    assert types(back) == types(value)


def types(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value), [types(item) for item in value]
    if isinstance(value, dict):
        return type(value), [types(item) for item in value.values()]
    return type(value)


def test_integers_of_any_size_come_back() -> None:
    huge = -(7**20_000)
    assert decode_value(json.loads(json.dumps(encode_value(huge)))) == huge


def test_a_set_is_written_the_same_way_whatever_its_order() -> None:
    assert encode_value({"b", "a", "c"}) == {"$set": ["a", "b", "c"]}
    assert encode_value(math.nan) == {"$float": "nan"}


@pytest.mark.parametrize("value", [object(), range(3), type("L", (list,), {})(), iter([])])
def test_other_types_are_not_written(value: Any) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        encode_value(value)
