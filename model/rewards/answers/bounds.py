r"""May this expression be given to a computer algebra system? Caps on size, checked on the string alone.

`10^{9^9}` parses in a moment and then takes all memory there is; the verifier pool would stop it, at the
price of a time-out and a worker. These caps turn the common cases away for nothing. They are not a proof of
harmlessness (nested factorials, for one, get through): the pool's time-out and memory cap remain the
guarantee.
"""

from __future__ import annotations

import re

MAX_LENGTH = 2_000  # characters
MAX_DIGITS = 400  # digits of one number
MAX_EXPONENT = 10_000
MAX_FACTORIAL_DIGITS = 4
MAX_DEPTH = 40  # nested braces and parentheses

_LONG_NUMBER = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")
_POWER = re.compile(r"(?:\^|\*\*)[\s{(+-]*(\d+)(?:\s*(?:\^|\*\*)[\s{(+-]*(\d+))?")
_FACTORIAL = re.compile(rf"\d{{{MAX_FACTORIAL_DIGITS + 1}}}\s*!")


def within_bounds(expression: str) -> bool:
    """True if length, digits, exponents, factorials and nesting all keep to the caps above."""
    return (
        len(expression) <= MAX_LENGTH
        and not _LONG_NUMBER.search(expression)
        and not _FACTORIAL.search(expression)
        and all(_is_small_power(match) for match in _POWER.finditer(expression))
        and _depth(expression) <= MAX_DEPTH
    )


def _is_small_power(match: re.Match[str]) -> bool:
    """Is the exponent, or the exponent raised to its own exponent (`b^{c^d}`), at most MAX_EXPONENT?"""
    exponent, tower = match.group(1), match.group(2)
    if max(len(exponent), len(tower or "")) > len(str(MAX_EXPONENT)):
        return False
    value = int(exponent) if tower is None or int(exponent) < 2 else _capped_power(int(exponent), int(tower))
    return value <= MAX_EXPONENT


def _capped_power(base: int, exponent: int) -> int:
    return base**exponent if exponent <= MAX_EXPONENT.bit_length() else MAX_EXPONENT + 1


def _depth(expression: str) -> int:
    deepest = depth = 0
    for character in expression:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return deepest
