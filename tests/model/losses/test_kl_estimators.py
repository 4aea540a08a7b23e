"""The table of Schulman's note (facts of the R1 paper), q = N(0, 1) sampled, p = N(mu, 1), with 10^6 samples."""

from __future__ import annotations

import math

import pytest
import torch

from model.losses.kl_estimators import KLEstimator, estimate, k1, k2, k3


def log_ratio(mu: float, samples: int = 1_000_000) -> torch.Tensor:
    x = torch.randn(samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mu * x - mu**2 / 2  # log p(x) − log q(x)


@pytest.mark.parametrize(
    ("mu", "k1_std", "k2_mean", "k2_std", "k3_std"),
    [(0.1, 0.1, 0.005, 0.0071, 0.0071), (0.5, 0.5, 0.1328, 0.1875, 0.1845), (1.0, 1.0, 0.625, 0.866, 0.8478)],
)
def test_the_published_table(mu: float, k1_std: float, k2_mean: float, k2_std: float, k3_std: float) -> None:
    d, true_kl = log_ratio(mu), mu**2 / 2
    assert k1(d).mean().item() == pytest.approx(true_kl, abs=3 * k1_std / 1000)
    assert k1(d).std().item() == pytest.approx(k1_std, rel=0.01)
    assert k2(d).mean().item() == pytest.approx(k2_mean, rel=0.01)
    assert k2(d).std().item() == pytest.approx(k2_std, rel=0.02)
    assert k3(d).mean().item() == pytest.approx(true_kl, rel=0.01)
    assert k3(d).std().item() == pytest.approx(k3_std, rel=0.02)


def test_values_by_hand() -> None:
    d = torch.tensor([math.log(2.0)], dtype=torch.float64)
    assert k1(d).item() == pytest.approx(-0.693147, abs=1e-6)
    assert k2(d).item() == pytest.approx(0.240227, abs=1e-6)
    assert k3(d).item() == pytest.approx(2 - math.log(2) - 1)


def test_k3_keeps_its_digits_near_zero() -> None:
    assert k3(torch.tensor([1e-3])).item() == pytest.approx(5.0017e-7, rel=1e-3)


def test_an_estimator_by_its_name() -> None:
    d = torch.tensor([math.log(2.0)])
    assert [estimate(KLEstimator(name), d) for name in ("k1", "k2", "k3")] == [k1(d), k2(d), k3(d)]
