"""The softmax in place, and the entropy that is summed beside it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.definitions import published
from model.losses import log_probs
from model.losses.head import Kernel, Part, head_gradients
from model.losses.log_probs import log_prob_part, softmax_, softmax_and_entropy_

GENERATOR = torch.Generator().manual_seed(0)
LOGITS_NV = 3 * torch.randn(37, 501, dtype=torch.float64, generator=GENERATOR)


@pytest.mark.parametrize("vocabulary", [1, 2, 1000])
def test_the_entropy_of_a_uniform_distribution_is_log_v(vocabulary: int) -> None:
    _, entropy_C = softmax_and_entropy_(torch.full((3, vocabulary), -7.0))
    assert entropy_C.tolist() == pytest.approx([math.log(vocabulary)] * 3, abs=1e-6)


def test_two_tokens_by_hand() -> None:
    """π = (3/4, 1/4): H = 3/4 log 4/3 + 1/4 log 4; and no nan where a probability is too small to be held."""
    logits_CV = torch.tensor([[math.log(3.0), 0.0, -1e6]])
    log_total_C, entropy_C = softmax_and_entropy_(logits_CV)
    assert logits_CV[0].tolist() == pytest.approx([0.75, 0.25, 0.0])
    assert log_total_C.item() == pytest.approx(math.log(4.0))
    assert entropy_C.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4.0))


def test_float32_is_close_to_the_definition_in_float64() -> None:
    with_entropy_NV, without_NV = LOGITS_NV.float(), LOGITS_NV.float()
    log_total_N, entropy_N = softmax_and_entropy_(with_entropy_NV)
    torch.testing.assert_close(entropy_N.double(), published.entropy(LOGITS_NV), atol=2e-6, rtol=0)
    torch.testing.assert_close(softmax_(without_NV), log_total_N)
    torch.testing.assert_close(without_NV, with_entropy_NV)
    torch.testing.assert_close(without_NV.double(), LOGITS_NV.softmax(-1), atol=1e-6, rtol=0)


def test_the_metric_is_the_sum_over_chunks_at_the_jobs_temperature() -> None:
    hidden_NH, weight_VH = LOGITS_NV[:, :16].clone(), LOGITS_NV[:20, :16].clone() / 9
    targets_N = torch.arange(37) % 20

    def part(logits_CV: Tensor, rows: slice) -> Part:
        return log_prob_part(logits_CV, targets_N[rows], lambda chosen_C: (chosen_C.sum(), {}), 0.7, entropy=True)

    found = head_gradients(hidden_NH, weight_VH, Kernel(part), rows=5)
    expected_N = published.entropy(hidden_NH @ weight_VH.T / 0.7)
    assert found.sums == {"entropy": pytest.approx(expected_N.sum().item())}


@pytest.mark.parametrize("entropy", [False, True])
def test_what_a_gpu_compiles_is_what_a_cpu_does_in_place(entropy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    targets_N = torch.arange(37)

    def part() -> Part:
        def loss(log_probs_C: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return log_probs_C.exp().sum(), {}

        return log_prob_part(LOGITS_NV.clone(), targets_N, loss, 0.7, entropy=entropy)

    expected = part()
    monkeypatch.setattr(log_probs, "is_fused", lambda _: True)
    found = part()
    assert found.loss.item() == pytest.approx(expected.loss.item())
    torch.testing.assert_close(found.gradient_CV, expected.gradient_CV)
    assert found.sums.keys() == expected.sums.keys()
    for name, value in expected.sums.items():
        torch.testing.assert_close(found.sums[name], value)
