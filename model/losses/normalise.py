"""How much each completion token counts: the one `normalise` switch of SFT, KL distillation and GRPO.

    token      1 / (Σ_j |o_j|)         every token alike               (DAPO; the usual SFT mean)
    sequence   1 / (B · |o_i|)         every completion alike          (DeepSeekMath's SFT and GRPO formulas)
    constant   1 / (B · max_length)    neither; no bias to length      (Dr. GRPO)

The weights are made from the lengths of the whole global batch, before it is cut into micro-batches. A loss is
then the plain sum Σ weight · ℓ, and its value and gradient do not depend on where the cuts were.

Axes: B completions of the global batch.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class Normalise(StrEnum):
    """The denominator of a loss; see the module's table."""

    TOKEN = "token"
    SEQUENCE = "sequence"
    CONSTANT = "constant"


def token_weights(lengths_B: Tensor, normalise: Normalise, max_length: int) -> Tensor:
    """Weight of one token of each completion, float32, shape [B].

    Args:
        lengths_B: tokens of each completion of the global batch, all at least 1.
        normalise: the denominator.
        max_length: tokens; the fixed length of `constant`, unused otherwise.

    Raises:
        ValueError: a completion without tokens.
    """
    if (lengths_B < 1).any():
        raise ValueError("a completion needs at least one token")
    lengths_B = lengths_B.to(torch.float32)
    completions = len(lengths_B)
    match normalise:
        case Normalise.TOKEN:
            return torch.ones_like(lengths_B) / lengths_B.sum()
        case Normalise.SEQUENCE:
            return 1 / (completions * lengths_B)
        case Normalise.CONSTANT:
            return torch.ones_like(lengths_B) / (completions * max_length)
