"""Log-probabilities of given tokens, in nats, reduced in float32 whatever the logits' type; and losses on them.

With π = softmax(z / τ) and o the given token, ∂ log π(o) / ∂z_v = (1[v = o] − π_v) / τ. So whatever a loss makes of a
token's log-probability, its gradient over the vocabulary is one row of that form times ∂loss / ∂log π.

With z' = z/τ − max z/τ and S = Σ_v exp z'_v, the entropy −Σ_v π_v log π_v is log S − (Σ_v z'_v exp z'_v) / S: it is
summed while the exponentials are in the cache, for 3 to 5 % of the head's time on a CPU. A GPU reads the logits twice,
as the head gave them, and writes the gradient over them.

Axes: N completion tokens of all rows, one after another; C those of a chunk; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from model.losses.fused import fused, is_fused
from model.losses.head import Part, chunks, wide_type

_CACHED_ROWS = 8  # tokens whose logits stay in a processor's cache: 1.6 MB at V = 49,152

# log-probabilities of a chunk, nats, with gradient -> (the chunk's loss, sums of metrics)
LogProbLoss = Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]


def token_log_probs(logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[target], nats, float32 (float64 where given it), shape [N].

    Written as logit − logsumexp, so that no [N, V] table of log-probabilities is kept.
    With a sampler at temperature ≠ 1, give the same temperature here: the policy is what was sampled from.
    """
    if temperature != 1.0:
        logits_NV = logits_NV.to(wide_type(logits_NV)) / temperature
    chosen_N = logits_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    return chosen_N - log_totals(logits_NV)


def log_prob_part(
    logits_CV: Tensor, targets_C: Tensor, loss: LogProbLoss, temperature: float = 1.0, *, entropy: bool = False
) -> Part:
    """A loss that depends on a token's own log-probability only, with its gradient; overwrites the logits.

    Args:
        logits_CV: float32 or float64; on a GPU bfloat16 too, which at τ = 1 is then the gradient's type.
        targets_C: the given tokens.
        loss: of the chunk's log-probabilities; differentiated by autograd, which sees C numbers and no table.
        temperature: τ.
        entropy: the sums get `entropy`, that of softmax(z / τ), nats.
    """
    if temperature != 1.0:
        logits_CV = logits_CV.to(wide_type(logits_CV)).div_(temperature)
    chosen_C = logits_CV.gather(-1, targets_C[:, None]).squeeze(-1).to(wide_type(logits_CV))
    if is_fused(logits_CV):
        log_total_C, entropy_C = _totals(logits_CV, entropy)
    else:
        log_total_C, entropy_C = softmax_and_entropy_(logits_CV) if entropy else (softmax_(logits_CV), None)
    with torch.enable_grad():
        log_probs_C = (chosen_C - log_total_C).requires_grad_()
        value, sums = loss(log_probs_C)
        (slope_C,) = torch.autograd.grad(value, log_probs_C)
    slope_C1, targets_C1 = slope_C[:, None] / temperature, targets_C[:, None]
    if is_fused(logits_CV):
        _to_shares_(logits_CV, log_total_C[:, None], -slope_C1)
        at_targets_C1 = slope_C1 * (1 - log_probs_C.detach().exp()[:, None])
        logits_CV.scatter_(-1, targets_C1, at_targets_C1.to(logits_CV.dtype))
    else:
        logits_CV.mul_(-slope_C1).scatter_add_(-1, targets_C1, slope_C1)
    return Part(value.detach(), logits_CV, sums if entropy_C is None else {**sums, "entropy": entropy_C.sum()})


@fused
def log_totals(logits_NV: Tensor) -> Tensor:
    """Logsumexp in float32 (float64 where given it), [N]."""
    return logits_NV.to(wide_type(logits_NV)).logsumexp(-1)


@fused
def _totals(logits_CV: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Logsumexp and, where it is wanted, entropy, in float32 or float64, [C] each; the logits stay."""
    wide_CV = logits_CV.to(wide_type(logits_CV))
    greatest_C1 = wide_CV.amax(-1, keepdim=True)
    less_CV = wide_CV - greatest_C1
    exponentials_CV = less_CV.exp()
    total_C = exponentials_CV.sum(-1)
    log_total_C = greatest_C1.squeeze(-1) + total_C.log()
    if not entropy:
        return log_total_C, None
    return log_total_C, total_C.log() - (less_CV * exponentials_CV).sum(-1) / total_C


@fused
def _to_shares_(logits_CV: Tensor, log_total_C1: Tensor, slope_C1: Tensor) -> None:
    """Turns logits into slope · π, computed in float32 and rounded once."""
    logits_CV.copy_(slope_C1 * (logits_CV - log_total_C1).exp())


@fused
def softmax_(logits_CV: Tensor) -> Tensor:
    """Turns logits into probabilities in place; returns their logsumexp, shape [C]."""
    greatest_C1 = logits_CV.amax(-1, keepdim=True)
    total_C1 = logits_CV.sub_(greatest_C1).exp_().sum(-1, keepdim=True)
    logits_CV.div_(total_C1)
    return (greatest_C1 + total_C1.log()).squeeze(-1)


def softmax_and_entropy_(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """`softmax_`, and the probabilities' entropy in nats, [C]: a few rows at a time, so no second table is kept."""
    log_total_C, entropy_C = logits_CV.new_empty(len(logits_CV)), logits_CV.new_empty(len(logits_CV))
    for rows in chunks(len(logits_CV), _CACHED_ROWS):
        row_CV = logits_CV[rows]
        greatest_C1 = row_CV.amax(-1, keepdim=True)
        exponentials_CV = row_CV.sub_(greatest_C1).exp()
        total_C1 = exponentials_CV.sum(-1, keepdim=True)
        weighted_C1 = row_CV.mul_(exponentials_CV).sum(-1, keepdim=True)
        torch.div(exponentials_CV, total_C1, out=row_CV)
        log_total_C[rows] = (greatest_C1 + total_C1.log()).squeeze(-1)
        entropy_C[rows] = (total_C1.log() - weighted_C1 / total_C1).squeeze(-1)
    return log_total_C, entropy_C
