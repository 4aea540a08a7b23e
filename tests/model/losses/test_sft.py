from __future__ import annotations

import math

import pytest
import torch

from model.losses.log_probs import token_log_probs
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


def test_temperature_two_halves_the_logits() -> None:
    log_prob = token_log_probs(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), temperature=2.0)
    assert log_prob.item() == pytest.approx(-math.log(1 + math.exp(-1)))


def test_bfloat16_logits_are_reduced_in_float32() -> None:
    logits_NV = torch.randn(8, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets_N = torch.arange(8)
    exact_N = logits_NV.double().log_softmax(-1)[torch.arange(8), targets_N]
    assert token_log_probs(logits_NV, targets_N).double().tolist() == pytest.approx(exact_N.tolist(), abs=1e-5)
