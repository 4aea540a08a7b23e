"""Weights for tokens that an engine sampled whose probabilities are not quite the trainer's.

    ρ = sg(π_old / π_sampler)      π_old: the trainer's numbers for the weights that π_sampler had

    none      w = 1
    tis       w = min(ρ, C)                        (truncated importance sampling: Yao et al. 2025)
    icepop    w = ρ where a ≤ ρ ≤ b, else 0        (Ring-1T, arXiv:2510.18855)

A policy gradient of tokens drawn from π_sampler that is to be the one of π_old needs the weight ρ; its variance is
what the bounds are for. Both distributions must be the same function of the logits: one temperature, no top-p, no
top-k, or ρ is not near 1 for any weights. Weights are per token: no product over a sequence.

Axes: N completion tokens of all rows, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Mismatch(StrEnum):
    """What becomes of ρ; see the module's table."""

    NONE = "none"
    TIS = "tis"
    ICEPOP = "icepop"


@dataclass(frozen=True)
class SamplerWeights:
    """Each token's weight and what led to it, float32, without gradient, shape [N]."""

    weights_N: Tensor
    log_ratios_N: Tensor  # log ρ, nats
    capped_N: Tensor  # 1 where a bound held: ρ cut to C, or the token left out; else 0

    def sums(self) -> dict[str, Tensor]:
        """Sums over tokens of ρ, of the tokens at a bound, of |log ρ|, and of ρ − 1 − log ρ.

        The last one's mean estimates KL(π_sampler‖π_old) in nats (Schulman's k3).
        """
        ratios_N = self.log_ratios_N.exp()
        return {
            "mismatch_ratio": ratios_N.sum(),
            "mismatch_capped_share": self.capped_N.sum(),
            "mismatch_log_ratio": self.log_ratios_N.abs().sum(),
            "mismatch_kl": (ratios_N - 1 - self.log_ratios_N).sum(),
        }


def sampler_weights(
    old_log_probs_N: Tensor, sampler_log_probs_N: Tensor, kind: Mismatch, *, low: float = 0.5, high: float = 2.0
) -> SamplerWeights:
    """The weight of every token, to be multiplied with its policy-gradient term.

    Args:
        old_log_probs_N: log π_old of the sampled tokens by the trainer, nats, before its first update on them.
        sampler_log_probs_N: log π_sampler, as the engine told them.
        kind: the line of the module's table; `none` measures only, and counts no token as capped.
        low: a, icepop's; both its bounds belong to the band.
        high: C, or b.
    """
    log_ratios_N = (old_log_probs_N - sampler_log_probs_N).detach().float()
    ratios_N = log_ratios_N.exp()
    match kind:
        case Mismatch.NONE:
            weights_N, capped_N = torch.ones_like(ratios_N), torch.zeros_like(ratios_N)
        case Mismatch.TIS:
            weights_N, capped_N = ratios_N.clamp(max=high), ratios_N > high
        case Mismatch.ICEPOP:
            capped_N = (ratios_N < low) | (ratios_N > high)
            weights_N = ratios_N.masked_fill(capped_N, 0.0)
    return SamplerWeights(weights_N, log_ratios_N, capped_N.float())
