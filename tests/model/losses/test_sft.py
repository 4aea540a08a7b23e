from __future__ import annotations

import math

import pytest
import torch

from model.losses.log_probs import token_log_probs
from model.losses.normalise import Normalise, token_weights
from model.losses.sft import sft_loss


def test_probabilities_of_a_half_and_a_quarter() -> None:
    logits_NV = torch.log(torch.tensor([[0.5, 0.5], [0.75, 0.25]]))
    loss = sft_loss(logits_NV, torch.tensor([0, 1]), torch.tensor([0.5, 0.5]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_the_gradient_is_softmax_minus_one_hot_and_zero_where_masked() -> None:
    logits_NV = torch.zeros(2, 4, requires_grad=True)
    sft_loss(logits_NV, torch.tensor([1, 2]), torch.tensor([1.0, 0.0])).backward()
    assert logits_NV.grad is not None
    assert logits_NV.grad.tolist() == [[0.25, -0.75, 0.25, 0.25], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("normalise", "share"),
    [(Normalise.SEQUENCE, 2 / 3), (Normalise.TOKEN, 3 / 4), (Normalise.CONSTANT, 2 / 3)],
)
def test_rejection_sampling_fine_tuning_is_sft_on_the_accepted(normalise: Normalise, share: float) -> None:
    """RFT's indicator I(o) ∈ {0, 1} on three completions of 2, 1 and 1 tokens, the second rejected.

    Over all samples, as R1's formula has it, it is SFT on the accepted ones times the share that they are: of the
    completions, or of the tokens.
    """
    lengths_B, accepted_B = torch.tensor([2, 1, 1]), torch.tensor([1.0, 0.0, 1.0])
    logits_NV = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets_N, kept_N = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 3])
    weights_N = (token_weights(lengths_B, normalise, 2) * accepted_B).repeat_interleave(lengths_B)
    kept_weights_N = token_weights(lengths_B[[0, 2]], normalise, 2).repeat_interleave(lengths_B[[0, 2]])
    rft = sft_loss(logits_NV, targets_N, weights_N)
    sft = share * sft_loss(logits_NV[kept_N], targets_N[kept_N], kept_weights_N)
    assert rft.item() == pytest.approx(sft.item())
    slopes = [torch.autograd.grad(loss, logits_NV, retain_graph=True)[0] for loss in (rft, sft)]
    assert torch.allclose(*slopes, atol=1e-7)
    assert slopes[0][2].tolist() == [0.0] * 5


def test_temperature_two_halves_the_logits() -> None:
    log_prob = token_log_probs(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), temperature=2.0)
    assert log_prob.item() == pytest.approx(-math.log(1 + math.exp(-1)))


def test_bfloat16_logits_are_reduced_in_float32() -> None:
    logits_NV = torch.randn(8, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets_N = torch.arange(8)
    exact_N = logits_NV.double().log_softmax(-1)[torch.arange(8), targets_N]
    assert token_log_probs(logits_NV, targets_N).double().tolist() == pytest.approx(exact_N.tolist(), abs=1e-5)
