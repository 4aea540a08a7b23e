r"""Which few characters of a completion are its answer? Only those are judged, never the whole text.

The answer is looked for in the final part, what follows the last `</think>`, in this order:
  1. the last `<answer>` section (an unclosed one runs to the end);
  2. the last `\boxed{…}` (inside the answer section too, where there is one), together with the boxes before it
     that only `and`, `or` or a comma and a few words part from it;
  3. what follows the last `answer is` or `answer:` directly: a formula, a number, a choice letter;
  4. the last formula (`$…$`, `\(…\)`, `\[…\]`) or number, whichever ends last; a number in a formula is never taken
     out of it. Steps 3 and 4 look at the final part's last 10,000 characters.
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
_MAX_FORMULA = 1_000  # characters
_MAX_GAP = 60  # characters between boxes that belong together
_WINDOW = 10_000  # characters
_MAX_BOXES = 8  # boxes without a closing brace that are skipped before giving up, and boxes that are joined

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_DOLLAR = re.compile(r"(?<!\\)\$")
_BOX_OPENINGS = ("\\boxed", "\\fbox")
_JOIN = re.compile(r"[^.!?]*(?:,|;|(?<![A-Za-z])(?:and|or)(?![A-Za-z]))(?:[\s$(){}\\]|\\(?:quad|qquad|text|left)\b)*")
_NUMBER = (
    r"(?<![A-Za-z_])(?:(?<![\w)])[-+−])?"
    r"(?:\\[dtc]?frac\{-?\d+\}\{\d+\}"
    r"|\d{1,2}:\d{2}(?!\d)(?:\s?[ap]\.?\s?m\b\.?)?"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)|\d+,\d+(?![\d,])|\d+)(?:\.\d+)?"
    r"(?:/\d+(?!\d|\.\d))?|(?<!\d)\.\d+)(?:\s?\\?%)?"
)
_FORMULA = (
    rf"\$\$(?P<display>.{{1,{_MAX_FORMULA}}}?)\$\$|\\\[(?P<bracket>.{{1,{_MAX_FORMULA}}}?)\\\]"
    rf"|\\\((?P<paren>.{{1,{_MAX_FORMULA}}}?)\\\)"
    rf"|(?<![\\$\d])\$(?P<inline>[^$\n]{{1,{_MAX_FORMULA}}}?)(?<!\\)\$(?!\d)"
)
_LAST = re.compile(f"{_FORMULA}|(?P<number>{_NUMBER})", re.DOTALL)
_SAID = re.compile(r"\banswer\b[^.\n$\\]{0,40}?(?:\bis\b|[:=])[\s:*\"]*", re.IGNORECASE)
_LETTER = re.compile(r"\(?[A-E]\)?(?![A-Za-z'])")
_GOES_ON = re.compile(r"\s*(?:[-+*/=^×÷]|\\(?:times|cdot|div|approx)\b)\s*[\d$\\(]")
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}")
_PROSE_WORDS = 3


@dataclass(frozen=True, slots=True)
class Extracted:
    """An answer and where it stood."""

    text: str
    source: Literal["answer_tag", "boxed", "said", "formula", "last_number"]


def extract_answer(text: str) -> Extracted | None:
    """The completion's answer by the order above; None where there is none, or only a blank one."""
    final, is_thinking = _final_part(text)
    section = _answer_section(final)
    if section is not None:
        box = last_boxes(section)
        if box is not None:
            return Extracted(box, "boxed")
        return Extracted(section.strip(), "answer_tag") if section.strip() else None
    return None if is_thinking else _box_or_number(final)


def last_boxes(text: str) -> str | None:
    r"""The last box, and before it, each once, those that belong to it: `\boxed{1}` and `\boxed{2}` are `1, 2`."""
    contents: list[str] = []
    end, found = len(text), _box_before(text, len(text))
    for _ in range(_MAX_BOXES):
        if found is None or (contents and not _are_joined(text[found[1] : end])):
            break
        end = found[0]
        contents.insert(0, found[2])
        found = _box_before(text, end)
    return ", ".join(dict.fromkeys(contents)) if contents else None


def _box_before(text: str, end: int) -> tuple[int, int, str] | None:
    """Where the last proper box that starts before `end` starts and ends, and what it holds."""
    for _ in range(_MAX_BOXES):
        start = max(text.rfind(opening, 0, end) for opening in _BOX_OPENINGS)
        if start < 0:
            return None
        opened = _BOX.match(text, start)
        content = _braced(text, opened.end()) if opened else None
        if opened and content is not None and _DOLLAR.sub("", content).strip():
            # A dollar sign in a box delimits nothing: `\boxed{12 $ and $13}`.
            return start, opened.end() + len(content) + 1, _DOLLAR.sub("", content).strip()
        end = start
    return None


def _are_joined(gap: str) -> bool:
    return len(gap) <= _MAX_GAP and _JOIN.fullmatch(gap) is not None


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
    box = last_boxes(final)
    if box is not None:
        return Extracted(box, "boxed")
    window = final[-_WINDOW:]
    return _said(window) or _last_of(window)


def _said(window: str) -> Extracted | None:
    """What stands right behind the last `answer is`; of a calculation (`3 + 4 = 7`) its line's last part."""
    anchors = list(_SAID.finditer(window))
    if not anchors:
        return None
    anchor = anchors[-1]
    if letter := _LETTER.match(window, anchor.end()):
        return Extracted(letter[0], "said")
    found = _LAST.match(window, anchor.end())
    if found is not None and not _GOES_ON.match(window, found.end()):
        text = _formula_or_number(found)
    else:
        line = window[anchor.end() :].partition("\n")[0]
        text = _text(_last_of(line)) if found else None
    return Extracted(text, "said") if text else None


def _last_of(window: str) -> Extracted | None:
    last = None
    for found in _LAST.finditer(window):
        text = _formula_or_number(found)
        if text is not None:
            last = Extracted(text, "last_number" if found["number"] else "formula")
    return last


def _formula_or_number(found: re.Match[str]) -> str | None:
    """What was found; of a sentence between two dollar signs (money), its last number."""
    if found["number"]:
        return found["number"]
    formula = next(part for part in found.group("display", "bracket", "paren", "inline") if part)
    if len(_PROSE_WORD.findall(re.sub(r"\\[a-z]+\s*\{[^{}]*\}", "", formula))) < _PROSE_WORDS:
        return formula.strip() or None
    numbers = re.findall(_NUMBER, formula)
    return numbers[-1] if numbers else None


def _text(found: Extracted | None) -> str | None:
    return found.text if found else None


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
