"""What stored likeliest tokens take on disk. Loads nothing, so that a plan can ask."""

from __future__ import annotations

_BYTES = 4 + 2  # of one stored token: its id (int32) and its log-probability (float16)


def stored_bytes(tokens: float, k: int) -> float:
    """Bytes for `k` tokens at each of so many positions, before compression."""
    return tokens * k * _BYTES
