r"""Is the completion's final answer mathematically equal to the gold answer?

In order: extraction of a short answer (`extraction.py`), comparison as literals (`literal.py`, no sympy),
caps on size (`bounds.py`), and only then Math-Verify, gold first, since its `verify` is not symmetric.
Math-Verify's own alarms are switched off: they work in main threads only and do not cover everything, so the
verifier pool's hard time-out does their work. Called outside a pool, an expression made for it can take for
ever.

Reasons. pass: equal_string, equal_number, equivalent. fail: no_answer, not_equal, answer_unparseable,
out_of_bounds (the answer exceeds the caps, which no sensible answer does). unscorable: no_gold,
gold_unparseable, gold_out_of_bounds. Known and left to a judge: 60° and π/3, 1/3 and 0.3333 are not equal
here. Only the last box or section counts.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from model.rewards.bounds import within_bounds
from model.rewards.check import Judgement, Scored, failed, passed, unscorable
from model.rewards.extraction import MAX_ANSWER, extract_answer
from model.rewards.literal import compare_literally, peel, words
from model.rewards.settings import CheckSettings

_DETAIL = 200  # characters of an answer that a verdict keeps
_DELIMITERS = ("$", r"\(", r"\[", r"\boxed")
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
    if len(gold) > MAX_ANSWER:
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
    text = text.replace(r"\$", "").strip()
    if text.count("$") % 2:
        text = text.replace("$", "")
    if any(mark in text for mark in _DELIMITERS) or len(_PROSE_WORD.findall(text)) >= _PROSE_WORDS:
        return text
    core = peel(text)
    return rf"$\text{{{core}}}$" if words(core) else f"${core}$"


# Replicas repeat their answers: one comparison serves them all.
@lru_cache(maxsize=4096)
def _equivalent(gold: str, answer: str) -> Judgement:
    gold_values, answer_values = _values(gold), _values(answer)
    if not gold_values:
        return unscorable("gold_unparseable")
    if not answer_values:
        return failed("answer_unparseable")
    from math_verify import verify

    is_equal = verify(gold_values, answer_values, timeout_seconds=None)
    return passed("equivalent") if is_equal else failed("not_equal")


@lru_cache(maxsize=1024)
def _values(text: str) -> list[Any]:
    """Math-Verify's reading, [value, its string], or nothing. Never print it: `str` may not return."""
    # About 0.5 s of imports, which answers that compare as literals never pay.
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    found = parse(text, parsing_timeout=None)  # type: ignore[arg-type]  # None: no alarm
    return found if any(not isinstance(value, str) for value in found) else []


class MathCheck:
    """The check `math`. The detail is the answer that was judged, after the place where it stood."""

    name = "math"
    version = "1"

    def __init__(self, settings: CheckSettings) -> None:
        pass

    def warm_up(self) -> None:
        """Import sympy and compile Math-Verify's patterns: 0.5 s, once per worker."""
        _equivalent("$x$", "$y$")

    def __call__(self, item: Scored) -> Judgement:
        answer = extract_answer(item.text)
        judgement = judge_math(answer.text if answer else None, item.gold)
        if answer is None:
            return judgement
        return replace(judgement, detail=f"{answer.source}: {answer.text[:_DETAIL]}")
