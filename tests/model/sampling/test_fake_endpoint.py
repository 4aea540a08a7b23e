"""The fake endpoint is a tool of many tests: what it promises them is tested here."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.fake_endpoint import FakeEndpoint, evaluate, solve

SCRIPT = Path(__file__).parents[2] / "fake_endpoint.py"
QUESTION = "Calculate 1 + 1.\nCalculate 3 + 4.\n<think>\n"


@pytest.mark.parametrize(
    ("expression", "value"),
    [("3 + 4", 7), ("2 - 8", -6), ("9 - 5 - 2", 2), ("2 + 3 * 4", 14), ("7 × 8 − 1", 55), ("-3 + 1", -2)],
)
def test_evaluate(expression: str, value: int) -> None:
    assert evaluate(expression) == value


def test_text_depends_on_prompt_and_seed_alone() -> None:
    assert solve(QUESTION, 1) == solve(QUESTION, 1)
    assert len({solve(QUESTION, seed) for seed in range(50)}) > 5


def test_the_last_question_is_answered_right_with_the_chosen_probability() -> None:
    answers = [solve(QUESTION, seed, accuracy=0.7) for seed in range(1000)]
    assert 0.65 < sum("<answer>7</answer>" in answer for answer in answers) / 1000 < 0.75
    assert all("<answer>7</answer>" in solve(QUESTION, seed, accuracy=1.0) for seed in range(50))


def test_a_prefilled_message_is_continued_and_another_is_opened() -> None:
    assert not solve(QUESTION, 1).startswith("<think>")
    assert solve("Calculate 3 + 4.", 1).startswith("<think>\n")


def test_stop_strings_and_limits_as_vllm_has_them() -> None:
    body = {"model": "fake", "prompt": QUESTION, "seed": 1, "max_tokens": 100, "stop": ["</answer>"]}
    with FakeEndpoint() as endpoint:
        kept = httpx.post(f"{endpoint.url}/completions", json=body | {"include_stop_str_in_output": True}).json()
        cut = httpx.post(f"{endpoint.url}/completions", json=body).json()
        assert httpx.get(f"{endpoint.url}/models").json()["data"][0]["id"] == "fake"
    assert kept["choices"][0]["text"] == cut["choices"][0]["text"] + "</answer>"
    assert cut["choices"][0]["stop_reason"] == "</answer>"


def test_it_runs_by_itself_and_starts_fast() -> None:
    start = time.monotonic()
    command = [sys.executable, str(SCRIPT), "--port", "0", "--accuracy", "1.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        seconds = time.monotonic() - start
        body = {"model": "fake", "prompt": QUESTION, "seed": 1, "max_tokens": 100}
        text = httpx.post(f"{url}/completions", json=body).json()["choices"][0]["text"]
        process.terminate()
    assert "<answer>7</answer>" in text
    assert seconds < 5  # some 0.2 s on an idle machine
