"""Numbers worked by hand: a sampler with probability ½ for each of four tokens, a trainer that differs."""

from __future__ import annotations

import math

import pytest
import torch

from model.losses.grpo import Objective, grpo_terms
from model.losses.kl_estimators import KLPlace
from model.losses.mismatch import Mismatch, sampler_weights

SAMPLER_N = torch.tensor([0.5, 0.5, 0.5, 0.2]).log()
OLD_N = torch.tensor([0.5, 0.75, 0.1, 0.8]).log()  # ρ = 1, 1.5, 0.2, 4


@pytest.mark.parametrize(
    ("kind", "weights", "capped"),
    [
        (Mismatch.NONE, [1.0, 1.0, 1.0, 1.0], [0, 0, 0, 0]),
        (Mismatch.TIS, [1.0, 1.5, 0.2, 2.0], [0, 0, 0, 1]),
        (Mismatch.ICEPOP, [1.0, 1.5, 0.0, 0.0], [0, 0, 1, 1]),
    ],
)
def test_weights_by_hand(kind: Mismatch, weights: list[float], capped: list[float]) -> None:
    found = sampler_weights(OLD_N, SAMPLER_N, kind, low=0.5, high=2.0)
    assert found.weights_N.tolist() == pytest.approx(weights)
    assert found.capped_N.tolist() == capped


def test_icepops_bounds_belong_to_the_band() -> None:
    """ρ = ¼ and 2 exactly."""
    old_N, sampler_N = torch.tensor([0.25, 1.0]).log(), torch.tensor([1.0, 0.5]).log()
    found = sampler_weights(old_N, sampler_N, Mismatch.ICEPOP, low=0.25, high=2.0)
    assert found.weights_N.tolist() == [0.25, 2.0]


def test_what_is_measured_by_hand() -> None:
    sums = sampler_weights(OLD_N, SAMPLER_N, Mismatch.TIS, high=2.0).sums()
    log_ratios = [0.0, math.log(1.5), math.log(0.2), math.log(4)]
    assert sums["mismatch_ratio"].item() == pytest.approx(6.7)
    assert sums["mismatch_capped_share"].item() == 1
    assert sums["mismatch_log_ratio"].item() == pytest.approx(math.log(1.5) + math.log(5) + math.log(4))
    assert sums["mismatch_kl"].item() == pytest.approx(6.7 - 4 - sum(log_ratios))


def test_the_mean_of_the_kl_estimate_over_the_samplers_draws_is_the_kl() -> None:
    """Exactly, over a vocabulary of three: Σ π_sampler (ρ − 1 − log ρ) = KL(π_sampler‖π_old)."""
    sampler_V, old_V = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.6, 0.2, 0.2])
    found = sampler_weights(old_V.log(), sampler_V.log(), Mismatch.NONE)
    estimate = (sampler_V * (found.log_ratios_N.exp() - 1 - found.log_ratios_N)).sum()
    assert estimate.item() == pytest.approx((sampler_V * (sampler_V / old_V).log()).sum().item(), rel=1e-5)


def test_with_full_weights_the_samplers_draws_have_the_trainers_gradient() -> None:
    """Over all three tokens: Σ π_sampler · ρ · A · ∇log π = Σ π · A · ∇log π; unweighted it is another."""
    logits_V = torch.tensor([0.4, -0.3, 0.1], requires_grad=True)
    advantages_V = torch.tensor([1.0, -0.5, 0.2])
    log_pi_V = logits_V.log_softmax(-1)
    sampler_V = torch.tensor([0.3, 0.45, 0.25])
    weights_V = sampler_weights(log_pi_V, sampler_V.log(), Mismatch.TIS, high=1000.0).weights_N

    def gradient(shares_V: torch.Tensor, weights_V: torch.Tensor | None) -> torch.Tensor:
        terms = grpo_terms(
            log_pi_V,
            log_pi_V,
            log_pi_V,
            advantages_V,
            clip_low=0.2,
            clip_high=0.2,
            kl_weight=0.0,
            sampler_weights_N=weights_V,
        )
        return torch.autograd.grad((shares_V * terms.loss_N).sum(), logits_V, retain_graph=True)[0]

    exact_V = gradient(log_pi_V.detach().exp(), None)
    torch.testing.assert_close(gradient(sampler_V, weights_V), exact_V)
    assert (gradient(sampler_V, None) - exact_V).abs().max() > 0.01


@pytest.mark.parametrize("objective", list(Objective))
def test_the_weight_multiplies_the_objective_and_not_the_penalty(objective: Objective) -> None:
    """A token left out (w = 0) still feels the reference."""
    log_probs_N = torch.tensor([-1.0, -1.0], requires_grad=True)
    terms = grpo_terms(
        log_probs_N,
        log_probs_N.detach(),
        log_probs_N.detach() + 0.5,
        torch.tensor([1.0, 1.0]),
        clip_low=0.2,
        clip_high=0.2,
        kl_weight=0.1,
        kl_in=KLPlace.LOSS,
        objective=objective,
        sequence_ratios_N=torch.ones(2),
        sampler_weights_N=torch.tensor([0.0, 1.5]),
    )
    (slope_N,) = torch.autograd.grad(terms.loss_N.sum(), log_probs_N)
    pull = 0.1 * (1 - math.exp(0.5))  # ∂k3/∂log π = 1 − e^d
    assert slope_N.tolist() == pytest.approx([pull, pull - 1.5])
