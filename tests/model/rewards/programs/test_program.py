"""Which part of a completion is its program: the order of places, fences of all kinds, and hostile texts."""

from __future__ import annotations

import pytest

from model.rewards.programs.program import MAX_PROGRAM, defines, extract_program

THOUGHT = "<think>\nFirst I try\n```python\nwrong = 1\n```\n</think>\n"


def fenced(code: str, language: str = "python", fence: str = "```") -> str:
    return f"{fence}{language}\n{code}\n{fence}\n"


@pytest.mark.parametrize(("text", "program"), [
    (THOUGHT + "Here:\n" + fenced("x = 1"), "x = 1\n"),
    (THOUGHT + fenced("x = 1") + "or better\n" + fenced("x = 2") + "done", "x = 2\n"),
    (THOUGHT + "<answer>\n" + fenced("x = 1") + "</answer>" + fenced("x = 2"), "x = 1\n"),
    (THOUGHT + "<answer>see above</answer>\n" + fenced("x = 2"), "x = 2\n"),
    (THOUGHT + fenced("x = 1") + fenced("5", "text") + fenced("g++ a.cpp", "bash"), "x = 1\n"),
    (THOUGHT + fenced("x = 1", "") + fenced("5", "output"), "x = 1\n"),
    (THOUGHT + fenced("x = 1", "") + fenced("x = 2", "Python3"), "x = 2\n"),
    (THOUGHT + fenced("x = 1", "python title=a.py", "~~~~"), "x = 1\n"),
    (THOUGHT + fenced('a = """\n```\n"""', fence="````"), 'a = """\n```\n"""\n'),
    (THOUGHT + "1. so\n   ```python\n   def f():\n       return 1\n   ```\n", "def f():\n    return 1\n"),
    (THOUGHT + "```python\nx = 1\nprint(x", "x = 1\nprint(x"),
    (THOUGHT + "<answer>\ndef f(x):\n    return x\n</answer>", "\ndef f(x):\n    return x\n"),
    (THOUGHT + "    return x + 1\n", "\n    return x + 1\n"),
    ("x = 1", "x = 1"),
])  # fmt: skip
def test_found(text: str, program: str) -> None:
    assert extract_program(text) == program


@pytest.mark.parametrize("text", [
    "", THOUGHT, THOUGHT + "The answer is 5.", THOUGHT + fenced("int main() {}", "cpp"), THOUGHT + fenced(""),
    "<think>\n" + fenced("x = 1"), THOUGHT + "<answer>42</answer>", THOUGHT + fenced("x" * (MAX_PROGRAM + 1)),
])  # fmt: skip
def test_not_found(text: str) -> None:
    assert extract_program(text) is None


def test_an_unfinished_thought_can_still_hold_an_answer() -> None:
    assert extract_program("<think>\nhm <answer>\n" + fenced("x = 1") + "</answer>") == "x = 1\n"


def test_a_usage_example_does_not_hide_the_function() -> None:
    text = THOUGHT + fenced("def f(x):\n    return x") + "Use it so:\n" + fenced("print(f(3))")
    assert extract_program(text) == "print(f(3))\n"
    assert extract_program(text, "f") == "def f(x):\n    return x\n"
    assert extract_program(text, "absent") == "print(f(3))\n"


@pytest.mark.parametrize(("program", "entry", "found"), [
    ("def f():\n  pass", "f", True), ("def ff():\n  pass", "f", False), ("async  def f(): ...", "f", False),
    ("async def f(): ...", "f", True), ("f = lambda: 1", "f", True), ("if f == 1: pass", "f", False),
    ("class S:\n  def f(self): ...", "S.f", True), ("class S:\n  def f(self): ...", "f", True),
    ("x = f(1)", "f", False),
])  # fmt: skip
def test_defines(program: str, entry: str, found: bool) -> None:
    assert defines(program, entry) is found


@pytest.mark.parametrize("text", [
    "```" * 3_000_000, "```python\n" * 500_000, "```\n" * 500_000, " " * 9_000_000, "~~~ " * 2_000_000,
    "<answer>" * 1_000_000, "a" * 9_000_000, "for " * 2_000_000, "\t\n" * 2_000_000,
])  # fmt: skip
def test_hostile_texts_take_linear_time(text: str) -> None:
    """Quadratic time would be hours here, and meet the suite's own time-out."""
    assert extract_program(text) in (None, text)
