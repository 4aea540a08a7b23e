"""Supervised fine-tuning: cross-entropy on completion tokens.

    L = −Σ_n w_n log π(o_n)              ∂L/∂z_nv = w_n (π_nv − 1[v = o_n])       (z: the logits)

−E[(1/|o|) Σ_t log π(o_t | q, o_<t)] (DeepSeekMath, arXiv:2402.03300, equation 6) is `normalise="sequence"`; the common
token mean is "token".
Rejection-sampling fine-tuning is the same loss on accepted samples only.

Axes: N completion tokens of all rows, one after another; V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from model.losses.head import Part
from model.losses.log_probs import log_prob_part, token_log_probs


def sft_loss(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
    """−Σ_n w_n · log π(o_n), a float32 scalar in nats.

    Args:
        logits_NV: scores of the token at each completion position, any float type.
        targets_N: the completion's token ids.
        weights_N: from `normalise.token_weights`, one per token; a token of weight 0 has no gradient.
    """
    return -(weights_N * token_log_probs(logits_NV, targets_N)).sum()


def sft_part(logits_CV: Tensor, targets_C: Tensor, weights_C: Tensor) -> Part:
    """`sft_loss` of a chunk and its gradient; overwrites the logits."""
    return log_prob_part(logits_CV, targets_C, lambda log_probs_C: (-(weights_C * log_probs_C).sum(), {}))
