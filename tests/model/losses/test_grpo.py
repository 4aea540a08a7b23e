from __future__ import annotations

import math

import pytest
import torch

from model.losses.grpo import GRPOTerms, grpo_terms


def terms(ratio: float, advantage: float, clip_high: float = 0.2) -> tuple[GRPOTerms, float]:
    """Terms of one token with π_θ/π_old = ratio and π_ref = π_θ, and the gradient at log π_θ."""
    log_prob_N = torch.tensor([-1.0], requires_grad=True)
    old_N = torch.tensor([-1.0 - math.log(ratio)])
    out = grpo_terms(
        log_prob_N, old_N, log_prob_N.detach(), torch.tensor([advantage]),
        clip_low=0.2, clip_high=clip_high, kl_weight=0.1,
    )  # fmt: skip
    out.loss_N.sum().backward()
    assert log_prob_N.grad is not None
    return out, log_prob_N.grad.item()


def test_on_policy_the_gradient_is_minus_the_advantage() -> None:
    out, gradient = terms(ratio=1.0, advantage=1.5)
    assert (out.loss_N.item(), gradient) == pytest.approx((-1.5, -1.5))
    assert out.clipped_N.item() == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 1.0, -1.2, True),  # already more likely than the clip allows: no further
        (1.5, -1.0, 1.5, False),  # a bad token grown likely: the full push back
        (0.5, 1.0, -0.5, False),  # a good token grown rare: the full pull
        (0.5, -1.0, 0.8, True),  # a bad token already rare: no further
    ],
)
def test_the_four_corners_of_the_clip(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    out, gradient = terms(ratio, advantage)
    assert out.loss_N.item() == pytest.approx(loss)
    assert out.clipped_N.item() == clipped
    assert gradient == pytest.approx(0.0 if clipped else -ratio * advantage, abs=1e-6)


def test_a_higher_upper_clip_is_dapo() -> None:
    out, gradient = terms(ratio=1.25, advantage=1.0, clip_high=0.28)
    assert (out.loss_N.item(), gradient) == pytest.approx((-1.25, -1.25))


def test_the_penalty_pulls_towards_the_reference() -> None:
    log_prob_N = torch.tensor([-1.0], requires_grad=True)
    reference_N = torch.tensor([-1.0 + math.log(2)])
    out = grpo_terms(log_prob_N, log_prob_N, reference_N, torch.zeros(1), clip_low=0.2, clip_high=0.2, kl_weight=0.1)
    out.loss_N.sum().backward()
    assert out.kl_N.item() == pytest.approx(2 - math.log(2) - 1)
    assert out.loss_N.item() == pytest.approx(0.1 * (1 - math.log(2)))
    assert log_prob_N.grad is not None
    assert log_prob_N.grad.item() == pytest.approx(0.1 * (1 - 2))  # β (1 − π_ref/π_θ): more likely goes downhill
