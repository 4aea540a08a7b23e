from __future__ import annotations

import pytest
import torch

from model.losses.normalise import Normalise, token_weights


def test_two_completions_of_one_and_three_tokens() -> None:
    lengths_B = torch.tensor([1, 3])
    assert token_weights(lengths_B, Normalise.TOKEN, 10).tolist() == pytest.approx([1 / 4, 1 / 4])
    assert token_weights(lengths_B, Normalise.SEQUENCE, 10).tolist() == pytest.approx([1 / 2, 1 / 6])
    assert token_weights(lengths_B, Normalise.CONSTANT, 10).tolist() == pytest.approx([1 / 20, 1 / 20])


@pytest.mark.parametrize("normalise", [Normalise.TOKEN, Normalise.SEQUENCE])
def test_a_loss_of_one_per_token_is_one(normalise: Normalise) -> None:
    lengths_B = torch.tensor([5, 2, 9])
    assert (token_weights(lengths_B, normalise, 10) * lengths_B).sum().item() == pytest.approx(1.0)


def test_an_empty_completion_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        token_weights(torch.tensor([3, 0]), Normalise.SEQUENCE, 10)
