"""Every kernel's value and gradient in closed form against autograd on its published definition, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.definitions import published
from model.losses import head, kl, log_probs
from model.losses.head import Kernel, Part, head_gradients
from model.losses.kl import Divergence, divergence_part
from model.losses.log_probs import log_prob_part
from model.losses.sft import sft_part
from model.losses.top_k import top_k_divergence, top_k_part
from model.losses.uld import uld_part

ONE_VOCABULARY = (Divergence.FORWARD, Divergence.REVERSE, Divergence.JSD)
N, H, V, K, BETA = 37, 16, 101, 8, 0.3
GENERATOR = torch.Generator().manual_seed(0)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


HIDDEN_NH, WEIGHT_VH, TEACHER_NV = _random(N, H), _random(V, H), 3 * _random(N, V)
WEIGHTS_N = _random(N).abs()
TARGETS_N = torch.randint(V, (N,), generator=GENERATOR)
OTHER_NU, PAIRED_N = 2 * _random(N, 130), (torch.arange(N) % 3 > 0).double()  # a teacher of 130 tokens, at some places
STORED_NK, IDS_NK = TEACHER_NV.log_softmax(-1).topk(K)
SHORT_NK = STORED_NK.clone()
SHORT_NK[3, 5:] = -torch.inf  # a row with five tokens


def _distance(logits_NV: Tensor, kind: Divergence, temperature: float) -> Tensor:
    p_NV, q_NV = (published.probabilities(each, temperature) for each in (TEACHER_NV, logits_NV))
    distance_N = {
        Divergence.FORWARD: lambda: published.kl(p_NV, q_NV),
        Divergence.REVERSE: lambda: published.kl(q_NV, p_NV),
        Divergence.JSD: lambda: published.jsd(p_NV, q_NV, BETA),
    }[kind]()
    return temperature**2 * (WEIGHTS_N * distance_N).sum()


def _distance_kernel(kind: Divergence, temperature: float) -> Kernel:
    def part(logits_CV: Tensor, rows: slice) -> Part:
        teacher_CV, weights_C, targets_C = TEACHER_NV[rows].clone(), WEIGHTS_N[rows], TARGETS_N[rows]
        return divergence_part(logits_CV, teacher_CV, weights_C, kind, targets_C, beta=BETA, temperature=temperature)

    return Kernel(part)


def _uld(logits_NV: Tensor) -> Tensor:
    distance_N = published.uld(*(published.probabilities(each) for each in (OTHER_NU, logits_NV)))
    return WEIGHTS_N * (1.5 * PAIRED_N * distance_N - published.log_probs(logits_NV, TARGETS_N))


def _uld_part(logits_CV: Tensor, rows: slice) -> Part:
    paired_M = PAIRED_N[rows].nonzero().flatten()
    teacher_MU = OTHER_NU[rows][paired_M]
    return uld_part(logits_CV, teacher_MU, paired_M, WEIGHTS_N[rows], TARGETS_N[rows], uld_weight=1.5)


def _policy(log_probs_N: Tensor, weights_N: Tensor) -> Tensor:
    """Curved in the log-probability, as a ratio is."""
    return (weights_N * log_probs_N.exp().clamp_max(0.5)).sum()


CASES: dict[str, tuple[Callable[[Tensor], Tensor], Kernel]] = {
    "sft": (
        lambda logits_NV: -(WEIGHTS_N * published.log_probs(logits_NV, TARGETS_N)).sum(),
        Kernel(lambda logits_CV, rows: sft_part(logits_CV, TARGETS_N[rows], WEIGHTS_N[rows])),
    ),
    "policy": (
        lambda logits_NV: _policy(published.log_probs(logits_NV, TARGETS_N, 0.7), WEIGHTS_N),
        Kernel(
            lambda logits_CV, rows: log_prob_part(
                logits_CV, TARGETS_N[rows], lambda log_probs_C: (_policy(log_probs_C, WEIGHTS_N[rows]), {}), 0.7
            )
        ),
    ),
    "top k": (
        lambda logits_NV: (WEIGHTS_N * top_k_divergence(logits_NV, IDS_NK, SHORT_NK)).sum(),
        Kernel(lambda logits_CV, rows: top_k_part(logits_CV, IDS_NK[rows], SHORT_NK[rows], WEIGHTS_N[rows])),
    ),
    "uld": (
        lambda logits_NV: (
            -(WEIGHTS_N * published.log_probs(logits_NV, TARGETS_N)).sum()
            + 1.5
            * (WEIGHTS_N * PAIRED_N * published.uld(published.probabilities(OTHER_NU), logits_NV.softmax(-1))).sum()
        ),
        Kernel(_uld_part),
    ),
    **{
        f"{kind} at {temperature}": (
            lambda logits_NV, kind=kind, temperature=temperature: _distance(logits_NV, kind, temperature),
            _distance_kernel(kind, temperature),
        )
        for kind in ONE_VOCABULARY
        for temperature in (1.0, 2.5)
    },
}


@pytest.mark.parametrize("rows", [5, 64])
@pytest.mark.parametrize("name", list(CASES))
def test_loss_and_gradients_are_autograds(name: str, rows: int) -> None:
    definition, kernel = CASES[name]
    hidden_NH, weight_VH = HIDDEN_NH.clone().requires_grad_(), WEIGHT_VH.clone().requires_grad_()
    expected = definition(hidden_NH @ weight_VH.T)
    by_hidden_NH, by_weight_VH = torch.autograd.grad(expected, (hidden_NH, weight_VH))
    found = head_gradients(HIDDEN_NH, WEIGHT_VH, kernel, rows=rows)
    assert found.loss == pytest.approx(expected.item(), rel=1e-13)
    torch.testing.assert_close(found.hidden_NH, by_hidden_NH, atol=1e-12, rtol=1e-11)
    torch.testing.assert_close(found.weight_VH, by_weight_VH, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("name", list(CASES))
def test_rows_of_a_gpus_table_beyond_the_vocabulary_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its formulas, on a CPU: logits are part of a wider table, which they overwrite."""
    kernel = CASES[name][1]
    expected = head_gradients(HIDDEN_NH, WEIGHT_VH, kernel, rows=5)
    for module in (kl, log_probs):
        monkeypatch.setattr(module, "is_fused", lambda _: True)
    monkeypatch.setattr(head, "table_width", lambda weight_VH, _: len(weight_VH))
    loud_VH = torch.cat([WEIGHT_VH, 50 * torch.ones(3, H, dtype=torch.float64)])
    found = head_gradients(HIDDEN_NH, loud_VH, replace(kernel, vocabulary=V), rows=5)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    torch.testing.assert_close(found.hidden_NH, expected.hidden_NH, atol=1e-12, rtol=1e-10)
    assert found.weight_VH is not None
    torch.testing.assert_close(found.weight_VH[:V], expected.weight_VH, atol=1e-12, rtol=1e-10)
    assert found.weight_VH[V:].abs().max().item() == 0.0


@pytest.mark.parametrize("name", list(CASES))
def test_bfloat16_costs_no_more_than_rounding_the_gradients(name: str) -> None:
    """Unit roundoff 2⁻⁹, once for the gradient of the logits and once for the result; logits that are precise."""
    _, kernel = CASES[name]
    hidden_NH, weight_VH = HIDDEN_NH.bfloat16(), WEIGHT_VH.bfloat16()

    def narrow(logits_CV: Tensor, rows: slice) -> Part:
        assert logits_CV.dtype == torch.float32
        part = kernel.part(logits_CV.double(), rows)  # the inputs of these tests are float64
        return replace(part, gradient_CV=part.gradient_CV.float())

    exact = head_gradients(hidden_NH.double(), weight_VH.double(), kernel)
    found = head_gradients(hidden_NH, weight_VH, Kernel(narrow, precise=True), rows=5)
    assert (found.hidden_NH.dtype, found.weight_VH.dtype) == (torch.bfloat16, torch.float32)
    for close, right in ((found.hidden_NH, exact.hidden_NH), (found.weight_VH, exact.weight_VH)):
        assert ((close.double() - right).norm() / right.norm()).item() < 2 * 2**-9


def test_no_tokens_no_loss() -> None:
    found = head_gradients(HIDDEN_NH[:0], WEIGHT_VH, CASES["sft"][1])
    assert (found.loss, found.hidden_NH.shape, found.weight_VH.abs().max().item()) == (0.0, (0, H), 0.0)


def test_a_token_without_weight_has_no_gradient() -> None:
    weights_N = WEIGHTS_N.clone()
    weights_N[4] = 0.0
    kernel = Kernel(lambda logits_CV, rows: sft_part(logits_CV, TARGETS_N[rows], weights_N[rows]))
    found = head_gradients(HIDDEN_NH, WEIGHT_VH, kernel)
    assert found.hidden_NH[4].abs().max().item() == 0.0


def test_sums_of_metrics_go_over_all_chunks() -> None:
    found = head_gradients(HIDDEN_NH, WEIGHT_VH, CASES["top k"][1], rows=5)
    assert found.sums["teacher_mass"] == pytest.approx(SHORT_NK.exp().sum().item())


def test_the_heads_gradient_is_added_to_what_is_there() -> None:
    kernel = CASES["sft"][1]
    one, other = (head_gradients(HIDDEN_NH[part], WEIGHT_VH, kernel) for part in (slice(0, 20), slice(0, 9)))
    into_VH = one.weight_VH.clone()
    head_gradients(HIDDEN_NH[:9], WEIGHT_VH, kernel, into_VH=into_VH)
    torch.testing.assert_close(into_VH, one.weight_VH + other.weight_VH)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_frozen_heads_gradient_is_not_made_and_the_others_stay_to_the_bit(dtype: torch.dtype) -> None:
    hidden_NH, weight_VH = HIDDEN_NH.to(dtype), WEIGHT_VH.to(dtype)
    kernel = Kernel(lambda logits_CV, rows: sft_part(logits_CV, TARGETS_N[rows], WEIGHTS_N[rows].to(logits_CV.dtype)))
    trained = head_gradients(hidden_NH, weight_VH, kernel, rows=5)
    frozen = head_gradients(hidden_NH, weight_VH, kernel, rows=5, frozen=True)
    assert frozen.weight_VH is None
    assert frozen.loss == trained.loss
    assert torch.equal(frozen.hidden_NH, trained.hidden_NH)
