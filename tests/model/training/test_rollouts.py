from __future__ import annotations

from typing import Any

import pytest
import torch

from model.errors import TrainingError
from model.records import FinishReason
from model.training.rollouts import LocalRollouts, StopTexts, cut_after_stop, pad_left
from tests.model.training.tiny import ALONE, make_model, make_tokenizer


def make_rollouts(**settings: Any) -> LocalRollouts:
    return LocalRollouts(
        make_model(), make_tokenizer(), ALONE, **({"temperature": 1.0, "max_tokens": 12, "stop": []} | settings)
    )


def test_contexts_are_padded_on_the_left() -> None:
    tokens_BT, mask_BT = pad_left([[5, 6, 7], [8]], 0, torch.device("cpu"))
    assert tokens_BT.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask_BT.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_row_in_a_padded_batch_is_what_it_is_alone() -> None:
    cold = make_rollouts(temperature=1e-4)
    together = cold.sample(["q: 1 + 2? a: ", "hello"])
    assert [r.row for r in together] == [cold.sample([text])[0].row for text in ("q: 1 + 2? a: ", "hello")]


def test_as_many_completions_at_once_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five do not and three do: what comes out is the same, and from then on nothing is tried that did not fit."""
    rollouts, tried = make_rollouts(), []
    real = rollouts._sample_at_once

    def small(asked: list[Any]) -> list[Any]:
        tried.append(len(asked))
        if len(asked) > 3:
            torch.empty(1 << 50, dtype=torch.uint8)  # a petabyte: torch's own error
        return real(asked)

    contexts = ["q: 1 + 2? a: ", "hello", "q: 3? a: ", "b", "q: 4 + 4? a: "]
    torch.manual_seed(3)
    whole = rollouts.sample(contexts)
    monkeypatch.setattr(rollouts, "_sample_at_once", small)
    torch.manual_seed(3)
    assert [one.row for one in rollouts.sample(contexts)] == [one.row for one in whole]
    assert tried == [5, 2, 2, 1]
    rollouts.sample(contexts)
    assert tried[4:] == [2, 2, 1]


def test_one_completion_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = make_rollouts()
    monkeypatch.setattr(rollouts, "_sample_at_once", lambda _: torch.empty(1 << 50, dtype=torch.uint8))
    with pytest.raises(TrainingError, match="one completion of at most 12 tokens was written: lower that limit"):
        rollouts.sample(["a", "b"])


def test_rollouts_end_at_a_stop_text_an_end_of_turn_or_the_limit() -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    rollouts = make_rollouts(stop=["e"]).sample(["q: 1 + 2? a: "] * 40)
    endings = set()
    for rollout in rollouts:
        tokens = rollout.row.completion
        if rollout.finish_reason is FinishReason.LENGTH:
            endings.add("limit")
            assert len(tokens) == 12
            assert "e" not in rollout.text
        elif tokens[-1] == tokenizer.eos_token_id:
            endings.add("eos")
            assert rollout.text == tokenizer.decode(tokens[:-1], skip_special_tokens=True)
            assert "e" not in rollout.text
        else:
            endings.add("stop")
            assert rollout.text == tokenizer.decode(tokens, skip_special_tokens=True)
            assert rollout.text.index("e") == len(rollout.text) - 1
        assert tokenizer.eos_token_id not in tokens[:-1]
    assert endings == {"limit", "eos", "stop"}


def test_the_sampler_draws_from_the_distribution_that_training_scores() -> None:
    """Shares of first tokens against softmax(logits / T), and no top-k, top-p or penalty beside it."""
    torch.manual_seed(0)
    rollouts = make_rollouts(temperature=0.5, max_tokens=1)
    rollouts.model.get_output_embeddings().weight.data.mul_(40.0)
    context = "q: 1"
    drawn = [r.row.completion[0] for r in rollouts.sample([context] * 4000)]
    logits_V = rollouts.model(input_ids=torch.tensor([rollouts.sample([context])[0].row.context])).logits[0, -1]
    p_V = (logits_V / 0.5).softmax(-1)
    shares_V = torch.bincount(torch.tensor(drawn), minlength=len(p_V)) / 4000
    assert p_V.max() > 0.05
    assert (shares_V - p_V).abs().max().item() < 0.035


def test_a_stop_text_in_the_context_ends_nothing() -> None:
    tokenizer = make_tokenizer()
    context = tokenizer("ab", add_special_tokens=False)["input_ids"]
    ended = StopTexts(tokenizer, ["ab"], (1, 2))
    steps = [context + tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "ax", "axab")]
    assert [ended(torch.tensor([step]), None).item() for step in steps] == [False, False, True]
    assert ended.lengths == [4]


@pytest.mark.parametrize(("text", "expected"), [("7</a> and", "7</a>"), ("none", "none"), ("x|y</a>", "x|")])
def test_text_is_cut_behind_the_first_stop(text: str, expected: str) -> None:
    assert cut_after_stop(text, ["</a>", "|"]) == expected
