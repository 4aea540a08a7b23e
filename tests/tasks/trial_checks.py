"""Checks of one's own that an audit has to see through: one that passes everything, one that refuses some golds."""

from __future__ import annotations

from model.rewards.check import Judgement, Scored, errored, failed, passed, unscorable
from model.rewards.settings import CheckSettings


class Weak:
    """Whatever is answered is right."""

    name = "weak"
    version = "1"

    def __init__(self, settings: CheckSettings) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def __call__(self, item: Scored) -> Judgement:
        return passed("why_not", detail=item.gold)


class Picky(Weak):
    """The exact gold alone is right, and never 666; the gold 0 is unscorable, and 13 cannot be judged."""

    name = "picky"

    def __call__(self, item: Scored) -> Judgement:
        if item.domain == "code":
            return unscorable("other_domain")
        if item.gold == "0":
            return unscorable("nothing")
        if item.gold == "13":
            return errored("bad_luck")
        if item.gold == "666":
            return failed("beastly", detail=item.gold)
        return passed("exact") if f"<answer>{item.gold}</answer>" in item.text else failed("other")
