"""Distance from a teacher whose k likeliest tokens were stored to the student, per completion token.

T is the stored set, p the teacher, q the student, P = Σ_T p, Q = Σ_T q. All tokens outside T are one class:

    D = Σ_{v∈T} p_v log(p_v / q_v) + (1 − P) log((1 − P) / (1 − Q))

That is a true KL divergence on k + 1 classes: never negative, 0 where the student agrees, at most the full KL(p‖q),
and equal to it in the limit k = V. Without the last term it can be negative, and clamping it then takes the gradient
away; with p or q renormalised over T the student is pulled to the wrong place, or is free to put mass outside.

    ∂D/∂z_v = q_v − p_v                    for v in T
              q_v (P − Q) / (1 − Q)        elsewhere        (z: the student's logits)

Source: the bucket for the tail is DistillKit's and TRL's; the gradient is ours. Sums are taken in float32.
Axes: N completion tokens of all rows, one after another; C those of a chunk; V vocabulary; K stored tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.losses.head import Part, wide_type
from model.losses.log_probs import softmax_

_TINY = 1e-30  # mass: keeps a logarithm and a quotient finite


def top_k_divergence(student_logits_NV: Tensor, ids_NK: Tensor, log_probs_NK: Tensor) -> Tensor:
    """D at every token, nats, float32 (float64 where given it), shape [N].

    Args:
        student_logits_NV: any float type.
        ids_NK: the stored tokens, all different in a row; where log_probs_NK is −inf, a place without a token.
        log_probs_NK: the teacher's, nats, over its whole vocabulary; the first of a row is a token's.
    """
    ids_NK = _padded(ids_NK, ids_NK[:, :1], log_probs_NK)
    wide = wide_type(student_logits_NV)
    log_q_NV = student_logits_NV.to(wide).log_softmax(-1)
    log_p_NK = log_probs_NK.to(wide)
    p_NK = log_p_NK.exp()
    rest_q_N = log_q_NV.exp().scatter(-1, ids_NK, 0.0).sum(-1)
    return _distance(p_NK, log_p_NK, log_q_NV.gather(-1, ids_NK), rest_q_N)


def top_k_part(logits_CV: Tensor, ids_CK: Tensor, log_probs_CK: Tensor, weights_C: Tensor) -> Part:
    """Σ_c w_c D_c and its gradient; overwrites the logits (float32 or float64), which are the student's.

    Sums: `divergence`, and the masses `teacher_mass` P and `student_mass` Q.
    """
    assert not log_probs_CK[:, 0].isneginf().any(), "every row begins with a token"
    ids_CK = _padded(ids_CK, ids_CK[:, :1], log_probs_CK)
    log_p_CK = log_probs_CK.to(logits_CV.dtype)
    p_CK = log_p_CK.exp()
    chosen_CK = logits_CV.gather(-1, ids_CK)
    log_q_CK = chosen_CK - softmax_(logits_CV)[:, None]
    q_CK = log_q_CK.exp()
    rest_q_C = logits_CV.scatter_(-1, ids_CK, 0.0).sum(-1)  # what lies outside T, summed as it is: 1 − Q cancels
    distance_C = _distance(p_CK, log_p_CK, log_q_CK, rest_q_C)
    rest_p_C = _rest(p_CK)
    logits_CV.mul_((weights_C * (1 - rest_p_C / rest_q_C.clamp_min(_TINY)))[:, None])
    within_CK = weights_C[:, None] * (q_CK - p_CK)
    logits_CV.scatter_(-1, ids_CK, _padded(within_CK, within_CK[:, :1], log_probs_CK))
    sums = {"divergence": distance_C.sum(), "teacher_mass": p_CK.sum(), "student_mass": (1 - rest_q_C).sum()}
    return Part((weights_C * distance_C).sum(), logits_CV, sums)


def _distance(p_NK: Tensor, log_p_NK: Tensor, log_q_NK: Tensor, rest_q_N: Tensor) -> Tensor:
    stored_N = torch.where(p_NK > 0, p_NK * (log_p_NK - log_q_NK), 0.0).sum(-1)
    rest_p_N = _rest(p_NK)
    return stored_N + torch.xlogy(rest_p_N, rest_p_N) - rest_p_N * rest_q_N.clamp_min(_TINY).log()


def _rest(p_NK: Tensor) -> Tensor:
    """1 − P; the stored probabilities of a sure teacher may add up to a little more than 1."""
    return (1 - p_NK.sum(-1)).clamp_min(0.0)


def _padded(values_NK: Tensor, first_N1: Tensor, log_probs_NK: Tensor) -> Tensor:
    """Places without a token repeat the first, so that writing them to a table changes nothing."""
    return torch.where(log_probs_NK.isneginf(), first_N1, values_NK)
