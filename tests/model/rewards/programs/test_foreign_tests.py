"""Records of other collections become our tests, with their harnesses' habits; shapes that nobody knows are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.rewards.programs.checkers import Checker
from model.rewards.programs.foreign_tests import convert_tests, read_any_tests
from model.rewards.programs.tests import Case, CodeTests


def read(data: Any, entry: str = "") -> CodeTests:
    return read_any_tests(json.dumps(data), entry)


def test_our_own_form_passes_through() -> None:
    assert read({"mode": "stdin", "cases": [{"input": "a", "output": "b"}]}).cases == (Case("a", expected=("b",)),)


def test_apps_stdin_with_lists_of_lines() -> None:
    tests = read({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]})
    assert (tests.mode, tests.checker.type) == ("stdin", "tokens")
    assert tests.cases == (Case("1 2\n", expected=("3\n",)), Case("3\n4", expected=("7",)))


def test_apps_functions_may_wrap_their_value_in_a_list() -> None:
    tests = read({"inputs": [[[1, 2]], [[]]], "outputs": [[3], 0], "fn_name": "total"})
    assert (tests.mode, tests.entry) == ("call", "total")
    assert tests.checker == Checker("numeric", sequences_alike=True)
    assert tests.cases == (Case(args=([1, 2],), expected=([3], 3)), Case(args=([],), expected=(0,)))
    assert "from typing import *" in tests.prelude


def test_livecodebench() -> None:
    stdin = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]
    assert read(stdin).cases == (Case("1\n", expected=("2\n",)),)
    functional = [{"input": '[1, 2]\n"a"', "output": '{"$x": 1}', "testtype": "functional"}]
    assert read(functional, "f").cases == (Case(args=([1, 2], "a"), expected=({"$x": 1},)),)


@pytest.mark.parametrize("data", [
    [], {}, 5, "eJw=", [1], [{"input": "1"}], [{"input": 1, "output": "2"}], {"inputs": ["1"], "outputs": []},
    {"inputs": "1", "outputs": "1"}, {"inputs": [1], "outputs": [2], "fn_name": "f"}, {"inputs": [1], "outputs": [2]},
    [{"input": "1", "output": "2", "testtype": "functional"}], [{"input": "1", "output": "2", "testtype": "x"}],
    [{"input": "1", "output": "2", "testtype": "functional"}, {"input": "1", "output": "2", "testtype": "stdin"}],
    {"inputs": [], "outputs": []},
])  # fmt: skip
def test_refused(data: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (each has its own words)
        read(data)


def test_the_result_can_be_kept_as_json() -> None:
    converted = convert_tests({"inputs": [[1]], "outputs": [2], "fn_name": "f"})
    assert read(converted) == read({"inputs": [[1]], "outputs": [2], "fn_name": "f"})
