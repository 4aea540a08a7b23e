"""Distance between teacher p and student q over the whole vocabulary, per completion token.

    forward   KL(p‖q) = Σ_v p (log p − log q)     mean-seeking: the student covers all that the teacher does
    reverse   KL(q‖p) = Σ_v q (log q − log p)     mode-seeking: the student drops what it cannot match
    jsd       β·KL(p‖m) + (1−β)·KL(q‖m),  m = β·p + (1−β)·q          generalised JSD (GKD, arXiv:2306.13649)

β → 0 tends to β·forward and β → 1 to (1−β)·reverse, so both ends are kinds of their own, unscaled.
With a temperature τ both sides are softmax(logits / τ) and the result is multiplied by τ² (Hinton et al. 2015),
which keeps the gradient's size when τ changes. Sums are taken in float32: in bfloat16 they were 53 % off.

With z the student's logits, the gradients at τ = 1 are

    forward   ∂/∂z_v = q_v − p_v
    reverse   ∂/∂z_v = q_v (log(q_v / p_v) − KL(q‖p))
    jsd       ∂/∂z_v = (1−β) q_v (log(q_v / m_v) − KL(q‖m))

Axes: N completion tokens of all rows, one after another; C those of a chunk; V vocabulary.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

from model.losses.fused import fused, is_fused
from model.losses.head import Part, wide_type
from model.losses.log_probs import log_totals


class Divergence(StrEnum):
    """Which distance; see the module's table."""

    FORWARD = "forward"
    REVERSE = "reverse"
    JSD = "jsd"
    ULD = "uld"  # of sorted probabilities, over two vocabularies: model/losses/uld.py, not here


def kl(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p‖q) = Σ_v p (log p − log q), nats, shape [N]: the expectation is taken under the first argument."""
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)


def divergence(
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    kind: Divergence,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """Distance from teacher p to student q at every token, nats, float32 (float64 where given it), shape [N].

    Args:
        student_logits_NV, teacher_logits_NV: scores over the same token ids, any float type.
        kind: forward KL(p‖q), reverse KL(q‖p), or generalised JSD.
        beta: the teacher's share in the mixture of `jsd`, in (0, 1); unused otherwise.
        temperature: τ > 0, applied to both sides; the result carries the factor τ².

    Raises:
        ValueError: the two vocabularies have different sizes, or beta lies outside (0, 1).
    """
    if student_logits_NV.shape != teacher_logits_NV.shape:
        raise ValueError(f"shapes differ: {student_logits_NV.shape} and {teacher_logits_NV.shape}")
    wide = wide_type(student_logits_NV)
    log_p_NV = (teacher_logits_NV.to(wide) / temperature).log_softmax(-1)
    log_q_NV = (student_logits_NV.to(wide) / temperature).log_softmax(-1)
    match kind:
        case Divergence.FORWARD:
            distance_N = kl(log_p_NV, log_q_NV)
        case Divergence.REVERSE:
            distance_N = kl(log_q_NV, log_p_NV)
        case Divergence.JSD:
            distance_N = generalised_jsd(log_p_NV, log_q_NV, beta)
        case Divergence.ULD:
            raise ValueError("uld compares sorted probabilities: use uld_part")
    return temperature**2 * distance_N


def generalised_jsd(log_p_NV: Tensor, log_q_NV: Tensor, beta: float) -> Tensor:
    """β·KL(p‖m) + (1−β)·KL(q‖m) with m = β·p + (1−β)·q, nats, shape [N] (GKD, equation 1)."""
    _require_between(beta)
    log_m_NV = torch.logaddexp(log_p_NV + math.log(beta), log_q_NV + math.log1p(-beta))
    teacher_N = beta * kl(log_p_NV, log_m_NV)
    student_N = (1 - beta) * kl(log_q_NV, log_m_NV)
    return teacher_N + student_N


def divergence_part(
    student_logits_CV: Tensor,
    teacher_logits_CV: Tensor,
    weights_C: Tensor,
    kind: Divergence,
    targets_C: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Part:
    """Σ_c w_c · `divergence` and its gradient; overwrites both logits (float32 or float64).

    Sums: `divergence`, and `cross_entropy` of the student at `targets_C`, the tokens of the text.
    """
    if kind is Divergence.ULD:
        raise ValueError("uld compares sorted probabilities: use uld_part")
    if kind is Divergence.JSD:
        _require_between(beta)
    chosen_C = student_logits_CV.gather(-1, targets_C[:, None]).squeeze(-1)
    total_C = log_totals(student_logits_CV)
    cross_entropy_C = total_C - chosen_C
    if temperature != 1.0:
        teacher_logits_CV.div_(temperature)
        total_C = log_totals(student_logits_CV.div_(temperature))
    slopes_C1 = weights_C[:, None] * temperature  # τ² of the factor, 1/τ of the logits
    to_log_probs = total_C[:, None], log_totals(teacher_logits_CV)[:, None]
    if is_fused(student_logits_CV):
        given = (student_logits_CV, teacher_logits_CV, *to_log_probs, kind, total_C.new_tensor(beta))
        distance_C, own_C = _distances(*given)
        _to_gradient_(*given, own_C[:, None], slopes_C1)
        gradient_CV = student_logits_CV
    else:
        log_q_CV, log_p_CV = student_logits_CV.sub_(to_log_probs[0]), teacher_logits_CV.sub_(to_log_probs[1])
        distance_C, gradient_CV = _distance_and_gradient_(log_q_CV, log_p_CV, kind, beta)
        gradient_CV.mul_(slopes_C1)
    distance_C = temperature**2 * distance_C
    sums = {"divergence": distance_C.sum(), "cross_entropy": cross_entropy_C.sum()}
    return Part((weights_C * distance_C).sum(), gradient_CV, sums)


# Of what the next two are given, student_C1 and teacher_C1 are the logits' logsumexp; β is a tensor, see `fused`. That
# they read the logits twice costs less than a third table, which one pass that also overwrites them would keep.


@fused
def _distances(
    student_CV: Tensor, teacher_CV: Tensor, student_C1: Tensor, teacher_C1: Tensor, kind: Divergence, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """The distance, and what of it is the student's own: Σ q log(q / p) or Σ q log(q / m); [C] each."""
    log_q_CV, log_p_CV = student_CV - student_C1, teacher_CV - teacher_C1
    if kind is Divergence.FORWARD:
        distance_C = (log_p_CV.exp() * (log_p_CV - log_q_CV)).sum(-1)
        return distance_C, distance_C
    if kind is Divergence.REVERSE:
        distance_C = (log_q_CV.exp() * (log_q_CV - log_p_CV)).sum(-1)
        return distance_C, distance_C
    log_m_CV = torch.logaddexp(log_p_CV + beta.log(), log_q_CV + torch.log1p(-beta))
    own_C = (log_q_CV.exp() * (log_q_CV - log_m_CV)).sum(-1)
    return beta * (log_p_CV.exp() * (log_p_CV - log_m_CV)).sum(-1) + (1 - beta) * own_C, own_C


@fused
def _to_gradient_(
    student_CV: Tensor,
    teacher_CV: Tensor,
    student_C1: Tensor,
    teacher_C1: Tensor,
    kind: Divergence,
    beta: Tensor,
    own_C1: Tensor,
    slopes_C1: Tensor,
) -> None:
    """Turns the student's logits into the distance's gradient by them, times `slopes_C1`."""
    log_q_CV, log_p_CV = student_CV - student_C1, teacher_CV - teacher_C1
    q_CV = log_q_CV.exp()
    if kind is Divergence.FORWARD:
        gradient_CV = q_CV - log_p_CV.exp()
    elif kind is Divergence.REVERSE:
        gradient_CV = q_CV * (log_q_CV - log_p_CV - own_C1)
    else:
        log_m_CV = torch.logaddexp(log_p_CV + beta.log(), log_q_CV + torch.log1p(-beta))
        gradient_CV = (1 - beta) * q_CV * (log_q_CV - log_m_CV - own_C1)
    student_CV.copy_(slopes_C1 * gradient_CV)


def _distance_and_gradient_(log_q_CV: Tensor, log_p_CV: Tensor, kind: Divergence, beta: float) -> tuple[Tensor, Tensor]:
    """Both in place, with no table more than are there (one for JSD), which is what counts on a CPU."""
    if kind is Divergence.FORWARD:
        p_CV = log_p_CV.exp()
        return _dot(p_CV, log_p_CV.sub_(log_q_CV)), log_q_CV.exp_().sub_(p_CV)
    if kind is Divergence.REVERSE:
        ratio_CV = log_p_CV.neg_().add_(log_q_CV)
        return _drawn_from(log_q_CV.exp_(), ratio_CV)
    log_m_CV = torch.logaddexp(log_p_CV + math.log(beta), log_q_CV + math.log1p(-beta))
    teacher_C = _dot(log_p_CV.exp(), log_p_CV.sub_(log_m_CV))
    ratio_CV = log_m_CV.neg_().add_(log_q_CV)
    student_C, gradient_CV = _drawn_from(log_q_CV.exp_(), ratio_CV)
    return beta * teacher_C + (1 - beta) * student_C, gradient_CV.mul_(1 - beta)


def _require_between(beta: float) -> None:
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie in (0, 1), got {beta}: use forward or reverse at the ends")


def _drawn_from(q_CV: Tensor, ratio_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Σ q r and q (r − Σ q r), for r a logarithm of q over something; overwrites both."""
    mean_C = _dot(q_CV, ratio_CV)
    return mean_C, ratio_CV.sub_(mean_C[:, None]).mul_(q_CV)


def _dot(one_CV: Tensor, other_CV: Tensor) -> Tensor:
    """Σ_v one · other, without a table of products."""
    product_C: Tensor = torch.linalg.vecdot(one_CV, other_CV)
    return product_C
