"""Fences and indented statements are code; indented equations, inline code and maths fences are not."""

from __future__ import annotations

import pytest

from model.records import Status
from model.rewards.check import Scored
from model.rewards.code_block import CodeBlockCheck, judge_code_block
from model.rewards.settings import CheckSettings, CodeBlockSettings


@pytest.mark.parametrize("text", [
    "We run\n```python\nprint(7)\n```\n", "```\nx\n```", "  ~~~~\nx", "so\n```never closed",
    "Try:\n\n    def f(x):\n        return x + 1\n",
    "\timport math\n\tprint(math.pi)", "    x = int(input())\n    print(x)",
    "```math\nx\n```\n```python\nx\n```",
])  # fmt: skip
def test_a_block_of_code_fails(text: str) -> None:
    judgement = judge_code_block(text)
    assert (judgement.verdict, judgement.reason) == (Status.FAIL, "code_block")
    assert judgement.detail


@pytest.mark.parametrize("text", [
    "", "The value `f(x)` is 7.", "~~~latex\ny",
    "We get\n\n    x = 3 + 4\n    y = 2x\n    z = x(y + 1)\n", "```math\nx = 1\n```",
    "- if x is even:\n    - then x = 2y\n    - else x = 2y + 1\n", "a ``` in a line",
    "    import taxes are 7%.\n    no code",
    "    return tickets cost 7.\n\n\n    return tickets cost 8.\n",
])  # fmt: skip
def test_ordinary_text_passes(text: str) -> None:
    assert judge_code_block(text).reason == "no_code_block"


def test_the_detail_is_where_the_block_begins() -> None:
    assert judge_code_block("See\n    def f(x):\n        return x\n```\nlater").detail == (
        "    def f(x):\n        return x\n```\nlater"
    )


def test_other_domains_may_hold_code() -> None:
    check = CodeBlockCheck(CheckSettings())
    item = Scored(text="```\nx\n```", domain="code")
    assert (check(item).verdict, check(item).reason) == (Status.PASS, "not_applicable")
    strict = CodeBlockCheck(CheckSettings(code_block=CodeBlockSettings(("math", "code"))))
    assert strict(item).verdict is Status.FAIL
    assert strict.version.startswith("1+")
