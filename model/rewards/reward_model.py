"""What a reward model's scores mean, and how conversations are put together for it. Pure: neither torch nor a model.

A reward model is a sequence classifier over (prompt, completion) in its own chat template. With one logit that is the
score, with two the last one is; the scale is the model's own, not [0, 1]. What does not fit into the model is
`unscorable`: there is no score to compare, and cutting it would score another text. The model itself runs in
`model/rewards/workers/scorer.py`, a process that `model/rewards/workers/scorer_process.py` keeps, or in vLLM.

Not promised: that a template shows the model the thoughts (some cut `<think>…</think>` out); process reward models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from model.records import content_hash
from model.rewards.check import Judgement, errored, failed, passed, unscorable
from model.rewards.settings import RewardModelSettings

NUMBER = 1  # of the rules in this file, in texts/conversations.py and in workers/scorer.py

Conversation = tuple[str, str]  # prompt, completion
TOO_LONG, NOT_FINITE, OUT_OF_MEMORY = "too_long", "not_finite", "out_of_memory"
MOST_LOGITS = 2

_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """Which reward model, and how it runs. `model` is a folder or a hub name."""

    model: str
    revision: str = "main"
    dtype: str = "bfloat16"
    device: str = "auto"
    max_length: int = 8192  # tokens of a conversation
    tokens_per_batch: int = 16_384  # padded tokens at once


@dataclass(frozen=True, slots=True)
class Scoring:
    """One conversation's score on the model's scale, or None and the reason; its length and what it cost."""

    score: float | None
    reason: str
    tokens: int
    milliseconds: float


def judge_score(scoring: Scoring, threshold: float) -> Judgement:
    """pass or fail by the threshold; `unscorable` for what is too long, `error` for what could not be computed."""
    length = f"{scoring.tokens} tokens"
    if scoring.score is not None and math.isfinite(scoring.score):
        return graded(scoring.score, threshold, length)
    if scoring.reason == TOO_LONG:
        return unscorable(TOO_LONG, length if scoring.tokens else None)
    return errored(scoring.reason or NOT_FINITE, length)


def graded(score: float, threshold: float, detail: str | None = None) -> Judgement:
    """A score against a threshold."""
    if score >= threshold:
        return passed("at_least_threshold", score, detail)
    return failed("below_threshold", score, detail)


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Places of neighbours in length, longest first; rows × longest ≤ `tokens_per_batch`, or one row alone."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def unused_token(rows: Iterable[Iterable[int]]) -> int:
    """The smallest token id that no row holds. To pad with: a classifier reads at the last token that is no pad."""
    used = {token for row in rows for token in row}
    return next(token for token in range(len(used) + 1) if token not in used)


def plain(text: str, special_tokens: Sequence[str]) -> str:
    """The text with a blank inside everything that the tokenizer would take for a special token of its own.

    Otherwise a sample could end its turn and praise itself in the next. Lone surrogates become U+FFFD.
    """
    text = _SURROGATE.sub("\ufffd", text)
    for token in special_tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}") if len(token) > 1 else text
    return text


def scoring_version(settings: RewardModelSettings, revision: str) -> str:
    """Of all that shapes a score; ends before the threshold. The number format at `urls` is not ours to know."""
    dtype = "served" if settings.urls else settings.dtype
    shaping = [settings.model, revision, dtype, settings.max_length]
    return f"{NUMBER}+{content_hash('reward model', shaping, digits=6)}"


def reward_model_version(settings: RewardModelSettings, revision: str) -> str:
    """The check's version: `scoring_version`, then a digest of the threshold."""
    return f"{scoring_version(settings, revision)}.{content_hash(settings.threshold, digits=6)}"
