r"""What number is this, exactly? Integers, decimals, fractions, mixed and scientific numbers, in several spellings.

Digits of any script count (Arabic, Thai, full-width). Thousands may be set off by commas, spaces, apostrophes, or,
where it cannot be a decimal, points. `1.234` is a decimal, `1,234` a thousand; a comma before other than three
digits is read as a decimal comma only on request, since `1,22` may as well be two numbers. No floats: everything
is a fraction. Expressions, percentages and units are not numbers here.
"""

from __future__ import annotations

import re
from fractions import Fraction

from model.rewards.answers.bounds import MAX_DIGITS

_MAX_SCIENTIFIC = 100  # greatest exponent of ten that is written out

_SPACING = re.compile(r"\\[,!;: ]|~|\\quad|\\qquad")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?)(?![a-zA-Z])")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_CURRENCY = re.compile(r"^([+-]?)\s*(?:\\\$|\$|€|£|¥)\s*(?=[\d.])")
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})$")

_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:([, '])\d{3})(?:\1\d{3})*(?:\.\d+)?")
_POINT_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:(?:\.\d{3}){2,}|(?:[. ]\d{3})+,\d+)")  # 1.234.567 and 1.234,5
_DECIMAL_COMMA = re.compile(r"[+-]?(?:\d+,(?!\d{3}(?!\d))\d+|0,\d+)")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_RATIO = re.compile(r"([+-]?\d+)\s*/\s*(\d+)")
_FRAC = re.compile(r"([+-]?)\\frac(?:\{([+-]?\d+)\}\{(\d+)\}|(\d)(\d))")
_MIXED = re.compile(r"([+-]?)(\d+)(?: +(\d+) ?/ ?(\d+)| *\\frac ?\{(\d+)\} ?\{(\d+)\}| *\\frac ?(\d)(\d))")
_SCIENTIFIC = re.compile(r"([+-]?\d+\.?\d*)(?:[eE]|(?:\\times|\\cdot|×|\*)10(?:\^|\*\*))\{?([+-]?\d{1,3})\}?")
_DIGIT_PAIR = re.compile(r"\d\s+\d")  # "1 1/2" must not become 11/2


def number(core: str, *, has_decimal_comma: bool = False) -> Fraction | None:
    """The exact value of a number, None for anything else; `has_decimal_comma` reads `1,22` as 1.22."""
    text = _CURRENCY.sub(r"\1", _DEGREES.sub("", plain_latex(core))).replace("{,}", ",").strip()
    if len(text) > MAX_DIGITS or not text.isascii():
        return None
    if _GROUPED.fullmatch(text):
        return Fraction(re.sub("[, ']", "", text))
    if _POINT_GROUPED.fullmatch(text):
        return Fraction(re.sub("[. ]", "", text).replace(",", "."))
    if has_decimal_comma and _DECIMAL_COMMA.fullmatch(text):
        return Fraction(text.replace(",", "."))
    return _mixed(text) or (None if _DIGIT_PAIR.search(text) else _ungrouped(re.sub(r"\s+", "", text)))


def plain_latex(core: str) -> str:
    r"""Without `\left` and `\right`, `\dfrac` as `\frac`, every spacing command as a space."""
    return _SPACING.sub(" ", _FRACTIONS.sub(r"\\frac", _SIZES.sub("", core)))


def _mixed(text: str) -> Fraction | None:
    r"""`1 1/2` and `1\frac{1}{2}` where the fraction is a proper one; `2 3/2` is no way to write a number."""
    found = _MIXED.fullmatch(text)
    if found is None:
        return None
    sign, whole, *parts = found.groups()
    top, bottom = (int(part) for part in parts if part is not None)
    if not 0 < top < bottom or int(whole) == 0:
        return None
    value = int(whole) + Fraction(top, bottom)
    return -value if sign == "-" else value


def _ungrouped(text: str) -> Fraction | None:
    if _DECIMAL.fullmatch(text):
        return Fraction(text)
    if ratio := _RATIO.fullmatch(text):
        return _divided(ratio.group(1), ratio.group(2))
    if frac := _FRAC.fullmatch(text):
        sign, top, bottom, top_digit, bottom_digit = frac.groups()
        value = _divided(top or top_digit, bottom or bottom_digit)
        return -value if value is not None and sign == "-" else value
    if scientific := _SCIENTIFIC.fullmatch(text):
        exponent = int(scientific.group(2))
        return Fraction(scientific.group(1)) * Fraction(10) ** exponent if abs(exponent) <= _MAX_SCIENTIFIC else None
    return None


def _divided(top: str, bottom: str) -> Fraction | None:
    return Fraction(int(top), int(bottom)) if int(bottom) else None
