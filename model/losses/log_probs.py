"""Log-probabilities of given tokens, in nats, reduced in float32 whatever the logits' type; and losses on them.

With π = softmax(z / τ) and o the given token, ∂ log π(o) / ∂z_v = (1[v = o] − π_v) / τ. So whatever a loss makes of a
token's log-probability, its gradient over the vocabulary is one row of that form times ∂loss / ∂log π.

Axes: N completion tokens of all rows, one after another; C those of a chunk; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from model.losses.head import Part

# log-probabilities of a chunk, nats, with gradient -> (the chunk's loss, sums of metrics)
LogProbLoss = Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]


def token_log_probs(logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[target], nats, float32, shape [N].

    Written as logit − logsumexp, so that no [N, V] table of log-probabilities is kept.
    With a sampler at temperature ≠ 1, give the same temperature here: the policy is what was sampled from.
    """
    logits_NV = logits_NV.float() / temperature
    chosen_N = logits_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    return chosen_N - logits_NV.logsumexp(-1)


def log_prob_part(logits_CV: Tensor, targets_C: Tensor, loss: LogProbLoss, temperature: float = 1.0) -> Part:
    """A loss that depends on a token's own log-probability only, with its gradient; overwrites the logits.

    Args:
        logits_CV: float32 or float64.
        targets_C: the given tokens.
        loss: of the chunk's log-probabilities; differentiated by autograd, which sees C numbers and no table.
        temperature: τ.
    """
    if temperature != 1.0:
        logits_CV.div_(temperature)
    chosen_C = logits_CV.gather(-1, targets_C[:, None]).squeeze(-1)
    log_total_C = softmax_(logits_CV)
    with torch.enable_grad():
        log_probs_C = (chosen_C - log_total_C).requires_grad_()
        value, sums = loss(log_probs_C)
        (slope_C,) = torch.autograd.grad(value, log_probs_C)
    slope_C1 = slope_C[:, None] / temperature
    gradient_CV = logits_CV.mul_(-slope_C1).scatter_add_(-1, targets_C[:, None], slope_C1)
    return Part(value.detach(), gradient_CV, sums)


def softmax_(logits_CV: Tensor) -> Tensor:
    """Turns logits into probabilities in place; returns their logsumexp, shape [C]."""
    greatest_C1 = logits_CV.amax(-1, keepdim=True)
    total_C1 = logits_CV.sub_(greatest_C1).exp_().sum(-1, keepdim=True)
    logits_CV.div_(total_C1)
    return (greatest_C1 + total_C1.log()).squeeze(-1)
