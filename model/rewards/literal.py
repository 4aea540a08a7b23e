r"""Most answers need no algebra: compare them as strings, numbers, words or choice letters, in microseconds.

`compare_literally` says pass or fail where that is certain, and None where a computer algebra system has to
decide (`1/3` and `0.333333`, `10\%` and `0.1`, anything with a symbol in it). Numbers are compared exactly,
as fractions; a difference above 2e-6 is a fail, as it is for Math-Verify, which rounds to 6 decimals; smaller
ones are left to it.
"""

from __future__ import annotations

import re
from fractions import Fraction

from model.rewards.bounds import MAX_DIGITS
from model.rewards.check import Judgement, failed, passed

_MAX_SCIENTIFIC = 100  # greatest exponent of ten that is written out
_UNDECIDED_BELOW = Fraction(2, 1_000_000)

# Zero-width and direction marks, and control characters that are no white space: without meaning here.
_INVISIBLE = dict.fromkeys(
    [
        *(*range(0x09), *range(0x0E, 0x1C), 0x7F),
        *(*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF),
    ]
)
_LOOKALIKES = str.maketrans(
    {
        "−": "-",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
        "°": r"^\circ",
        "²": "^2",
        "³": "^3",
        "π": r"\pi ",
    }
    | {
        "½": r"\frac{1}{2}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
    }
    | {
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "×": r"\times ",
        "÷": r"\div ",
        "·": r"\cdot ",
    }
)

_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_COMMANDS = (r"\boxed{", r"\text{", r"\mathrm{", r"\textbf{", r"\mathbf{")
_LEAD_IN = re.compile(r"(?:so |thus |therefore )?(?:the )?(?:final |correct )?answer(?: is)?\s*[:=]?\s+", re.IGNORECASE)
_SPACING = re.compile(r"\\[,!;: ]|~|\\quad|\\qquad")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?)(?![a-zA-Z])")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_CURRENCY = re.compile(r"^([+-]?)\s*(?:\\\$|\$|€|£)\s*(?=[\d.])")
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})$")

_GROUPED = re.compile(r"[+-]?\d{1,3}(?:([, ])\d{3})(?:\1\d{3})*(?:\.\d+)?")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_RATIO = re.compile(r"([+-]?\d+)\s*/\s*(\d+)")
_FRAC = re.compile(r"([+-]?)\\frac(?:\{([+-]?\d+)\}\{(\d+)\}|(\d)(\d))")
_SCIENTIFIC = re.compile(r"([+-]?\d+\.?\d*)(?:[eE]|(?:\\times|\\cdot|×|\*)10(?:\^|\*\*))\{?([+-]?\d{1,3})\}?")
_DIGIT_PAIR = re.compile(r"\d\s+\d")  # "1 1/2" must not become 11/2
_IDLE_SPACE = re.compile(r"(?<!\d) | (?!\d)")
_WORDS = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z'-]+(?: +[A-Za-z'-]+){0,3}")
_WITH_UNIT = re.compile(r"(.*\d)\s+([A-Za-z]{3,}(?: [A-Za-z]+){0,2})")
# Words behind a number that make another number, or another expression, of it.
_NO_UNITS = frozenset(
    {
        "and", "or", "dozen", "dozens", "pair", "pairs", "factorial", "hundred", "hundreds", "thousand",
        "thousands", "million", "millions", "billion", "billions", "trillion", "percent", "degrees",
        "radians", "squared", "cubed", "times", "over", "plus", "minus", "mod", "half", "halves", "third",
        "thirds", "quarter", "quarters", "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt",
    }
)  # fmt: skip
_BARE_CHOICE = re.compile(r"\(?([A-Ea-e])\)?[.:]?")
_NAMED_CHOICE = re.compile(r"(?:option|choice)\s*:?\s*\(?([A-E])\)?\.?", re.IGNORECASE)
_CHOICE_WITH_TEXT = re.compile(r"(?:\(([A-E])\)|([A-E])[).:])\s*\S")


def compare_literally(answer: str, gold: str) -> Judgement | None:
    """pass `equal_string` or `equal_number`, fail `not_equal`, or None: algebra has to decide."""
    answer_core, gold_core = peel(answer), peel(gold)
    if canonical(answer_core) == canonical(gold_core) != "":
        return passed("equal_string")
    if re.fullmatch(r"\(?[A-E]\)?", gold_core):
        return _verdict(choice(answer_core) == choice(gold_core), "equal_string")
    answer_core, gold_core = _without_one_unit(answer_core, gold_core)
    answer_words, gold_words = words(answer_core), words(gold_core)
    if answer_words and gold_words:
        return _verdict(answer_words == gold_words, "equal_string")
    return _compare_numbers(answer_core, gold_core, bool(answer_words or gold_words))


def peel(text: str) -> str:
    r"""The text without what merely surrounds it: `$…$`, `\boxed{…}`, `**…**`, a lead-in, a full stop."""
    core = text.translate(_INVISIBLE).translate(_LOOKALIKES).strip()
    for _ in range(8):
        peeled = _peel_once(core)
        if peeled == core:
            break
        core = peeled
    return core


def canonical(core: str) -> str:
    r"""A spelling that equal strings share: no `\left`, `\dfrac` as `\frac`, no space but between digits."""
    plain = _FRACTIONS.sub(r"\\frac", _SIZES.sub("", _SPACING.sub(" ", core)))
    return _IDLE_SPACE.sub("", " ".join(plain.split()))


def number(core: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction or scientific number; None for anything else."""
    text = _CURRENCY.sub(r"\1", _DEGREES.sub("", _SIZES.sub("", _FRACTIONS.sub(r"\\frac", core))))
    text = _SPACING.sub(" ", text.replace("{,}", ",")).strip()
    if len(text) > MAX_DIGITS or not text.isascii():
        return None
    if _GROUPED.fullmatch(text):
        return Fraction(re.sub("[, ]", "", text))
    return None if _DIGIT_PAIR.search(text) else _ungrouped(re.sub(r"\s+", "", text))


def words(core: str) -> str | None:
    """The lower-case words of an answer that is nothing but words (`odd`, `Monday`), else None."""
    return " ".join(core.lower().split()) if _WORDS.fullmatch(core) else None


def choice(core: str) -> str | None:
    """The letter of a multiple-choice answer: `B`, `(b)`, `B.`, `Option B`, `(B) 42`; else None."""
    found = _BARE_CHOICE.fullmatch(core) or _NAMED_CHOICE.fullmatch(core) or _CHOICE_WITH_TEXT.match(core)
    return next(letter.upper() for letter in found.groups() if letter) if found else None


def _without_one_unit(answer: str, gold: str) -> tuple[str, str]:
    """`7 apples` is 7 beside a gold 7, and the other way round; two different units are left as they are."""
    bare_answer, bare_gold = _without_unit(answer), _without_unit(gold)
    return (answer, gold) if bare_answer != answer and bare_gold != gold else (bare_answer, bare_gold)


def _without_unit(core: str) -> str:
    found = _WITH_UNIT.fullmatch(core)
    if found is None or not _NO_UNITS.isdisjoint(found.group(2).lower().split()):
        return core
    return found.group(1) if number(found.group(1)) is not None else core


def _verdict(is_equal: bool, reason: str) -> Judgement:
    return passed(reason) if is_equal else failed("not_equal")


def _compare_numbers(answer: str, gold: str, is_one_words: bool) -> Judgement | None:
    answer_value, gold_value = number(answer), number(gold)
    if answer_value is None or gold_value is None:
        is_mismatch = is_one_words and (answer_value is not None or gold_value is not None)
        return failed("not_equal") if is_mismatch else None
    if answer_value == gold_value:
        return passed("equal_number")
    return failed("not_equal") if abs(answer_value - gold_value) > _UNDECIDED_BELOW else None


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


def _peel_once(core: str) -> str:
    core = _LEAD_IN.sub("", core, count=1) if _LEAD_IN.match(core) else core
    for opening, closing in _WRAPPERS:
        inner = core[len(opening) : -len(closing)]
        if core.startswith(opening) and core.endswith(closing) and inner and opening not in inner:
            return inner.strip()
    for command in _COMMANDS:
        inner = core[len(command) : -1]
        if core.startswith(command) and core.endswith("}") and "{" not in inner and "}" not in inner:
            return inner.strip()
    return core[:-1].rstrip() if len(core) > 1 and core.endswith(".") else core
