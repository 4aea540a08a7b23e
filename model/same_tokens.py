"""Whether two tokenizers split texts alike, which distributions over their tokens need to be compared by.

Imports nothing heavy: flows ask before anything is generated, training asks again with the real texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SHOWN = 60  # characters of a text that is split otherwise


def token_difference(student: Any, teacher: Any, texts: Sequence[str]) -> str | None:
    """What differs between two Hugging Face tokenizers, as the end of a sentence about both; None where nothing does.

    The whole vocabulary is compared, and the token ids of these texts.
    """
    if student.get_vocab() != teacher.get_vocab():
        return "have different vocabularies"
    for text in texts:
        own, theirs = (one(text, add_special_tokens=False)["input_ids"] for one in (student, teacher))
        if own != theirs:
            return f"split {text[:_SHOWN]!r} into different tokens"
    return None
