"""Universal logit distillation: a distance between distributions over two vocabularies (arXiv:2402.12030).

    ℓ = −log q(o) + λ Σ_i |p_(i) − q_(i)|        p_(1) ≥ p_(2) ≥ … the teacher's probabilities, q_(i) the student's

The shorter vector is padded with zeros. The sum is the Wasserstein distance where moving mass from any token to any
other costs the same; which token holds the mass it does not see, so it says how sure to be, and cross-entropy says of
what. It stands where the teacher has something to say at the same place of the text; elsewhere ℓ is cross-entropy.

With s_v = sign(q_v − p of the same rank), z the student's logits:

    ∂/∂z_v = q_v − 1[v = o] + λ q_v (s_v − Σ_u q_u s_u)

Source: the loss and λ = 1.5 of its experiments are the paper's; the gradient is ours. Sums are taken in float32.
Axes: C tokens of a chunk, M of them beside a teacher's; V the student's vocabulary, U the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.losses.head import Part
from model.losses.log_probs import softmax_


def uld_part(
    student_logits_CV: Tensor,
    teacher_logits_MU: Tensor,
    paired_M: Tensor,
    weights_C: Tensor,
    targets_C: Tensor,
    *,
    uld_weight: float,
) -> Part:
    """Σ_c w_c ℓ_c and its gradient; overwrites both logits (float32 or float64).

    Args:
        student_logits_CV: at every token.
        teacher_logits_MU: where the teacher has read the same text, one row for each entry of `paired_M`.
        paired_M: the rows of the student that these stand beside, all different.
        weights_C: of the tokens.
        targets_C: the tokens of the text.
        uld_weight: λ.

    Sums: `cross_entropy`; `uld`, the sum over ranks, in [0, 2]; `aligned_share`, M.
    """
    chosen_C = student_logits_CV.gather(-1, targets_C[:, None]).squeeze(-1)
    cross_entropy_C = softmax_(student_logits_CV) - chosen_C
    softmax_(teacher_logits_MU)
    distance_M, slope_MV = _sorted_distance(student_logits_CV[paired_M], teacher_logits_MU)
    ones_C1 = torch.ones_like(chosen_C)[:, None]
    gradient_CV = student_logits_CV.scatter_add_(-1, targets_C[:, None], -ones_C1).mul_(weights_C[:, None])
    gradient_CV.index_add_(0, paired_M, slope_MV.mul_(uld_weight * weights_C[paired_M, None]))
    loss = (weights_C * cross_entropy_C).sum() + uld_weight * (weights_C[paired_M] * distance_M).sum()
    aligned = torch.tensor(float(len(paired_M)))
    return Part(
        loss, gradient_CV, {"cross_entropy": cross_entropy_C.sum(), "uld": distance_M.sum(), "aligned_share": aligned}
    )


def _sorted_distance(q_MV: Tensor, p_MU: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_i |p_(i) − q_(i)|, shape [M], and its slope by the student's logits, shape [M, V]."""
    ranked_q_MV, order_MV = q_MV.sort(-1, descending=True)
    ranked_p_MU = p_MU.sort(-1, descending=True).values
    common = min(q_MV.shape[-1], p_MU.shape[-1])
    beyond_M = ranked_p_MU[:, common:].sum(-1)  # against the student's zeros: no gradient
    ranked_q_MV[:, :common] -= ranked_p_MU[:, :common]
    distance_M = ranked_q_MV.abs().sum(-1) + beyond_M
    sign_MV = torch.empty_like(q_MV).scatter_(-1, order_MV, ranked_q_MV.sign_())
    mean_M1 = torch.linalg.vecdot(q_MV, sign_MV)[:, None]
    return distance_M, sign_MV.sub_(mean_M1).mul_(q_MV)
