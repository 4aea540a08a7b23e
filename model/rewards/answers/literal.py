r"""Most answers need no algebra: compare them as strings, numbers, words, times or choice letters, in microseconds.

`compare_literally` says pass or fail where that is certain, and None where a computer algebra system has to decide
(`1/3` and `0.333333`, `10\%` and `0.1`, anything with a symbol in it). Numbers are compared exactly, as fractions;
a difference above 2e-6 is a fail, as it is for Math-Verify, which rounds to 6 decimals; smaller ones are left to
it. A number with a unit equals the bare number and the same number with the same unit however it is spelled; with
another unit it does not, and nothing is converted.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from model.rewards.answers.clock import clock, is_same_time
from model.rewards.answers.numerals import number, plain_latex
from model.rewards.answers.units import split_unit
from model.rewards.check import Judgement, failed, passed

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
        "±": r"\pm ",
        "≈": r"\approx ",
        "√": r"\sqrt ",
        "∪": r"\cup ",
        "∈": r"\in ",
    }
    | {"（": "(", "）": ")", "，": ",", "、": ",", "．": ".", "：": ":", "－": "-", "＋": "+", "＝": "=", "％": "%"}
    | {"٫": ".", "٬": ",", "／": "/", "。": ".", "’": "'"}
)

_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_COMMANDS = (r"\boxed{", r"\fbox{", r"\text{", r"\mathrm{", r"\textbf{", r"\mathbf{", r"\mbox{")
_LEAD_IN = re.compile(r"(?:so |thus |therefore )?(?:the )?(?:final |correct )?answer(?: is)?\s*[:=]?\s+", re.IGNORECASE)
_EQUALS = re.compile(r"(?:=|\\approx(?![a-zA-Z]))\s*(?=\S)")
_OTHER_DIGITS = re.compile(r"(?![0-9])\d")
_ASSIGNED = re.compile(r"[A-Za-z](?:_(?:\w|\{\w+\}))?\s*=\s*([^=<>]+)")
_PERCENTAGE = re.compile(r"(\d{1,15})(?:\s*\\?%)?", re.ASCII)
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
_NAMED_CHOICE = re.compile(r"(?:option|choice|answer)\s*:?\s*\(?([A-E])\)?\.?", re.IGNORECASE)
_CHOICE_WITH_TEXT = re.compile(r"(?:\(([A-E])\)|([A-E])[).:])\s*\S")
_DRESSED_LETTER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm)\s*\{\s*\(?([A-E])\)?[.:]?\s*\}")
_CHOICES = re.compile(r"\(?[A-E]\)?(?:\s*(?:,|;|&|and)?\s*\(?[A-E]\)?)+")


def compare_literally(answer: str, gold: str) -> Judgement | None:
    """pass `equal_string` or `equal_number`, fail `not_equal` or `other_unit`, or None: algebra has to decide."""
    answer_core, gold_core = peel(answer), peel(gold)
    if canonical(answer_core) == canonical(gold_core) != "":
        return passed("equal_string")
    return (
        _compare_choices(answer_core, gold_core)
        or _compare_times(answer_core, gold_core)
        or _compare_quantities(answer_core, gold_core)
    )


def peel(text: str) -> str:
    r"""The text without what merely surrounds it: `$…$`, `\boxed{…}`, `**…**`, a lead-in, a full stop."""
    core = tidy(text).strip()
    for _ in range(8):
        peeled = _peel_once(core)
        if peeled == core:
            break
        core = peeled
    return core


def tidy(text: str) -> str:
    """The text in the characters that maths is read in: no invisible ones, ASCII digits, signs as LaTeX commands."""
    if text.isascii() and text.isprintable():
        return text
    plain = text.translate(_INVISIBLE).translate(_LOOKALIKES)
    return _OTHER_DIGITS.sub(lambda digit: str(unicodedata.decimal(digit[0])), plain)


def canonical(core: str) -> str:
    r"""A spelling that equal strings share: no `\left`, `\dfrac` as `\frac`, no space but between digits."""
    return _IDLE_SPACE.sub("", " ".join(plain_latex(core).split()))


def words(core: str) -> str | None:
    """The lower-case words of an answer that is nothing but words (`odd`, `Monday`), else None."""
    return " ".join(core.lower().split()) if _WORDS.fullmatch(core) else None


def choice(core: str) -> str | None:
    """The letter of a multiple-choice answer: `B`, `(b)`, `B.`, `Option B`, `(B) 42`; else None."""
    core = _DRESSED_LETTER.sub(r"(\1)", core)
    found = _BARE_CHOICE.fullmatch(core) or _NAMED_CHOICE.fullmatch(core) or _CHOICE_WITH_TEXT.match(core)
    return next(letter.upper() for letter in found.groups() if letter) if found else None


def choices(core: str) -> frozenset[str] | None:
    """The letters of an answer that names several: `A, C`, `AC`, `(A) and (C)`; None for others and for `AA`."""
    core = _DRESSED_LETTER.sub(r"(\1)", core)
    letters = re.findall("[A-E]", core) if _CHOICES.fullmatch(core) else []
    return frozenset(letters) if 1 < len(letters) == len(set(letters)) else None


def _compare_choices(answer: str, gold: str) -> Judgement | None:
    """Decided wherever the gold is a letter, alone or with its text; with several letters, if both sides name some."""
    several = choices(gold)
    if several is not None:
        named = choices(answer)
        return None if named is None else _verdict(named == several, "equal_string")
    letter = choice(gold)
    if letter is None or not (re.fullmatch(r"\(?[A-E]\)?", gold) or _NAMED_CHOICE.fullmatch(gold) or choice(answer)):
        return None
    return _verdict(choice(answer) == letter, "equal_string")


def _compare_times(answer: str, gold: str) -> Judgement | None:
    """Decided if both are times, and nobody would take the gold for a ratio."""
    answer_time, gold_time = clock(answer), clock(gold)
    if answer_time is None or gold_time is None or not (gold_time.is_clock or answer_time.has_half):
        return None
    return _verdict(is_same_time(answer_time, gold_time), "equal_string")


def _compare_quantities(answer: str, gold: str) -> Judgement | None:
    answer_core, answer_unit = split_unit(answer)
    gold_core, gold_unit = split_unit(gold)
    if answer_unit and gold_unit and answer_unit != gold_unit:
        return failed("other_unit")
    answer_core, gold_core = _without_one_unit(*_assigned(answer_core, gold_core))
    answer_words, gold_words = words(answer_core), words(gold_core)
    if answer_words and gold_words:
        return _verdict(answer_words == gold_words, "equal_string")
    return _compare_numbers(answer_core, gold_core, bool(answer_words or gold_words))


def _assigned(answer: str, gold: str) -> tuple[str, str]:
    """`x = 5` is 5 beside a bare number, whatever the letter; two equations are left as they are."""
    found_answer, found_gold = _ASSIGNED.fullmatch(answer), _ASSIGNED.fullmatch(gold)
    if found_answer and not found_gold and number(gold) is not None:
        return found_answer[1], gold
    if found_gold and not found_answer and number(answer) is not None:
        return answer, found_gold[1]
    return answer, gold


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
    if _is_same_percentage(answer, gold):
        return passed("equal_number")
    # A decimal comma only beside a number without one: `1,22` may be two numbers.
    if answer_value is None and gold_value is not None:
        answer_value = number(answer, has_decimal_comma=True)
    elif gold_value is None and answer_value is not None:
        gold_value = number(gold, has_decimal_comma=True)
    if answer_value is None or gold_value is None:
        is_mismatch = is_one_words and (answer_value is not None or gold_value is not None)
        return failed("not_equal") if is_mismatch else None
    if answer_value == gold_value:
        return passed("equal_number")
    return failed("not_equal") if abs(answer_value - gold_value) > _UNDECIDED_BELOW else None


def _is_same_percentage(answer: str, gold: str) -> bool:
    r"""Whole numbers, one or both with a per cent sign: `28\%` is 28 (a question may ask for per cent).

    Math-Verify's rule; negative ones it tells apart, and so they are left to it.
    """
    counts = [_PERCENTAGE.fullmatch(text) for text in (answer, gold)]
    return all(counts) and len({int(count[1]) for count in counts if count}) == 1


def _peel_once(core: str) -> str:
    core = core[found.end() :] if (found := _EQUALS.match(core)) else core
    core = _LEAD_IN.sub("", core, count=1) if _LEAD_IN.match(core) else core
    for opening, closing in _WRAPPERS:
        inner = core[len(opening) : -len(closing)]
        if core.startswith(opening) and core.endswith(closing) and inner and opening not in inner:
            return inner.strip()
    for command in _COMMANDS:
        inner = core[len(command) : -1]
        if core.startswith(command) and core.endswith("}") and inner.strip() and _is_balanced(inner):
            return inner.strip()
    return core[:-1].rstrip() if len(core) > 1 and core.endswith(".") else core


def _is_balanced(text: str) -> bool:
    """Does every brace that closes close one that was opened in this text?"""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0
