r"""Is the completion's final answer mathematically equal to the gold answer?

In order: extraction of a short answer (`answers/extraction.py`), comparison as literals (`answers/literal.py`,
no sympy), caps on size (`answers/bounds.py`), and only then Math-Verify, gold first, since its `verify` is not
symmetric. Math-Verify's own alarms are switched off: they work in main threads only and do not cover everything, so
the verifier pool's hard time-out does their work. Called outside a pool, an expression made for it can take for ever.

Reasons. pass: equal_string, equal_number, equivalent. fail: no_answer, not_equal, other_unit (the gold names
another unit), answer_unparseable, out_of_bounds (the answer exceeds the caps, which no sensible answer does).
unscorable: no_gold, gold_unparseable, gold_out_of_bounds, other_domain (a program is no answer).

Math-Verify's word counts wherever it has one, except where benchmarks/math_agreement.py says why not. So `10\%` is
0.1, and also 10 (a question may ask for per cent), but `12.5\%` is 0.125 only; an inequality as gold accepts the
interval, not the reverse. Known and left to a judge: 60° and π/3, 1/3 and 0.3333, 100 cm and 1 m are not equal here.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from model.rewards.answers.bounds import within_bounds
from model.rewards.answers.extraction import MAX_ANSWER, extract_answer, last_boxes
from model.rewards.answers.literal import compare_literally, peel, tidy, words
from model.rewards.check import Judgement, Scored, failed, passed, unscorable
from model.rewards.settings import CheckSettings

_DETAIL = 200  # characters of an answer that a verdict keeps
_DELIMITER = re.compile(r"\$|(?<!\\)\\[(\[]|\\boxed")
_ONE_FORMULA = re.compile(r"\$[^$]+\$", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}(?:\{[clr|]*\})?")
# Set upright, Math-Verify cuts e and i off as if they were units, and all that follows them.
_UPRIGHT = re.compile(r"\\(?:mathrm|text|textrm|rm)\s*\{\s*([ei])\s*\}")
_ROW_SPACING = re.compile(r"\\\\\[[\d.]+\s*(?:pt|mm|cm|em|ex)\]")
# Below the first, which Math-Verify rounds away, numbers are equal if their quotient is 1 within the second.
_NEARLY_ZERO, _RELATIVE = 1e-5, 1e-5
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_PROSE_WORDS = 3


def judge_math(answer: str | None, gold: str | None) -> Judgement:
    """Compare an extracted answer with the gold answer. Without sympy where strings and numbers decide."""
    if gold is None or not gold.strip():
        return unscorable("no_gold")
    if answer is None or not answer.strip():
        return failed("no_answer")
    if len(answer) > MAX_ANSWER:
        return failed("out_of_bounds")
    if len(gold) > MAX_ANSWER:  # a whole solution
        gold = last_boxes(gold)
        if gold is None:
            return unscorable("gold_out_of_bounds")
    literal = compare_literally(answer, gold)
    return literal if literal is not None else judge_symbolically(answer, gold)


def judge_symbolically(answer: str, gold: str) -> Judgement:
    """Compare by Math-Verify, whatever a comparison as literals would say."""
    if not within_bounds(gold):
        return unscorable("gold_out_of_bounds")
    if not within_bounds(answer):
        return failed("out_of_bounds")
    return _equivalent(as_latex(gold), as_latex(answer))


def as_latex(text: str) -> str:
    r"""The text as Math-Verify reads it best: bare maths in `$…$`, a word in `\text{…}`, else as it is.

    Unwrapped, `x <= 2` reads as 2 and `(1,2)` as nothing; a dollar sign that opens nothing is taken for
    money.
    """
    text = _ROW_SPACING.sub(r"\\\\", _UPRIGHT.sub(r"\1", tidy(text))).replace(r"\$", "").strip()
    if text.count("$") % 2:
        text = text.replace("$", "")
    if _DELIMITER.search(text) or len(_PROSE_WORD.findall(_ENVIRONMENT.sub("", text))) >= _PROSE_WORDS:
        return text
    core = peel(text)
    return rf"$\text{{{core}}}$" if words(core) else f"${core}$"


# Replicas repeat their answers: one comparison serves them all.
@lru_cache(maxsize=4096)
def _equivalent(gold: str, answer: str) -> Judgement:
    gold_values, answer_values = _values(gold, is_gold=True), _values(answer, is_gold=False)
    if not gold_values:
        return unscorable("gold_unparseable")
    if not answer_values:
        return failed("answer_unparseable")
    from math_verify import verify

    is_equal = verify(gold_values, answer_values, timeout_seconds=None)
    return passed("equivalent") if is_equal and not _are_chopped(gold_values, answer_values) else failed("not_equal")


def _are_chopped(gold_values: list[Any], answer_values: list[Any]) -> bool:
    """Are these different numbers that Math-Verify takes for equal because both are nearly 0 (2^-98 and 2^-99)?"""
    gold, answer = gold_values[0], answer_values[0]
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return False
    try:
        size = abs(gold.evalf(5))
        return bool(0 < size < _NEARLY_ZERO and abs((answer / gold).evalf(10) - 1) > _RELATIVE)
    except TypeError:  # a value without order or quotient: nothing to correct
        return False


@lru_cache(maxsize=1024)
def _values(text: str, *, is_gold: bool) -> list[Any]:
    """Math-Verify's reading, [value, its string], or nothing. Never print it: `str` may not return.

    A gold that is one formula is read as that or not at all: of one that it cannot read, Math-Verify takes the
    last number, and then accepts whatever ends in it.
    """
    # About 0.5 s of imports, which answers that compare as literals never pay.
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    is_formula = is_gold and _ONE_FORMULA.fullmatch(text)
    targets = [LatexExtractionConfig()] if is_formula else [LatexExtractionConfig(), ExprExtractionConfig()]
    found = parse(text, targets, parsing_timeout=None)  # type: ignore[arg-type]  # None: no alarm
    return found if any(not isinstance(value, str) for value in found) else []


class MathCheck:
    """The check `math`. The detail is the answer that was judged, after the place where it stood."""

    name = "math"
    version = "2"

    def __init__(self, settings: CheckSettings) -> None:
        pass

    def warm_up(self) -> None:
        """Import sympy and compile Math-Verify's patterns: 0.5 s, once per worker."""
        _equivalent("$x$", "$y$")

    def __call__(self, item: Scored) -> Judgement:
        if item.domain == "code":
            return unscorable("other_domain")
        answer = extract_answer(item.text)
        judgement = judge_math(answer.text if answer else None, item.gold)
        if answer is None:
            return judgement
        return replace(judgement, detail=f"{answer.source}: {answer.text[:_DETAIL]}")
