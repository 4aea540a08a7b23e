"""The tail bucket: what it is worth, by hand and by its limits."""

from __future__ import annotations

import math

import pytest
import torch

from model.losses.kl import kl
from model.losses.top_k import top_k_divergence, top_k_part

GENERATOR = torch.Generator().manual_seed(0)
TEACHER_NV, STUDENT_NV = (2 * torch.randn(6, 512, dtype=torch.float64, generator=GENERATOR) for _ in range(2))


def _stored(k: int) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs_NK, ids_NK = TEACHER_NV.log_softmax(-1).topk(k)
    return ids_NK, log_probs_NK


def test_one_stored_of_three() -> None:
    """p = (½, ¼, ¼), q = (¼, ½, ¼): ½ ln 2 + ½ ln(½ / ¾)."""
    student_NV = torch.tensor([[0.25, 0.5, 0.25]]).log()
    distance_N = top_k_divergence(student_NV, torch.tensor([[0]]), torch.tensor([[0.5]]).log())
    assert distance_N.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_between_nothing_and_the_whole_and_growing_with_k() -> None:
    whole_N = kl(TEACHER_NV.log_softmax(-1), STUDENT_NV.log_softmax(-1))
    before_N = torch.zeros_like(whole_N)
    for k in (1, 8, 64, 511, 512):
        now_N = top_k_divergence(STUDENT_NV, *_stored(k))
        assert (now_N >= before_N - 1e-12).all()
        before_N = now_N
    torch.testing.assert_close(before_N, whole_N)


def test_a_student_that_agrees_on_the_classes_has_neither_distance_nor_gradient() -> None:
    ids_NK, log_probs_NK = _stored(8)
    part = top_k_part(TEACHER_NV.clone(), ids_NK, log_probs_NK, torch.ones(6, dtype=torch.float64))
    assert abs(part.loss.item()) < 1e-12
    assert part.gradient_CV.abs().max().item() < 1e-12


def test_the_gradient_pulls_mass_out_of_the_tail_as_much_as_there_is_too_much() -> None:
    """Outside T each token's gradient is q_v (P − Q) / (1 − Q); a row sums to nothing."""
    ids_NK, log_probs_NK = _stored(8)
    part = top_k_part(STUDENT_NV.clone(), ids_NK, log_probs_NK, torch.ones(6, dtype=torch.float64))
    q_NV = STUDENT_NV.softmax(-1)
    p_N, mass_N = log_probs_NK.exp().sum(-1), q_NV.gather(-1, ids_NK).sum(-1)
    outside = int(next(v for v in range(512) if v not in ids_NK[0].tolist()))
    expected = q_NV[0, outside] * (p_N[0] - mass_N[0]) / (1 - mass_N[0])
    assert part.gradient_CV[0, outside].item() == pytest.approx(expected.item())
    torch.testing.assert_close(part.gradient_CV.sum(-1), torch.zeros(6, dtype=torch.float64))


def test_a_sure_teacher_and_a_sure_student_stay_finite() -> None:
    """Probabilities that add up to more than 1 by rounding, and a student without any mass outside."""
    ids_NK = torch.tensor([[0, 1]])
    log_probs_NK = torch.tensor([[0.0, -18.0]])
    for student in ([80.0, 0.0, -80.0, -80.0], [-80.0, 0.0, 80.0, 80.0]):
        logits_NV = torch.tensor([student])
        assert top_k_divergence(logits_NV, ids_NK, log_probs_NK).isfinite().all()
        part = top_k_part(logits_NV.clone(), ids_NK, log_probs_NK, torch.ones(1))
        assert part.gradient_CV.isfinite().all()
        assert part.gradient_CV.abs().max().item() <= 1.0 + 1e-6


def test_places_without_a_token_change_nothing() -> None:
    ids_NK, log_probs_NK = _stored(8)
    padded_ids_NK = torch.cat([ids_NK, torch.zeros(6, 3, dtype=torch.int64)], -1)
    padded_NK = torch.cat([log_probs_NK, torch.full((6, 3), -torch.inf, dtype=torch.float64)], -1)
    torch.testing.assert_close(
        top_k_divergence(STUDENT_NV, padded_ids_NK, padded_NK), top_k_divergence(STUDENT_NV, ids_NK, log_probs_NK)
    )
    one, two = (
        top_k_part(STUDENT_NV.clone(), i, p, torch.ones(6, dtype=torch.float64))
        for i, p in ((ids_NK, log_probs_NK), (padded_ids_NK, padded_NK))
    )
    torch.testing.assert_close(two.gradient_CV, one.gradient_CV)
