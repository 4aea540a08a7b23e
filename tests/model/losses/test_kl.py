from __future__ import annotations

import math

import pytest
import torch

from model.losses import kl
from model.losses.head import Part
from model.losses.kl import Divergence, divergence, divergence_part

ONE_VOCABULARY = (Divergence.FORWARD, Divergence.REVERSE, Divergence.JSD)
TEACHER_P = torch.tensor([[0.5, 0.5]])
STUDENT_Q = torch.tensor([[0.25, 0.75]])


def of(kind: Divergence, beta: float = 0.5) -> float:
    return divergence(STUDENT_Q.log(), TEACHER_P.log(), kind, beta=beta).item()


def test_forward_weighs_by_the_teacher() -> None:
    assert of(Divergence.FORWARD) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)


def test_reverse_weighs_by_the_student() -> None:
    assert of(Divergence.REVERSE) == pytest.approx(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), abs=1e-6)


def test_jsd_of_disjoint_distributions_is_ln_two() -> None:
    one, other = torch.tensor([[60.0, -60.0]]), torch.tensor([[-60.0, 60.0]])
    assert divergence(one, other, Divergence.JSD, beta=0.5).item() == pytest.approx(math.log(2), abs=1e-6)


def test_jsd_near_its_ends_is_the_scaled_kl() -> None:
    assert of(Divergence.JSD, 0.001) / 0.001 == pytest.approx(of(Divergence.FORWARD), rel=2e-3)
    assert of(Divergence.JSD, 0.999) / 0.001 == pytest.approx(of(Divergence.REVERSE), rel=2e-3)


def test_jsd_refuses_its_ends() -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        of(Divergence.JSD, 0.0)


@pytest.mark.parametrize("kind", ONE_VOCABULARY)
def test_equal_distributions_have_no_distance_and_no_gradient(kind: Divergence) -> None:
    logits_NV = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    student_NV = logits_NV.clone().requires_grad_()
    divergence(student_NV, logits_NV, kind).sum().backward()
    assert student_NV.grad is not None
    assert student_NV.grad.abs().max().item() < 1e-6


def test_the_forward_gradient_is_student_minus_teacher() -> None:
    student_NV = STUDENT_Q.log().requires_grad_()
    divergence(student_NV, TEACHER_P.log(), Divergence.FORWARD).sum().backward()
    assert student_NV.grad is not None
    assert student_NV.grad.tolist()[0] == pytest.approx([-0.25, 0.25])


def test_temperature_softens_both_sides_and_carries_its_square() -> None:
    soft = divergence(STUDENT_Q.log() / 2, TEACHER_P.log() / 2, Divergence.FORWARD).item()
    assert divergence(STUDENT_Q.log(), TEACHER_P.log(), Divergence.FORWARD, temperature=2.0).item() == (
        pytest.approx(4 * soft)
    )


def test_different_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        divergence(torch.zeros(1, 3), torch.zeros(1, 4), Divergence.FORWARD)


def test_bfloat16_logits_are_reduced_in_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    student_NV, teacher_NV = (torch.randn(4, 5000, generator=generator).bfloat16() for _ in range(2))
    exact_N = divergence(student_NV.float(), teacher_NV.float(), Divergence.JSD)
    assert divergence(student_NV, teacher_NV, Divergence.JSD).tolist() == exact_N.tolist()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", [Divergence.FORWARD, Divergence.REVERSE, Divergence.JSD])
def test_what_a_gpu_compiles_is_what_a_cpu_does_in_place(
    kind: Divergence, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 50, generator=generator) for _ in range(2))
    weights, targets = torch.rand(6, generator=generator), torch.arange(6)

    def part() -> Part:
        given = student.clone(), teacher.clone(), weights, kind, targets
        return divergence_part(*given, beta=0.3, temperature=temperature)

    expected = part()
    monkeypatch.setattr(kl, "is_fused", lambda _: True)
    found = part()
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    torch.testing.assert_close(found.gradient_CV, expected.gradient_CV, atol=1e-6, rtol=1e-5)
    for name, value in expected.sums.items():
        assert found.sums[name].item() == pytest.approx(value.item(), rel=1e-5)
