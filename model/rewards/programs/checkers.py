"""Is this output, or this value, the expected one? Compared outside the sandbox, on plain texts and values.

stdin mode (texts):
  tokens     the same words in the same order and number; white space between them is free (the default)
  exact      the same text, but for one newline at the end of either
  numeric    like tokens; two words that are numbers may differ by the tolerance, two integers may not
  unordered  the same lines (as words) as often, in any order; empty lines do not count
call mode (values):
  equal      `==` of Python, by value: 1 == 1.0 == True, a list is not a tuple, "1" is not 1 (the default)
  numeric    like equal; numbers of which one is a float or complex may differ by the tolerance
  unordered  the outermost list, tuple or set holds equal items as often, in any order
both
  custom     a program that defines `check(input, expected, output)`; `code.py` runs it in a fork of its own

Everywhere here NaN equals NaN. Tolerance: |a − b| ≤ absolute, or ≤ relative · |b| with b the expected number.
`sequences: alike` makes lists and tuples equal. Values are the plain ones that the sandbox decodes; nothing
here calls a method that a program could have written.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

CHECKER_TYPES = {
    "stdin": ("tokens", "exact", "numeric", "unordered", "custom"),
    "call": ("equal", "numeric", "unordered", "custom"),
}
_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_REAL = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE)
_LONGEST_NUMBER = 400  # characters; a longer word is compared as text


@dataclass(frozen=True, slots=True)
class Checker:
    """How outputs are compared. `absolute` and `relative` are numeric's, `source` is custom's."""

    type: str
    absolute: float = 1e-6
    relative: float = 1e-6
    sequences_alike: bool = False
    source: str = ""


def text_matches(checker: Checker, output: str, expected: str) -> bool:
    """Whether a program's output is the expected one. Not for custom checkers."""
    return _TEXT_MATCHERS[checker.type](checker, output, expected)


def value_matches(checker: Checker, value: Any, expected: Any) -> bool:
    """Whether a call's value is the expected one. Not for custom checkers; a value nested too deep is not."""
    try:
        return _VALUE_MATCHERS[checker.type](checker, value, expected)
    except RecursionError:
        return False


# --- texts ------------------------------------------------------------------------------------------------


def _exact(_: Checker, output: str, expected: str) -> bool:
    return output.removesuffix("\n") == expected.removesuffix("\n")


def _tokens(_: Checker, output: str, expected: str) -> bool:
    return output.split() == expected.split()


def _numeric_text(checker: Checker, output: str, expected: str) -> bool:
    got, wanted = output.split(), expected.split()
    return len(got) == len(wanted) and all(_close_words(checker, a, b) for a, b in zip(got, wanted, strict=True))


def _unordered_text(_: Checker, output: str, expected: str) -> bool:
    return _lines(output) == _lines(expected)


def _lines(text: str) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words) for line in text.splitlines() if (words := line.split()))


_TEXT_MATCHERS: dict[str, Callable[[Checker, str, str], bool]] = {
    "tokens": _tokens,
    "exact": _exact,
    "numeric": _numeric_text,
    "unordered": _unordered_text,
}


def _close_words(checker: Checker, word: str, expected: str) -> bool:
    if word == expected:
        return True
    if max(len(word), len(expected)) > _LONGEST_NUMBER:
        return False
    if _INTEGER.fullmatch(word) and _INTEGER.fullmatch(expected):
        return int(word) == int(expected)
    if not (_REAL.fullmatch(word) and _REAL.fullmatch(expected)):
        return False
    if _overflows(word) or _overflows(expected):
        return False
    return close(float(word), float(expected), checker.absolute, checker.relative)


def _overflows(word: str) -> bool:
    """1e999, which float() takes for infinity."""
    return math.isinf(float(word)) and "inf" not in word.lower()


# --- values -----------------------------------------------------------------------------------------------


def close(number: complex, expected: complex, absolute: float, relative: float) -> bool:
    """Within either tolerance of the expected number; an infinity only equals itself, NaN equals NaN."""
    if number == expected:
        return True
    if number != number or expected != expected:
        return number != number and expected != expected
    if _is_infinite(number) or _is_infinite(expected):
        return False
    return abs(number - expected) <= max(absolute, relative * abs(expected))


def _is_infinite(number: complex) -> bool:
    return math.isinf(number.real) or math.isinf(number.imag)


def _equal(checker: Checker, value: Any, expected: Any) -> bool:
    return _same(value, expected, checker.sequences_alike, _identical)


def _numeric_value(checker: Checker, value: Any, expected: Any) -> bool:
    def near(number: Any, wanted: Any) -> bool:
        return _near(checker, number, wanted)

    return _same(value, expected, checker.sequences_alike, near)


def _unordered_values(checker: Checker, value: Any, expected: Any) -> bool:
    sizeable = (list, tuple, set, frozenset)
    if not (isinstance(value, sizeable) and isinstance(expected, sizeable)):
        return _equal(checker, value, expected)
    if len(value) != len(expected):
        return False
    # Only expected items enter the table: a program's own could be made to have one hash and take for ever.
    left = Counter(_key(item, checker.sequences_alike) for item in expected)
    for item in value:
        key = _key(item, checker.sequences_alike)
        if not left.get(key):
            return False
        left[key] -= 1
    return True


_VALUE_MATCHERS: dict[str, Callable[[Checker, Any, Any], bool]] = {
    "equal": _equal,
    "numeric": _numeric_value,
    "unordered": _unordered_values,
}


def _same(value: Any, expected: Any, alike: bool, scalar: Callable[[Any, Any], bool]) -> bool:
    """Whether two values agree part by part, `scalar` deciding on what is no container."""
    if isinstance(value, list | tuple) and isinstance(expected, list | tuple):
        return (alike or type(value) is type(expected)) and _same_items(value, expected, alike, scalar)
    if isinstance(value, dict) and isinstance(expected, dict):
        # Keys are looked up, never measured.
        return value.keys() == expected.keys() and all(
            _same(value[key], expected[key], alike, scalar) for key in expected
        )
    if isinstance(value, set | frozenset) and isinstance(expected, set | frozenset):
        return value == expected or _same_numbers(value, expected, scalar)
    return scalar(value, expected)


def _same_items(value: Sequence[Any], expected: Sequence[Any], alike: bool, scalar: Callable[[Any, Any], bool]) -> bool:
    return len(value) == len(expected) and all(
        _same(item, wanted, alike, scalar) for item, wanted in zip(value, expected, strict=True)
    )


def _same_numbers(
    value: set[Any] | frozenset[Any], expected: set[Any] | frozenset[Any], scalar: Callable[[Any, Any], bool]
) -> bool:
    """Sets of real numbers: paired off by size."""
    if not all(isinstance(item, int | float) and item == item for item in (*value, *expected)):
        return False
    return _same_items(sorted(value), sorted(expected), False, scalar)


def _identical(value: Any, expected: Any) -> bool:
    return bool(value == expected) or (_is_nan(value) and _is_nan(expected))


def _near(checker: Checker, value: Any, expected: Any) -> bool:
    numbers = isinstance(value, int | float | complex) and isinstance(expected, int | float | complex)
    if not numbers or (isinstance(value, int) and isinstance(expected, int)):
        return _identical(value, expected)
    try:
        return close(value, expected, checker.absolute, checker.relative)
    except OverflowError:  # an integer beyond all floats
        return False


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | complex) and value != value


def _key(value: Any, alike: bool) -> Hashable:
    """Something hashable, equal for two values just where those are: numbers as they are, containers by kind."""
    if isinstance(value, list | tuple):
        kind = "sequence" if alike else type(value).__name__
        return kind, tuple(_key(item, alike) for item in value)
    if isinstance(value, set | frozenset):
        return "set", frozenset(_key(item, alike) for item in value)
    if isinstance(value, dict):
        return "dict", frozenset((_key(key, alike), _key(item, alike)) for key, item in value.items())
    if isinstance(value, str | bytes):
        return type(value).__name__, value
    return ("nan",) if _is_nan(value) else value
