"""Is this a time of day, and which? `2:30`, `14:30`, `2:30 p.m.`, `2 pm`, `02:30:15`.

Two numbers with a colon between may be a ratio as well (`3:2`); `is_clock` says of which texts nobody would think
so. Time zones and durations are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import gcd

_HALF_DAY = 12 * 3600  # seconds
_TIME = re.compile(
    r"(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?(?:\s|\\[ ,]|~)*(?:\\(?:text|mathrm|textrm)\{\s*)?(?:([ap])\.?\s?m\.?)?\s*\}?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds since midnight. `has_half`: a.m. or p.m. is said; `is_open`: it is not, and both are possible."""

    seconds: int
    has_half: bool
    is_open: bool
    is_clock: bool


def clock(core: str) -> Clock | None:
    """The time that a text spells, None if it spells none. Without minutes it needs its a.m. or p.m."""
    found = _TIME.fullmatch(core)
    if found is None or not (found[2] or found[4]):
        return None
    hours, minutes, seconds = int(found[1]), int(found[2] or 0), int(found[3] or 0)
    if minutes > 59 or seconds > 59 or hours > (12 if found[4] else 23):
        return None
    has_half, is_clock = bool(found[4]), bool(found[4] or found[3]) or found[2][0] == "0" or gcd(hours, minutes) > 1
    is_open = not has_half and 1 <= hours <= 12
    if has_half:
        hours = hours % 12 + (12 if found[4] in "pP" else 0)
    return Clock(hours * 3600 + minutes * 60 + seconds, has_half, is_open, is_clock)


def is_same_time(one: Clock, other: Clock) -> bool:
    """Equal; or equal on the clock's face, where one says which half of the day it is and the other does not."""
    if (one.has_half and other.is_open) or (one.is_open and other.has_half):
        return one.seconds % _HALF_DAY == other.seconds % _HALF_DAY
    return one.seconds == other.seconds
