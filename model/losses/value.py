"""The value model's loss: squared distance to the return, and no reward for leaving the old value's surroundings.

    ℓ = ½ max((V − R)², (clip(V) − R)²)         clip(V) = V_old + min(max(V − V_old, −ε), ε)

The maximum takes the gradient away where V has already moved by ε towards R, and leaves it where V has moved away.
Source: PPO, arXiv:1707.06347, equation 9 for the square; the clip has no equation: it is that of OpenAI's baselines
(Huang et al., "The 37 implementation details of PPO", 2022), kept by verl and TRL.

Axes: N completion tokens of all rows, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ValueTerms:
    """The loss at every token, to be summed with `normalise.token_weights`; float32 (float64 where given it), [N]."""

    loss_N: Tensor
    clipped_N: Tensor  # 1 where the clip took the gradient away, else 0


def value_terms(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, clip: float) -> ValueTerms:
    """ℓ at every token.

    Args:
        values_N: V, the only argument with a gradient.
        old_values_N: V_old, of the value model that the advantages were made with.
        returns_N: R = A + V_old.
        clip: ε > 0, in units of reward; 0: no clip.
    """
    free_N = (values_N - returns_N).square() / 2
    if not clip:
        return ValueTerms(free_N, torch.zeros_like(free_N))
    near_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
    bounded_N = (near_N - returns_N).square() / 2
    return ValueTerms(torch.maximum(free_N, bounded_N), (bounded_N > free_N).to(free_N.dtype))
