r"""Which part of a completion is the program? Found as text; nothing is compiled here, the sandbox does that.

Looked for in what follows the last `</think>`, first within its last `<answer>` section where there is one:
  1. the last fenced block marked `python`, `python3` or `py` (where a function of a certain name is asked
     for: the last of them that defines it, if any does);
  2. the last fenced block without a mark;
  3. without any fenced block: the text itself, where a line of it looks like Python.
Blocks marked with another language are never the program. A fence that is not closed runs to the end. A
completion whose `<think>` never closes has no program outside an `<answer>` section. Linear in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_PROGRAM = 1_000_000  # characters; nothing longer is tried

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^\n`]*)$", re.MULTILINE)
_PYTHON = ("python", "python3", "py", "py3")
_LOOKS_LIKE_PYTHON = re.compile(
    r"^[ \t]*(?:def |class |import |from [\w.]+ import |for .+:|while .+:|if .+:|return\b|\w+ *(?:[-+*/]?=[^=]|\())",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class _Block:
    language: str
    text: str


def extract_program(text: str, entry: str = "") -> str | None:
    """The completion's program by the order above; None where there is none, or one over MAX_PROGRAM."""
    final = _final_part(text)
    section = _answer_section(final)
    if section is None and "<think>" in final:
        return None
    parts = [section, final] if section is not None else [final]
    program = next((found for part in parts if (found := _fenced(part, entry)) is not None), None)
    if program is None:
        program = next((part for part in parts if _LOOKS_LIKE_PYTHON.search(part)), None)
    return program if program and program.strip() and len(program) <= MAX_PROGRAM else None


def _final_part(text: str) -> str:
    closed = text.rfind("</think>")
    return text[closed + len("</think>") :] if closed >= 0 else text


def _answer_section(final: str) -> str | None:
    start = final.rfind("<answer>")
    if start < 0:
        return None
    end = final.find("</answer>", start)
    return final[start + len("<answer>") : end if end >= 0 else None]


def _fenced(text: str, entry: str) -> str | None:
    blocks = _blocks(text)
    python = [block.text for block in blocks if block.language in _PYTHON]
    if not python:
        python = [block.text for block in blocks if not block.language]
    defining = [block for block in python if entry and defines(block, entry)]
    candidates = defining or python
    return candidates[-1] if candidates else None


def defines(program: str, entry: str, *, nested: bool = True) -> bool:
    """Whether a line of the program seems to define the function or class (of a `Class.method`).

    `nested`: a method or inner function of that name counts too.
    """
    name, indent = re.escape(entry.split(".")[0]), "[ \\t]*" if nested else ""
    return re.search(rf"^{indent}(?:(?:async )?def|class) {name}\b|^{name} *=", program, re.MULTILINE) is not None


def _blocks(text: str) -> list[_Block]:
    """Fenced blocks in order, their fence's indentation taken off."""
    blocks: list[_Block] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif not fence[3].strip() and fence[2].startswith(opened[2]):
            blocks.append(_block(opened, text[opened.end() + 1 : fence.start()]))
            opened = None
    if opened is not None:
        blocks.append(_block(opened, text[opened.end() + 1 :]))
    return blocks


def _block(fence: re.Match[str], inside: str) -> _Block:
    words = fence[3].split()
    indent = fence[1]
    text = "".join(line.removeprefix(indent) for line in inside.splitlines(keepends=True)) if indent else inside
    return _Block(words[0].lower() if words else "", text)
