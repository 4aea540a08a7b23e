"""The GRPO family: one loss per token, with what its objective clips and where its KL penalty stands.

    ρ = π_θ / π_old            s = exp(mean over the sequence of log ρ)            sg: no gradient

    grpo    ℓ = −min(ρ·A, clip(ρ)·A)               (DeepSeek-R1, equations 1 and 2; DAPO where ε_high > ε_low)
    gspo    ℓ = −min(s·A, clip(s)·A)               (arXiv:2507.18071, equations 5 and 7)
    cispo   ℓ = −sg(clip(ρ))·A·log π_θ             (MiniMax-M1, arXiv:2506.13585, equations 4 and 5)

with clip(x) = min(max(x, 1−ε_low), 1+ε_high), and a KL penalty from `kl_estimators.py`. Advantages come from
`model/advantages.py`, denominators from `normalise.py`, weights for a sampler whose numbers differ from the trainer's
from `mismatch.py`. Axes: N completion tokens of all rows, one after another; B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from model.losses.kl_estimators import KLEstimator, KLPlace, estimate


class Objective(StrEnum):
    """Which ratio is clipped, and how; see the module's table."""

    GRPO = "grpo"
    GSPO = "gspo"
    CISPO = "cispo"


@dataclass(frozen=True)
class GRPOTerms:
    """The objective's terms at every token, float32, shape [N]."""

    loss_N: Tensor
    kl_N: Tensor  # estimate of KL(π_θ‖π_ref), nats
    clipped_N: Tensor  # 1 where the clip cut the gradient (cispo: the weight), else 0


def grpo_terms(
    log_probs_N: Tensor,
    old_log_probs_N: Tensor,
    reference_log_probs_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
    objective: Objective = Objective.GRPO,
    sequence_ratios_N: Tensor | None = None,
    kl_estimator: KLEstimator = KLEstimator.K3,
    kl_in: KLPlace = KLPlace.LOSS,
    sampler_weights_N: Tensor | None = None,
) -> GRPOTerms:
    """The loss ℓ at every token, to be summed with `normalise.token_weights`.

    Args:
        log_probs_N: log π_θ of the sampled tokens, nats; the only argument with a gradient.
        old_log_probs_N: log π_old, the policy that sampled them.
        reference_log_probs_N: log π_ref, frozen.
        advantages_N: the completion's advantage, at each of its tokens.
        clip_low, clip_high: ε_low and ε_high; a ratio is never negative, so ε_low = 1 is no lower bound.
        kl_weight: β.
        objective: the line of the module's table.
        sequence_ratios_N: s of each token's sequence, from `sequence_ratios`; gspo's, unused otherwise.
        kl_estimator: k1, k2 or k3.
        sampler_weights_N: from `mismatch.sampler_weights`; multiply the objective, not a KL penalty in the loss.
        kl_in: ℓ + β·k(log π_ref − log π_θ), or A − β·k(log π_ref − log π_old) in A's place.

    Raises:
        ValueError: gspo without its ratios.
    """
    old_N, reference_N = old_log_probs_N.detach(), reference_log_probs_N.detach()
    kl_N = estimate(kl_estimator, reference_N - log_probs_N)
    if kl_in is KLPlace.REWARD:
        advantages_N = advantages_N - kl_weight * estimate(kl_estimator, reference_N - old_N)
    match objective:
        case Objective.GRPO:
            ratio_N = (log_probs_N - old_N).exp()
            gain_N, clipped_N = _clipped_gain(ratio_N, advantages_N, clip_low, clip_high)
        case Objective.GSPO:
            ratio_N = _with_token_gradient(sequence_ratios_N, log_probs_N)
            gain_N, clipped_N = _clipped_gain(ratio_N, advantages_N, clip_low, clip_high)
        case Objective.CISPO:
            ratio_N = (log_probs_N.detach() - old_N).exp()
            weight_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
            gain_N, clipped_N = weight_N * advantages_N * log_probs_N, weight_N != ratio_N
    if sampler_weights_N is not None:
        gain_N = sampler_weights_N.detach() * gain_N
    loss_N = -gain_N + kl_weight * kl_N if kl_in is KLPlace.LOSS else -gain_N
    return GRPOTerms(loss_N, kl_N.detach(), clipped_N.detach().float())


def _clipped_gain(ratio_N: Tensor, advantages_N: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """min(ρ·A, clip(ρ)·A), and where the clip holds."""
    free_N = ratio_N * advantages_N
    bounded_N = ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    return torch.minimum(free_N, bounded_N), bounded_N < free_N


def sequence_ratios(log_ratios_N: Tensor, lengths_B: Tensor) -> Tensor:
    """s_i = exp((1/|o_i|) Σ_t log ρ_it) at every token of sequence i, shape [N] (arXiv:2507.18071, equation 7).

    Args:
        log_ratios_N: log π_θ − log π_old of all tokens of whole sequences, from a first pass, nats.
        lengths_B: |o_i| in tokens; they sum to N.
    """
    rows_N = torch.arange(len(lengths_B), device=lengths_B.device).repeat_interleave(lengths_B)
    sums_B = torch.zeros(len(lengths_B), dtype=log_ratios_N.dtype, device=log_ratios_N.device)
    means_B = sums_B.index_add(0, rows_N, log_ratios_N) / lengths_B
    return means_B.exp()[rows_N]


def _with_token_gradient(sequence_ratios_N: Tensor | None, log_probs_N: Tensor) -> Tensor:
    """sg(s_i) · π_θ / sg(π_θ): s_i in value, s_i · ∇ log π_θ in gradient (GSPO-token, equations 13 and 14).

    Summed over a sequence with one weight w and one A this is the sequence objective itself, for
    ∇ s_i = s_i (1/|o_i|) Σ_t ∇ log π_it gives Σ_t w·s_i·A·∇ log π_it = w·|o_i|·A·∇ s_i, as Σ_t w·s_i·A = w·|o_i|·A·s_i.
    So once s_i is known, a chunk of tokens needs no others, wherever it is cut.
    """
    if sequence_ratios_N is None:
        raise ValueError("gspo needs sequence_ratios_N: make them from a first pass with `sequence_ratios`")
    return sequence_ratios_N.detach() * (log_probs_N - log_probs_N.detach()).exp()
