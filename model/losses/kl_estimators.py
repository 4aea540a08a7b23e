"""Estimates of KL(π‖π_ref) from single tokens drawn from π (Schulman, "Approximating KL divergence", 2020).

With d = log π_ref − log π at the drawn token:

    k1 = −d              unbiased, may be negative, wide
    k2 = d² / 2          biased, never negative, narrow
    k3 = e^d − d − 1     unbiased, never negative, narrow        (GRPO's choice)

Nothing is clamped; verl and NeMo-RL clamp d to ±20 and k3 to ±10, which cuts the gradient there.
"""

from __future__ import annotations

from torch import Tensor


def k1(d: Tensor) -> Tensor:
    """−d, nats."""
    return -d


def k2(d: Tensor) -> Tensor:
    """d² / 2, nats."""
    return d.square() / 2


def k3(d: Tensor) -> Tensor:
    """e^d − d − 1, nats. `expm1` keeps the digits near d = 0, where training spends its time."""
    return d.expm1() - d
