"""Did the completion end by itself, or did `max_tokens` cut it? A cut one is work again once that rises.

Whether the text looks complete is not asked: only what the engine said.
"""

from __future__ import annotations

from model.records import FinishReason
from model.rewards.check import Judgement, Scored, errored, failed, passed
from model.rewards.settings import CheckSettings


def judge_finish(finish_reason: str) -> Judgement:
    """pass `stopped`, fail `truncated`, or error: `refused`, or a finish reason nobody knows."""
    if finish_reason == FinishReason.STOP:
        return passed("stopped")
    if finish_reason == FinishReason.LENGTH:
        return failed("truncated")
    if finish_reason == FinishReason.REFUSED:
        return errored("refused")
    return errored("unknown_finish_reason", finish_reason)


class FinishCheck:
    """The check `finish`."""

    name = "finish"
    version = "1"

    def __init__(self, settings: CheckSettings) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def __call__(self, item: Scored) -> Judgement:
        return judge_finish(item.finish_reason)
