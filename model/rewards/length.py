"""How long is the completion? The score is its length in characters, the detail its length in tokens.

No threshold is applied here: minimum and maximum belong to the selection rule, where changing them costs a
query.
"""

from __future__ import annotations

from model.rewards.check import Judgement, Scored, failed, passed
from model.rewards.settings import CheckSettings


def judge_length(text: str, completion_tokens: int) -> Judgement:
    """pass `measured` with the score `len(text)` (characters, not a share); fail `empty` for blank text."""
    if not text or text.isspace():
        return failed("empty", detail=f"{completion_tokens} tokens")
    return passed("measured", score=float(len(text)), detail=f"{completion_tokens} tokens")


class LengthCheck:
    """The check `length`."""

    name = "length"
    version = "1"

    def __init__(self, settings: CheckSettings) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def __call__(self, item: Scored) -> Judgement:
        return judge_length(item.text, item.completion_tokens)
