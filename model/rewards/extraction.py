r"""Which few characters of a completion are its answer? Only those are judged, never the whole text.

The answer is looked for in the final part, what follows the last `</think>`, in this order:
  1. the last `<answer>` section (an unclosed one runs to the end);
  2. the last `\boxed{…}` (inside the answer section too, where there is one);
  3. the last number within the final part's last 10,000 characters.
A text without think tags is all final part; one whose `<think>` never closes has only step 1, since a number
or a box in the middle of a thought is no answer. Time is linear in the text, whatever it holds. What the
answer means is judged in `model/rewards/math.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# Answers are short; a longer one is a text that happens to stand where an answer should.
MAX_ANSWER = 2_000  # characters
_NUMBER_WINDOW = 10_000  # characters
_MAX_BOXES = 8  # boxes without a closing brace that are skipped before giving up

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BOX_OPENINGS = ("\\boxed", "\\fbox")
_NUMBER = re.compile(r"(?:(?<![\w)])[-+−])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+(?![\d.]))?")


@dataclass(frozen=True, slots=True)
class Extracted:
    """An answer and where it stood."""

    text: str
    source: Literal["answer_tag", "boxed", "last_number"]


def extract_answer(text: str) -> Extracted | None:
    """The completion's answer by the order above; None where there is none, or only a blank one."""
    final, is_thinking = _final_part(text)
    section = _answer_section(final)
    if section is not None:
        box = last_boxed(section)
        if box is not None:
            return Extracted(box, "boxed")
        return Extracted(section.strip(), "answer_tag") if section.strip() else None
    return None if is_thinking else _box_or_number(final)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` or `\fbox{…}` whose braces close within MAX_ANSWER characters."""
    end = len(text)
    for _ in range(_MAX_BOXES):
        start = max(text.rfind(opening, 0, end) for opening in _BOX_OPENINGS)
        if start < 0:
            return None
        opened = _BOX.match(text, start)
        content = _braced(text, opened.end()) if opened else None
        if content is not None and content.strip():
            return content.strip()
        end = start
    return None


def _final_part(text: str) -> tuple[str, bool]:
    """What follows the last `</think>`; the flag says that a thought was opened and never closed."""
    closed = text.rfind("</think>")
    if closed >= 0:
        return text[closed + len("</think>") :], False
    return text, "<think>" in text


def _answer_section(final: str) -> str | None:
    start = final.rfind("<answer>")
    if start < 0:
        return None
    end = final.find("</answer>", start)
    return final[start + len("<answer>") : end if end >= 0 else None]


def _box_or_number(final: str) -> Extracted | None:
    box = last_boxed(final)
    if box is not None:
        return Extracted(box, "boxed")
    numbers = _NUMBER.findall(final[-_NUMBER_WINDOW:])
    return Extracted(numbers[-1], "last_number") if numbers else None


def _braced(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes the one just before it; escaped braces do not count."""
    depth, position = 1, start
    limit = min(len(text), start + MAX_ANSWER)
    while position < limit:
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:position]
        position += 1
    return None
