"""GRPO's clipped objective with a k3 penalty to a frozen reference (DeepSeek-R1, equations 1 and 2).

    ρ = π_θ / π_old
    ℓ = −min(ρ·A, clip(ρ, 1−ε_low, 1+ε_high)·A) + β·k3(log π_ref − log π_θ)

ε_low = ε_high is the paper's clip, ε_high > ε_low is DAPO's. `normalise="sequence"` is the paper's (1/G) Σ (1/|o|) Σ;
advantages come from `model/advantages.py`. No correction for a sampler whose numbers differ from the trainer's.

Axes: N completion tokens of all rows, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.losses.kl_estimators import k3


@dataclass(frozen=True)
class GRPOTerms:
    """The objective's terms at every token, float32, shape [N]."""

    loss_N: Tensor
    kl_N: Tensor  # k3 estimate of KL(π_θ‖π_ref), nats
    clipped_N: Tensor  # 1 where the clip cut the gradient, else 0


def grpo_terms(
    log_probs_N: Tensor,
    old_log_probs_N: Tensor,
    reference_log_probs_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
) -> GRPOTerms:
    """The loss ℓ at every token, to be summed with `normalise.token_weights`.

    Args:
        log_probs_N: log π_θ of the sampled tokens, nats; the only argument with a gradient.
        old_log_probs_N: log π_old, the policy that sampled them.
        reference_log_probs_N: log π_ref, frozen.
        advantages_N: the completion's advantage, at each of its tokens.
        clip_low, clip_high: ε_low and ε_high.
        kl_weight: β.
    """
    ratio_N = (log_probs_N - old_log_probs_N.detach()).exp()
    free_N = ratio_N * advantages_N
    bounded_N = ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    kl_N = k3(reference_log_probs_N.detach() - log_probs_N)
    loss_N = -torch.minimum(free_N, bounded_N) + kl_weight * kl_N
    return GRPOTerms(loss_N, kl_N.detach(), (bounded_N < free_N).detach().float())
