"""Writes the README's tree: every source file with the first sentence of its docstring, between the two markers.

.venv/bin/python docs/readme_tree.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST = 100  # characters
BEGIN, END = "<!-- tree -->", "<!-- /tree -->"


def tree() -> str:
    """The tree as a code block."""
    lines = []
    for folder in ("flows", "tasks", "model"):
        lines.append(f"{folder}/")
        lines += [f"  {file.relative_to(ROOT / folder)!s:<36}{_promise(file)}" for file in _files(ROOT / folder)]
    return "\n".join(["```text", *lines, "```"])


def _files(folder: Path) -> list[Path]:
    found = [file for file in folder.rglob("*.py") if file.name != "__init__.py"]
    return sorted(found, key=lambda file: (len(file.relative_to(folder).parts), file))


def _promise(file: Path) -> str:
    """The docstring's first sentence, on one line; of a long one the part before its colon or semicolon."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.?!]) ", paragraph, maxsplit=1)[0].rstrip(".")
    return sentence if len(sentence) <= LONGEST else re.split(r": |; ", sentence, maxsplit=1)[0]


def updated(readme: str) -> str:
    """The README with the tree as it is now."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.rpartition(END)
    return f"{before}{BEGIN}\n{tree()}\n{END}{after}"


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(updated(file.read_text(encoding="utf-8")), encoding="utf-8")
