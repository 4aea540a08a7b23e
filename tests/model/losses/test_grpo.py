from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model.definitions import published
from model.losses.grpo import GRPOTerms, Objective, grpo_terms, sequence_ratios
from model.losses.kl_estimators import KLEstimator, KLPlace
from model.losses.normalise import Normalise, token_weights


def terms(ratio: float, advantage: float, clip_high: float = 0.2, **settings: Any) -> tuple[GRPOTerms, float]:
    """Terms of one token with π_θ/π_old = ratio and π_ref = π_θ, and the gradient at log π_θ."""
    log_prob_N = torch.tensor([-1.0], requires_grad=True)
    old_N = torch.tensor([-1.0 - math.log(ratio)])
    out = grpo_terms(
        log_prob_N, old_N, log_prob_N.detach(), torch.tensor([advantage]),
        **({"clip_low": 0.2, "clip_high": clip_high, "kl_weight": 0.1} | settings),
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


# --- gspo: two sequences of 2 and 1 tokens --------------------------------------------------------------------------

LENGTHS_B = torch.tensor([2, 1])
LOG_RATIOS_N = torch.tensor([math.log(2.0), 0.0, math.log(0.5)], dtype=torch.float64)


def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    assert sequence_ratios(LOG_RATIOS_N, LENGTHS_B).tolist() == pytest.approx([math.sqrt(2), math.sqrt(2), 0.5])


def gspo_by_tokens(log_probs_N: Tensor, advantages_B: Tensor, **clip: float) -> Tensor:
    """Σ_n w_n ℓ_n on tokens one by one, as training sums it."""
    ratios_N = sequence_ratios(log_probs_N.detach(), LENGTHS_B)  # log π_old = 0
    zeros_N, advantages_N = torch.zeros_like(log_probs_N), advantages_B.repeat_interleave(LENGTHS_B)
    weights_N = token_weights(LENGTHS_B, Normalise.SEQUENCE, 2).repeat_interleave(LENGTHS_B)
    parts = [
        (weights_N[n] * grpo_terms(
            log_probs_N[n], zeros_N[n], zeros_N[n], advantages_N[n],
            objective=Objective.GSPO, sequence_ratios_N=ratios_N[n], kl_weight=0.0, **clip,
        ).loss_N).sum()
        for n in (slice(0, 1), slice(1, 3))
    ]  # fmt: skip
    return torch.stack(parts).sum()


def gspo_by_sequences(log_probs_N: Tensor, advantages_B: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Equation 5 of arXiv:2507.18071, all of it under autograd; log π_old = 0."""
    new, old = (each.split(LENGTHS_B.tolist()) for each in (log_probs_N, torch.zeros_like(log_probs_N)))
    return published.gspo_loss(new, old, advantages_B, clip_low, clip_high)


@pytest.mark.parametrize("advantages", [[1.0, -1.0], [-1.0, 1.0]])
@pytest.mark.parametrize("clip", [0.2, 0.45])
def test_gspo_in_chunks_of_tokens_is_gspo_of_whole_sequences(advantages: list[float], clip: float) -> None:
    """Chunks cut through the first sequence; at 0.2 both ratios are outside the clip, at 0.45 only 0.5 is."""
    found = []
    for loss in (gspo_by_tokens, gspo_by_sequences):
        log_probs_N = LOG_RATIOS_N.clone().requires_grad_()
        value = loss(log_probs_N, torch.tensor(advantages, dtype=torch.float64), clip_low=clip, clip_high=clip)
        (gradient_N,) = torch.autograd.grad(value, log_probs_N)
        found.append([value.item(), *gradient_N.tolist()])
    assert found[0] == pytest.approx(found[1], abs=1e-7)


def test_gspo_by_hand() -> None:
    """s = √2 and 1/2, A = 1 and −1: ℓ = (−√2 + ½)/2; ∂ℓ/∂log π = −½·s·A/|o|."""
    log_probs_N = LOG_RATIOS_N.clone().requires_grad_()
    loss = gspo_by_tokens(log_probs_N, torch.tensor([1.0, -1.0]), clip_low=1.0, clip_high=9.0)
    (gradient_N,) = torch.autograd.grad(loss, log_probs_N)
    assert loss.item() == pytest.approx((-math.sqrt(2) + 0.5) / 2)
    assert gradient_N.tolist() == pytest.approx([-math.sqrt(2) / 4, -math.sqrt(2) / 4, 0.25])


def test_gspo_without_its_ratios_says_how_to_make_them() -> None:
    with pytest.raises(ValueError, match="first pass"):
        terms(1.0, 1.0, objective=Objective.GSPO)


# --- cispo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"),
    [(1.0, 1.5, 1.0), (1.5, 1.0, 1.2), (1.5, -1.0, 1.2), (0.5, 1.0, 0.8), (0.5, -1.0, 0.8)],
)
def test_cispo_clips_the_weight_and_keeps_every_gradient(ratio: float, advantage: float, weight: float) -> None:
    """log π = −1, so ℓ = weight·A."""
    out, gradient = terms(ratio, advantage, objective=Objective.CISPO)
    assert (out.loss_N.item(), gradient) == pytest.approx((weight * advantage, -weight * advantage))
    assert out.clipped_N.item() == (ratio != weight)


def test_cispo_as_published_has_no_lower_bound() -> None:
    out, gradient = terms(0.05, 1.0, objective=Objective.CISPO, clip_low=1.0)
    assert (gradient, out.clipped_N.item()) == (pytest.approx(-0.05), 0)


# --- the penalty's gradient, by exact enumeration of a policy over three tokens --------------------------------------

PI_V = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
REFERENCE_V = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
# By the logits, with log π/π_ref = log 2 · (1, 0, −1) and so KL(π‖π_ref) = log 2 / 4:
REVERSE_V = math.log(2) * PI_V * torch.tensor([0.75, -0.25, -1.25])  # ∇KL(π‖π_ref) = π (log π/π_ref − KL)
FORWARD_V = PI_V - REFERENCE_V  # ∇KL(π_ref‖π)
# ∇E[k2] − ∇KL(π‖π_ref) = E[k2 ∇log π] = π (k2 − E[k2]), with k2 = log² 2 / 2 · (1, 0, 1)
SQUARES_V = math.log(2) ** 2 / 2 * PI_V * (torch.tensor([1.0, 0.0, 1.0]) - 0.75)


def expected_gradient(kl_estimator: KLEstimator, kl_in: KLPlace, objective: Objective) -> list[float]:
    """Σ_v π_v · ∂ℓ_v/∂z, where ℓ_v is the loss with A = 0, β = 1 when token v was drawn."""
    logits_V = PI_V.log().requires_grad_()
    log_probs_V = logits_V.log_softmax(-1)
    out = grpo_terms(
        log_probs_V, log_probs_V, REFERENCE_V.log(), torch.zeros(3),
        clip_low=0.2, clip_high=0.2, kl_weight=1.0, objective=objective, sequence_ratios_N=torch.ones(3),
        kl_estimator=kl_estimator, kl_in=kl_in,
    )  # fmt: skip
    (gradient_V,) = torch.autograd.grad((PI_V * out.loss_N).sum(), logits_V)
    return gradient_V.tolist()


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize(
    ("kl_estimator", "kl_in", "expected_V"),
    [
        (KLEstimator.K1, KLPlace.LOSS, torch.zeros(3)),
        (KLEstimator.K2, KLPlace.LOSS, REVERSE_V),
        (KLEstimator.K3, KLPlace.LOSS, FORWARD_V),
        (KLEstimator.K1, KLPlace.REWARD, REVERSE_V),
        (KLEstimator.K2, KLPlace.REWARD, SQUARES_V),
        (KLEstimator.K3, KLPlace.REWARD, REVERSE_V - FORWARD_V),
    ],
)
def test_what_each_penalty_does_to_the_gradient(
    objective: Objective, kl_estimator: KLEstimator, kl_in: KLPlace, expected_V: Tensor
) -> None:
    assert expected_gradient(kl_estimator, kl_in, objective) == pytest.approx(expected_V.tolist(), abs=1e-7)


def test_k2_in_the_loss_is_k1_in_the_reward_at_every_token() -> None:
    """log π − log π_ref = log 2 and A = 0: the gradient is β log 2 either way."""
    gradients = []
    for kl_estimator, kl_in in ((KLEstimator.K2, KLPlace.LOSS), (KLEstimator.K1, KLPlace.REWARD)):
        log_probs_N = torch.tensor([-1.0], requires_grad=True)
        reference_N = torch.tensor([-1.0 - math.log(2)])
        out = grpo_terms(
            log_probs_N, log_probs_N, reference_N, torch.zeros(1),
            clip_low=0.2, clip_high=0.2, kl_weight=0.1, kl_estimator=kl_estimator, kl_in=kl_in,
        )  # fmt: skip
        gradients += torch.autograd.grad(out.loss_N.sum(), log_probs_N)
    assert [g.item() for g in gradients] == pytest.approx([0.1 * math.log(2)] * 2)
