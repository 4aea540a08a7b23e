r"""Answers that are wrong in a known way, made from a gold answer: what a check worth trusting must refuse.

Each rule has a name (the `case`) and says which golds it applies to; on all others it makes nothing, since a
corruption that means the same as its gold would accuse a check wrongly. So zero has no flipped sign, `\binom{5}{2}` and
`\sin 0` keep their digits (neighbours may be equal), `[1, 2] \cup [2, 3]` keeps the bracket at 2, a list of solutions
keeps its order. The last guard is a reading of numbers of its own: an audit that read them with the check's reader
could not find that reader's mistakes. Not covered: golds in prose (only the empty answers), expressions that are equal
for deeper reasons; whatever a rule gets wrong is seen in the audit's list of false accepts.

Cases by gold. any: empty, only_in_thought. Numbers: sign_flipped, digit_changed, off_by_one, ten_times, inverted (a
fraction), hedged (`7 or 8`), other_answer. Expressions: sign_flipped, digit_changed, pi_dropped, root_dropped,
solution_dropped (also of ± and lists), solution_added, relation_flipped. Tuples: order_changed. Intervals:
bracket_changed. Units: unit_changed. Times of day: half_day. Choices: other_choice. Words: opposite, other_answer.
Programs: empty, and `mutant:KIND` (`model/rewards/programs/mutants.py`).

Beside them the right answer in other words (`spellings`), which a check must not refuse: that the gold equals itself
letter by letter says little. Cases: boxed (all golds), respelled (numbers, fractions, sets, one-line expressions).
"""

from __future__ import annotations

import ast
import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from model.rewards.answers.literal import peel
from model.rewards.programs.mutants import mutants

RULES = 2  # raised when other answers are made, so that audits are done anew

_LONGEST = 300  # characters of a gold that rules look into
_HEDGED_OF = 10
_FINEST = 5  # decimal places beyond which one more in the last place may count as equal

_NUMBER = r"[+-]?(?:[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_PLAIN = re.compile(_NUMBER)
_FRACTION = re.compile(r"([+-]?)\s*(?:\\[dt]?frac\s*\{\s*([+-]?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d+)\s*/\s*(\d+))")
_ANY_FRACTION = re.compile(r"([+-]?\s*)\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_RATIO = re.compile(r"(\d+)\s*(:|/)\s*(\d+)")
_NUMERAL = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{[^{}]*\}")
# Exponents, indices and degrees of roots: a changed digit there may change nothing (1^2), or rename something (x_1).
_SMALL_PRINT = re.compile(r"[\^_]\s*(?:\{[^{}]*\}|\\?\w+)|\\sqrt\s*\[[^\]]*\]")
_SPACING = re.compile(r"\s+|\\[,;:! ]|~|\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])")
# Different arguments of these may have equal values.
_MANY_TO_ONE = re.compile(
    r"\\(?:binom|d?tbinom|(?:arc)?(?:sin|cos|tan|cot|sec|csc)|gcd|lcm|max|min|[lr]floor|[lr]ceil|p?b?mod|equiv|sum|prod"
    r"|int|lim|dots|ldots|cdots|vdots|det|ln|log)(?![A-Za-z])|!|\||\\v?mod|(?<![A-Za-z])(?:sin|cos|tan|mod|gcd|max|min)"
)
_SETS = re.compile(r"\\(?:pm|mp|in|cup|cap|setminus|mathbb|begin|infty|neq?|le|ge|leq|geq|lor|land)(?![A-Za-z])|[<>:]")
_FREE_INTEGER = re.compile(r"(?<![A-Za-z\\])[kmn](?![A-Za-z])")
_RELATION = re.compile(r"\\leqslant|\\geqslant|\\leq?(?![A-Za-z])|\\geq?(?![A-Za-z])|<=|>=|<|>")
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", r"\le": r"\ge", r"\ge": r"\le", r"\leq": r"\geq"}
_TURNED |= {r"\geq": r"\leq", r"\leqslant": r"\geqslant", r"\geqslant": r"\leqslant"}
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])\s*")
_PI = re.compile(r"\\pi(?![A-Za-z])\s*")
_ROOT = re.compile(r"\\sqrt\s*\{\s*(\d+)\s*\}")
_NAMED = re.compile(r"(?:[A-Za-z]\s*(?:=|\\in)\s*)?")
_INTERVAL = re.compile(r"([\[(])\s*([^,()\[\]]+?)\s*,\s*([^,()\[\]]+?)\s*([\])])")
_TOGGLED = {"(": "[", "[": "(", ")": "]", "]": ")"}
_HALF_DAY = re.compile(r"(?<=[\d\s{~,])([ap])(?=\.?\s?m\.?(?![A-Za-z]))", re.IGNORECASE)
_CHOICE = re.compile(r"\(?([A-E])\)?")
# The letter is the answer, what follows it is not looked at.
_LETTERED = re.compile(r"(?:\\text(?:bf)?\s*\{\s*)?(?:\([A-E]\)|[A-E][).:]\s)")
_AND_OR = re.compile(r"(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_WORD = re.compile(r"[A-Za-z][a-z]+(?: [A-Za-z][a-z]+)?")
_SAME_WORDS = ({"yes", "true", "correct"}, {"no", "false", "incorrect"})
_OPPOSITES = (("even", "odd"), ("yes", "no"), ("true", "false"), ("increasing", "decreasing"), ("win", "lose"))
_OPPOSITE = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1])}
_OTHER_UNIT = {
    "mm": "cm", "cm": "mm", "km": "cm", "centimeters": "meters", "meters": "centimeters", "kilometers": "miles",
    "miles": "kilometers", "inches": "feet", "feet": "inches", "ft": "yards", "yards": "feet", "kg": "mg", "mg": "kg",
    "grams": "kilograms", "kilograms": "grams", "pounds": "ounces", "ounces": "pounds", "seconds": "minutes",
    "minutes": "hours", "hours": "minutes", "days": "weeks", "weeks": "days", "months": "years", "years": "months",
    "dollars": "cents", "cents": "dollars", "liters": "gallons", "gallons": "liters", "mph": "km/h", "km/h": "mph",
    "degrees": "radians", "radians": "degrees", "m/s": "km/h", "mL": "L",
}  # fmt: skip
_LONG_UNITS = "|".join(sorted(map(re.escape, _OTHER_UNIT), key=len, reverse=True))
_UNIT = re.compile(rf"(?<=[\d\s}}{{~,;])({_LONG_UNITS})(?![A-Za-z/])")
_TEXT_UNIT = re.compile(r"(\\(?:text|mathrm)\s*\{\s*)(m|s|g|h|L)(?=\s*\})")
_OTHER_LETTER = {"m": "cm", "s": "min", "g": "kg", "h": "min", "L": "mL"}
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})$")
_DOLLARS = re.compile(r"^\\\$(?=\s*\d)")


@dataclass(frozen=True, slots=True)
class Corruption:
    """A wrong answer, how it was made, and what stands in the thought before it."""

    case: str
    answer: str
    thought: str = ""


def corruptions(gold: str, other: str | None = None) -> list[Corruption]:
    """Wrong answers to a problem whose right one is `gold`; `other` is another problem's, certainly different.

    Deterministic; no two have the same answer and thought, and none reads as the gold does.
    """
    made = [Corruption("empty", ""), Corruption("only_in_thought", "", rf"So the answer is \boxed{{{gold}}}.")]
    core = _core(gold)
    if core is not None:
        seen = {_squashed(core)}
        for case, answer in _applied(core, other):
            if _squashed(answer) not in seen and (value(answer) is None or value(answer) != value(core)):
                seen.add(_squashed(answer))
                made.append(Corruption(case, answer))
    return made


def spellings(gold: str) -> list[Corruption]:
    """The right answer as a model may also write it. Deterministic; none is the gold letter by letter."""
    core = _core(gold)
    if core is None:
        return []
    made = [Corruption("boxed", rf"The answer is $\boxed{{{core}}}$.")]
    respelled = _respelled(core)
    return made if respelled is None else [*made, Corruption("respelled", respelled)]


def wrong_programs(source: str, most: int, entry: str | None = None) -> list[Corruption]:
    """At most `most` mutants of a reference solution, spread over it, and the empty answer; none of no program.

    `entry`: the only function that the tests call, where that is so.
    """
    try:
        found = mutants(source, entry, most)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # what `ast` says of texts that are no programs
        found = []
    return [Corruption("empty", ""), *(Corruption(f"mutant:{mutant.kind}", mutant.source) for mutant in found)]


def changed_line(source: str, mutant: str) -> str:
    """The first line of a mutant that its source lacks, whatever layout and annotations; all of it where none does."""
    try:
        known = set(map(str.strip, ast.unparse(ast.parse(source)).splitlines()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        known = set()
    lines = [line.strip() for line in mutant.splitlines() if not line.lstrip().startswith(("def ", "class "))]
    return next((line for line in lines if line and line not in known), mutant)


def other_answer(gold: str, candidates: Iterable[str]) -> str | None:
    """The first of other problems' answers that cannot possibly be taken for `gold`, or None."""
    return next((other for other in candidates if surely_different(peel(gold), peel(other))), None)


def surely_different(one: str, other: str) -> bool:
    """Two plain numbers apart (and not as 50 and 0.5 are, which a percentage may be), or two words apart."""
    a, b = value(one), value(other)
    if a is not None and b is not None:
        return abs(a - b) > Fraction(1, 1000) and a not in (100 * b, b / 100)
    if not (_WORD.fullmatch(one) and _WORD.fullmatch(other)):
        return False
    first, second = set(one.lower().split()), set(other.lower().split())
    return first.isdisjoint(second) and not any(first & same and second & same for same in _SAME_WORDS)


def value(core: str) -> Fraction | None:
    r"""What a plainly written number is: `-3`, `1,234.5`, `2/3`, `\frac{2}{3}`; None for all else."""
    if _PLAIN.fullmatch(core):
        return Fraction(core.replace(",", ""))
    found = _FRACTION.fullmatch(core)
    if found is None:
        return None
    sign, *parts = found.groups()
    top, bottom = (int(part) for part in parts if part is not None)
    return Fraction(-top if sign == "-" else top, bottom) if bottom else None


def _applied(core: str, other: str | None) -> Iterator[tuple[str, str]]:
    for case, rule in _RULES:
        answer = rule(core)
        if answer is not None:
            yield case, answer
    if other is not None and surely_different(core, peel(other)):
        yield "other_answer", peel(other)


# --- the right answer in other words ---------------------------------------------------------------


def _respelled(core: str) -> str | None:
    """A number with other marks, a fraction the other way, a set in another order, an expression times one."""
    if value(core) is not None:
        return _other_marks(core) if _PLAIN.fullmatch(core) else _other_fraction(core)
    listed = _listed(core)
    if listed is not None and r"\{" in core:
        return _relisted(core, listed[::-1])
    is_one = _has_a_sign(core, "") and not re.search(r"[=%;]|\\circ|\\\$", core)
    is_one = is_one and not _TEXT.search(core) and not _PROSE.search(core)
    return rf"1 \cdot ({core})" if is_one else None


def _other_marks(core: str) -> str:
    """`1,234` for `1234` and the other way round, `7.0` for `7`, `2.50` for `2.5`."""
    if "," in core:
        return core.replace(",", "")
    if "." in core:
        return f"{core}0"
    return f"{int(core):,}" if len(core) > 4 else f"{core}.0"


def _other_fraction(core: str) -> str:
    r"""`2/3` for `\frac{2}{3}` and the other way round."""
    number = value(core)
    assert number is not None
    if "frac" in core:
        return f"{number.numerator}/{number.denominator}"
    return rf"\frac{{{number.numerator}}}{{{number.denominator}}}"


# --- numbers ---------------------------------------------------------------------------------------


def _sign_flipped(core: str) -> str | None:
    """Of a number that is not zero, or of an expression that cannot be its own negative."""
    number = value(core)
    if number is not None:
        return None if number == 0 else _negative(core)
    head, equals, expression = core.rpartition("=")
    if head.count("=") or not _has_a_sign(expression.strip(), head):
        return None
    return f"{head}{equals} {_negative(expression.strip())}".strip()


def _has_a_sign(expression: str, head: str) -> bool:
    """One expression, neither zero nor a set, list, family of solutions, time, label or word."""
    bare = _TEXT.sub("", expression)
    is_family = r"\pi" in bare and _FREE_INTEGER.search(bare)
    core = head + bare
    is_many = _SETS.search(core) or _MANY_TO_ONE.search(core) or _AND_OR.search(bare) or is_family or "," in core
    is_one = not (is_many or _HALF_DAY.search(expression))
    numerals = _NUMERAL.findall(_SMALL_PRINT.sub("", bare))
    is_zero = any(not numeral.strip("0.,") for numeral in numerals) or not (numerals or r"\pi" in bare)
    return is_one and not is_zero and not re.match(r"\\?[\[{]", bare)


def _negative(expression: str) -> str:
    rest = expression[1:].strip() if expression[:1] in ("-", "+") else expression
    if _terms(rest) > 1:
        return f"-({expression})"
    return rest if expression.startswith("-") else f"-{rest}"


def _terms(expression: str) -> int:
    """Terms outside all brackets."""
    depth, terms = 0, 1
    for character in expression:
        depth += (character in "({[") - (character in ")}]")
        terms += depth == 0 and character in "+-"
    return terms


def _digit_changed(core: str) -> str | None:
    """The leading digit of a number; of several the zero, which might make the others mean nothing."""
    if value(core) is None and (_MANY_TO_ONE.search(core) or _LETTERED.match(core) or core.count("=") > 1):
        return None
    visible = _SMALL_PRINT.sub(_blank, _TEXT.sub(_blank, core))
    numerals = list(_NUMERAL.finditer(visible))
    if not numerals:
        return None
    zeros = [found for found in numerals if not found.group().strip("0.,")]
    place = (zeros or numerals)[0]
    position = place.end() - 1 if ":" in core else place.start()
    return core[:position] + str((int(core[position]) + 4) % 9 + 1) + core[position + 1 :]


def _blank(found: re.Match[str]) -> str:
    return " " * len(found.group())


def _off_by_one(core: str) -> str | None:
    """One more in the last place of a whole or decimal number."""
    places = _decimal_places(core)
    if places is None or places > _FINEST:
        return None
    return _written(Fraction(core.replace(",", "")) + Fraction(1, 10**places), places)


def _ten_times(core: str) -> str | None:
    places, number = _decimal_places(core), value(core)
    if places is None or number is None or number == 0:
        return None
    return _written(10 * number, max(places - 1, 0))


def _decimal_places(core: str) -> int | None:
    return len(core.partition(".")[2]) if _PLAIN.fullmatch(core) else None


def _written(number: Fraction, places: int) -> str:
    """A number of at most so many decimal places, as a decimal."""
    scaled = abs(number) * 10**places
    assert scaled.denominator == 1, "whoever calls knows the places"
    digits = str(scaled.numerator).rjust(places + 1, "0")
    whole = digits[: len(digits) - places] + (f".{digits[-places:]}" if places else "")
    return f"-{whole}" if number < 0 else whole


def _inverted(core: str) -> str | None:
    r"""`3/2` for `2/3`, `\frac{4}{\pi}` for `\frac{\pi}{4}`, `2:1` for `1:2`."""
    if ratio := _RATIO.fullmatch(core):
        top, sign, bottom = ratio.groups()
        return f"{bottom}{sign}{top}" if int(top) != int(bottom) and int(top) else None
    found = _ANY_FRACTION.fullmatch(core)
    if found is None or _SETS.search(core) or _MANY_TO_ONE.search(core):
        return None
    sign, top, bottom = (part.strip() for part in found.groups())
    both = value(top), value(bottom)
    if None not in both:
        is_other = both[0] != 0 and abs(both[0] or 0) != abs(both[1] or 0)
    else:
        is_other = set(re.findall(r"[A-Za-z]+", top)) != set(re.findall(r"[A-Za-z]+", bottom))
    return rf"{sign}\frac{{{bottom}}}{{{top}}}" if is_other else None


def _hedged(core: str) -> str | None:
    """Two answers at once, the right one first: for one gold in ten, since it takes algebra to refuse them."""
    if zlib.crc32(core.encode(errors="replace")) % _HEDGED_OF:
        return None
    second = _off_by_one(core)
    return f"{core} or {second}" if second is not None else None


# --- expressions -----------------------------------------------------------------------------------


def _pi_dropped(core: str) -> str | None:
    if len(_PI.findall(core)) != 1 or _MANY_TO_ONE.search(core) or "=" in core:
        return None
    return _PI.sub(lambda found: "" if re.search(r"[\d})]\s*$", core[: found.start()]) else "1", core)


def _root_dropped(core: str) -> str | None:
    r"""`2 \cdot 3` for `2\sqrt{3}`."""
    roots = _ROOT.findall(core)
    if len(roots) != 1 or int(roots[0]) < 2 or core.count(r"\sqrt") > 1 or _MANY_TO_ONE.search(core):
        return None
    found = _ROOT.search(core)
    assert found is not None
    before, after = core[: found.start()].rstrip(), core[found.end() :].lstrip()
    left = r"\cdot " if re.search(r"[\w})]$", before) and not re.search(r"\\[A-Za-z]+$", before) else ""
    right = r" \cdot " if re.match(r"[\d(]", after) else ""
    return f"{before} {left}{roots[0]}{right}{after}".strip()


def _solution_dropped(core: str) -> str | None:
    """One root of ±, or a list without its last number."""
    if len(_PLUS_MINUS.findall(core)) == 1:
        found = _PLUS_MINUS.search(core)
        is_between = found is not None and re.search(r"[\w})]\s*$", core[: found.start()])
        return _PLUS_MINUS.sub("+ " if is_between else "", core)
    listed = _listed(core)
    return None if listed is None else _relisted(core, listed[:-1])


def _solution_added(core: str) -> str | None:
    listed = _listed(core)
    if listed is None:
        return None
    return _relisted(core, [*listed, str(int(max(value(item) or 0 for item in listed)) + 1)])


def _listed(core: str) -> list[str] | None:
    r"""The different numbers of `1, 2` or `\{1, 2\}`, as `x = …` too; None for tuples and all else."""
    if value(core) is not None:
        return None
    items = [item.strip() for item in _inside(core).split(",")]
    values = [value(item) for item in items]
    is_list = len(items) > 1 and None not in values and len(set(values)) == len(items)
    return items if is_list else None


def _inside(core: str) -> str:
    named = _NAMED.match(core)
    inner = core[named.end() if named else 0 :].strip()
    braced = re.fullmatch(r"(?:\\left\s*)?\\\{(.*?)(?:\\right\s*)?\\\}", inner)
    return braced.group(1) if braced else inner


def _relisted(core: str, items: list[str]) -> str:
    return core.replace(_inside(core), ", ".join(items))


def _relation_flipped(core: str) -> str | None:
    if len(_RELATION.findall(core)) != 1:
        return None
    return _RELATION.sub(lambda found: _TURNED[found.group()], core)


# --- tuples, intervals -----------------------------------------------------------------------------


def _order_changed(core: str) -> str | None:
    """Two neighbouring, different numbers of a tuple change places."""
    plain = re.sub(r"\\(?:left|right)(?![A-Za-z])\s*", "", core)
    inner = plain[1:-1]
    if not (plain.startswith("(") and plain.endswith(")")) or re.search(r"[()\[\]]", inner):
        return None
    items = [item.strip() for item in inner.split(",")]
    for place, (left, right) in enumerate(itertools.pairwise(items)):
        values = value(left), value(right)
        if None not in values and values[0] != values[1]:
            return f"({', '.join([*items[:place], right, left, *items[place + 2 :]])})"
    return None


def _bracket_changed(core: str) -> str | None:
    """A bound that belonged to the interval no longer does, or the other way round."""
    plain = re.sub(r"\\(?:left|right)(?![A-Za-z])\s*", "", core)
    intervals = list(_INTERVAL.finditer(plain))
    if not intervals or _INTERVAL.sub("", plain).replace(r"\cup", "").strip(" xyk=\\in") or not _are_intervals(plain):
        return None
    bounds = [bound for found in intervals for bound in (found.group(2), found.group(3))]
    for found in intervals:
        for bracket, bound in ((1, 2), (4, 3)):
            if "infty" not in found.group(bound) and bounds.count(found.group(bound)) == 1:
                at = found.start(bracket)
                return plain[:at] + _TOGGLED[plain[at]] + plain[at + 1 :]
    return None


def _are_intervals(plain: str) -> bool:
    """Not points or lists: half-open, without end, a union, or closed and in order."""
    found = _INTERVAL.search(plain)
    assert found is not None
    opening, low, high, closing = found.groups()
    if r"\infty" in plain or r"\cup" in plain or (opening == "(") != (closing == ")"):
        return True
    ends = value(low), value(high)
    return opening == "[" and ends[0] is not None and ends[1] is not None and ends[0] < ends[1]


# --- units, times, choices, words ------------------------------------------------------------------


def _unit_changed(core: str) -> str | None:
    if not re.search(r"\d|\\pi", core):
        return None
    if _UNIT.search(core):
        return _UNIT.sub(lambda found: _OTHER_UNIT[found.group(1)], core, count=1)
    if _TEXT_UNIT.search(core):
        return _TEXT_UNIT.sub(lambda found: found.group(1) + _OTHER_LETTER[found.group(2)], core, count=1)
    if _DOLLARS.match(core):
        return _DOLLARS.sub("€", core)
    return _DEGREES.sub(r"\\text{ radians}", core) if _DEGREES.search(core) else None


def _half_day(core: str) -> str | None:
    if len(_HALF_DAY.findall(core)) != 1 or not re.search(r"\d", core):
        return None
    return _HALF_DAY.sub(lambda found: {"a": "p", "p": "a", "A": "P", "P": "A"}[found.group()], core)


def _other_choice(core: str) -> str | None:
    found = _CHOICE.fullmatch(core)
    return "ABCDE"[("ABCDE".index(found.group(1)) + 1) % 5] if found else None


def _opposite(core: str) -> str | None:
    return _OPPOSITE.get(core.lower())


_RULES: tuple[tuple[str, Callable[[str], str | None]], ...] = (
    ("sign_flipped", _sign_flipped),
    ("digit_changed", _digit_changed),
    ("off_by_one", _off_by_one),
    ("ten_times", _ten_times),
    ("inverted", _inverted),
    ("hedged", _hedged),
    ("pi_dropped", _pi_dropped),
    ("root_dropped", _root_dropped),
    ("solution_dropped", _solution_dropped),
    ("solution_added", _solution_added),
    ("relation_flipped", _relation_flipped),
    ("order_changed", _order_changed),
    ("bracket_changed", _bracket_changed),
    ("unit_changed", _unit_changed),
    ("half_day", _half_day),
    ("other_choice", _other_choice),
    ("opposite", _opposite),
)


def _core(gold: str) -> str | None:
    """The gold without what surrounds it and without dollar signs within; None where it is no single short answer.

    That is: prose (three words or more that are no unit), several boxes, braces that do not close.
    """
    core = peel(gold)
    core = core.replace("$", "").strip() if core.count("$") % 2 == 0 and r"\$" not in core else core
    is_prose = len(_PROSE.findall(_TEXT.sub("", core))) >= 3
    is_odd = "boxed" in core or core.count("{") != core.count("}")
    return core if 0 < len(core) <= _LONGEST and not is_prose and not is_odd else None


def _squashed(core: str) -> str:
    return _SPACING.sub("", core)
