"""Checkers: by-hand pairs for each type, and properties that hold for all values."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.rewards.programs.checkers import Checker, close, text_matches, value_matches

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(("kind", "output", "expected", "right"), [
    ("tokens", "1 2\n3\n", "1  2 3", True), ("tokens", "1 2", "1 2 3", False), ("tokens", "1 2 3", "1 2", False),
    ("tokens", "", "", True), ("tokens", "", "1", False), ("tokens", "12", "1 2", False), ("tokens", "1.0", "1", False),
    ("tokens", "YES", "yes", False),
    ("exact", "a\n", "a", True), ("exact", "a", "a\n", True), ("exact", "a\n\n", "a", False),
    ("exact", "a ", "a", False),
    ("exact", "a\r\n", "a\n", False),
    ("numeric", "0.3333333", "0.33333333", True), ("numeric", "1.0000001", "1", True), ("numeric", "1.1", "1", False),
    ("numeric", "1000001", "1000000", False), ("numeric", "007", "7", True), ("numeric", "1e-9", "0", True),
    ("numeric", "1000000.5", "1000000.0", True), ("numeric", "nan", "NaN", True), ("numeric", "inf", "Infinity", True),
    ("numeric", "inf", "-inf", False), ("numeric", "inf", "1.0", False), ("numeric", "1.0", "inf", False),
    ("numeric", "1e999", "1e998", False), ("numeric", "1e999", "inf", False), ("numeric", "0x10", "16", False),
    ("numeric", "1_0", "10", False), ("numeric", "9" * 5000, "8" * 5000, False), ("numeric", "1 2", "1", False),
    ("numeric", "yes 1.0", "yes 1", True), ("numeric", "no 1.0", "yes 1", False), ("numeric", "٣", "3", False),
    ("unordered", "b\na\n", "a\nb", True), ("unordered", "a\na\nb", "a\nb\nb", False),
    ("unordered", "a\n\nb", "b\na", True),
    ("unordered", "1 2\n3", "3\n1  2", True), ("unordered", "2 1", "1 2", False), ("unordered", "a", "a\na", False),
])  # fmt: skip
def test_texts(kind: str, output: str, expected: str, right: bool) -> None:
    assert text_matches(Checker(kind), output, expected) is right


@pytest.mark.parametrize(("value", "expected", "right"), [
    (1, 1.0, True), (True, 1, True), (1, "1", False), ([1], (1,), False), ([1, [2]], [1, [2]], True),
    ([1], [1, 2], False),
    ([1, 2], [1], False), ([], None, False), (None, None, True), ({"a": 1}, {"a": 1.0}, True),
    ({"a": 1}, {"b": 1}, False),
    ({1, 2}, {2, 1}, True), ({1}, frozenset({1}), True), ({1}, [1], False), (NAN, NAN, True), ([NAN], [NAN], True),
    (NAN, 1.0, False), (INF, INF, True), (INF, -INF, False), (0.1 + 0.2, 0.3, False), (b"a", "a", False),
    ("a", "a", True),
    (complex(0, NAN), complex(NAN, 0), True), (0.0, -0.0, True), (10**400, 10.0, False),
])  # fmt: skip
def test_equal(value: Any, expected: Any, right: bool) -> None:
    assert value_matches(Checker("equal"), value, expected) is right


@pytest.mark.parametrize(("value", "expected", "right"), [
    (0.1 + 0.2, 0.3, True), (1, 1.0000001, True), (2, 3, False), (10**9 + 1, 10**9, False),
    ([0.1 + 0.2, "a"], [0.3, "a"], True),
    ((0.3,), [0.3], False), ({"a": 0.1 + 0.2}, {"a": 0.3}, True), ({0.1 + 0.2}, {0.3}, True), ({0.3, 1}, {0.3}, False),
    (NAN, NAN, True), (NAN, 0.3, False), (INF, 1e308, False), (1e308, INF, False), (10**400, 1.0, False),
    (1j, 1j + 1e-9, True),
    ("0.3", 0.3, False), (None, 0.0, False), ([0.3], [0.3, 0.3], False), ({"a", 1}, {"a", 1}, True),
    ({"a", 1}, {"b", 1}, False),
])  # fmt: skip
def test_numeric(value: Any, expected: Any, right: bool) -> None:
    assert value_matches(Checker("numeric"), value, expected) is right


@pytest.mark.parametrize(("value", "expected", "right"), [
    ([2, 1], [1, 2], True), ([1, 1, 2], [1, 2, 2], False), ([[1], [2]], [[2], [1]], True), ([[1, 2]], [[2, 1]], False),
    ([1, 2], (1, 2), True), ([1], 1, False), (1, 1.0, True), ([True], [1], True), ([{"a": [1]}], [{"a": [1]}], True),
    ([NAN, 1], [1, NAN], True), (["1"], [1], False), ([1, 2], [1], False), ([], [], True), ([("a",)], [["a"]], False),
])  # fmt: skip
def test_unordered(value: Any, expected: Any, right: bool) -> None:
    assert value_matches(Checker("unordered"), value, expected) is right


def test_tolerances_are_absolute_or_relative() -> None:
    assert value_matches(Checker("numeric", absolute=0.5, relative=0.0), 1.5, 1.0)
    assert not value_matches(Checker("numeric", absolute=0.5, relative=0.0), 1.6, 1.0)
    assert value_matches(Checker("numeric", absolute=0.0, relative=0.1), 109.0, 100.0)
    assert not value_matches(Checker("numeric", absolute=0.0, relative=0.1), 111.0, 100.0)
    assert not value_matches(Checker("numeric", absolute=0.0, relative=0.0), 0.1 + 0.2, 0.3)


@pytest.mark.parametrize("kind", ["equal", "numeric", "unordered"])
def test_lists_and_tuples_can_be_alike(kind: str) -> None:
    assert value_matches(Checker(kind, sequences_alike=True), [(1, [2])], [[1, (2,)]])
    assert not value_matches(Checker(kind), [(1, [2])], [[1, (2,)]])


@pytest.mark.parametrize("kind", ["equal", "numeric", "unordered"])
def test_a_value_nested_too_deep_is_not_equal(kind: str) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert value_matches(Checker(kind), deep, [deep]) is False


def test_values_of_one_hash_cost_little() -> None:
    """A program can make ints of equal hash; counting its 20,000 in a table would take minutes."""
    same_hash = [k * (2**61 - 1) for k in range(1, 20_001)]
    assert len(set(map(hash, same_hash[:100]))) == 1
    assert not value_matches(Checker("unordered"), same_hash, list(range(20_000)))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.sets(st.integers() | st.text(max_size=3), max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_a_value_equals_itself_by_every_checker(value: Any) -> None:
    for kind in ("equal", "numeric", "unordered"):
        assert value_matches(Checker(kind), value, value)


@given(VALUES, VALUES)
def test_equal_is_symmetric_and_numeric_accepts_what_is_equal(value: Any, other: Any) -> None:
    is_equal = value_matches(Checker("equal"), value, other)
    assert value_matches(Checker("equal"), other, value) is is_equal
    if is_equal:
        assert value_matches(Checker("numeric"), value, other)


@given(st.lists(VALUES, max_size=5), st.randoms())
def test_a_shuffled_list_is_the_same_unordered(values: list[Any], random: Any) -> None:
    shuffled = random.sample(values, len(values))
    assert value_matches(Checker("unordered"), shuffled, values)
    assert not value_matches(Checker("unordered"), [*shuffled, 0], values)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e-3))
def test_close_is_what_it_says(expected: float, share: float) -> None:
    number = expected * (1 + share)
    if not math.isinf(number):
        assert close(number, expected, 0.0, 2e-3)
        assert close(number, expected, abs(expected) * 2e-3, 0.0)


@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=6), max_size=6))
def test_white_space_is_free_for_tokens_and_numeric(words: list[str]) -> None:
    spaced, lined = " ".join(words), "\n".join(words) + "\n"
    for kind in ("tokens", "numeric"):
        assert text_matches(Checker(kind), spaced, lined)
