"""Values survive the way by exact type; everything else is refused, and hostile text costs no more than its length."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.sandbox import values

HASHABLE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(min_value=-(1 << 3000), max_value=1 << 3000),
        st.floats(allow_nan=False),
        st.complex_numbers(allow_nan=False),
        st.binary(),
        st.text(),
        st.text(st.sampled_from("a\ud800\ud83d\ude00\udfff")),
    ),
    lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=4)),
    max_leaves=8,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
    ),
    max_leaves=12,
)


def _exact(value: object) -> object:
    """Something in which 1, 1.0 and True differ, and 0.0 from -0.0, at any depth."""
    if isinstance(value, (list, tuple)):
        return type(value), [_exact(each) for each in value]
    if isinstance(value, dict):
        return dict, [(_exact(key), _exact(each)) for key, each in value.items()]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(repr(_exact(each)) for each in value)
    return type(value), repr(value)


@given(VALUES)
def test_values_come_back_as_they_were(value: object) -> None:
    text = values.dumps(value)
    assert text.isascii()
    assert "\n" not in text
    assert _exact(values.loads(text)) == _exact(value)


@pytest.mark.parametrize("value", [math.nan, complex(math.nan, math.inf), [-math.inf], {math.inf: -0.0}])
def test_floats_without_a_decimal_form(value: object) -> None:
    assert repr(values.loads(values.dumps(value))) == repr(value)


def test_two_lone_surrogates_do_not_become_one_character() -> None:
    assert len(values.loads(values.dumps("\ud83d\ude00"))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        type("Evil", (int,), {"__eq__": lambda *_: True, "__hash__": int.__hash__})(3),
        type("Evil", (str,), {})("x"),
        [type("Evil", (list,), {})()],
        {type("Evil", (bytes,), {})(b"x"): 1},
        {"a": (type("Evil", (float,), {})(1.0),)},
        object(),
        int,
        bytearray(b"x"),
        range(3),
        (number for number in range(3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_of_the_very_type_is_refused(value: object) -> None:
    with pytest.raises(values.UnencodableError, match="unencodable"):
        values.dumps(value)


def test_nesting_has_an_end() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(values.UnencodableError, match="too deeply"):
        values.dumps(endless)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[" * 100_000,
        "NaN",
        "1.5",
        "9" * 5000,
        "{}",
        "[]",
        '["l"]',
        '["l",5]',
        '["l","ab"]',
        '["p","x"]',
        '["f",1]',
        '["f","one"]',
        '["c",["0x0p0"]]',
        '["i","zz"]',
        '["s",[["l",[]]]]',
        '["d",[[["l",[]],1]]]',
        '["d",[[1]]]',
        '["u","d8"]',
        "\xff",
    ],
)
def test_malformed_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the message differs)
        values.loads(text)


def test_a_flood_of_equal_hashes_is_refused() -> None:
    """Multiples of 2**61 - 1 all hash to 0: a set of n of them takes n² steps to build."""
    forged = json.dumps(["s", [["i", hex(n * (2**61 - 1))] for n in range(1, 100_000)]])
    with pytest.raises(ValueError, match="equal hashes"):
        values.loads(forged)
