"""What vLLM takes for an argument that changes log-probabilities is known by each of its spellings."""

from __future__ import annotations

import pytest

from model.sampling.biased import biased_argument


@pytest.mark.parametrize(
    "word",
    [
        "--logprobs-mode",
        "--logprobs_mode=raw_logits",
        "--logits-processors",
        "--logits_proc",
        "--speculative-config.method",
        "--speculative_config={}",
        "-sc",
        "-sc={}",
        "--config=engine.yaml",
    ],
)
def test_every_spelling_is_known(word: str) -> None:
    assert biased_argument(["--enforce-eager", word]) == word


def test_other_arguments_are_left_alone() -> None:
    words = [
        "--max-logprobs",
        "64",
        "--logging-level=info",
        "-tp",
        "2",
        "--load-format",
        "auto",
        "--config-format",
        "hf",
    ]
    assert biased_argument(words) is None
