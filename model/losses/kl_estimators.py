"""Estimates of KL(π‖π_ref) from single tokens drawn from π (Schulman, "Approximating KL divergence", 2020).

With d = log π_ref − log π at the drawn token:

    k1 = −d              unbiased, may be negative, wide
    k2 = d² / 2          biased, never negative, narrow
    k3 = e^d − d − 1     unbiased, never negative, narrow        (GRPO's choice)

A good estimate of the value is not one of the gradient; `KLPlace` says what each does there. Nothing is clamped; verl
and NeMo-RL clamp d to ±20 and k3 to ±10, which cuts the gradient there.
"""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor


class KLEstimator(StrEnum):
    """Which estimate; see the module's table."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


class KLPlace(StrEnum):
    """Where the penalty stands. Expected gradient in π of one token, its context given, when π itself drew it:

              in the loss: E[∇k]                in the reward: E[k·∇ log π]
        k1    0: noise, no penalty              ∇KL(π‖π_ref): PPO's penalty
        k2    ∇KL(π‖π_ref)                      ∇E[k2] − ∇KL(π‖π_ref)
        k3    ∇KL(π_ref‖π): the other KL        ∇KL(π‖π_ref) − ∇KL(π_ref‖π): near 0 where π is near π_ref

    For ∇k1 = ∇ log π, ∇k2 = −d·∇ log π = k1·∇ log π (equal at every token, not just in the mean) and
    ∇k3 = (1 − e^d)·∇ log π (arXiv:2506.09477, arXiv:2510.01555). In the reward a token pays for itself alone, not for
    what comes after it.
    """

    LOSS = "loss"
    REWARD = "reward"


def estimate(estimator: KLEstimator, d: Tensor) -> Tensor:
    """The estimator's value at d, nats."""
    return {KLEstimator.K1: k1, KLEstimator.K2: k2, KLEstimator.K3: k3}[estimator](d)


def k1(d: Tensor) -> Tensor:
    """−d, nats."""
    return -d


def k2(d: Tensor) -> Tensor:
    """d² / 2, nats."""
    return d.square() / 2


def k3(d: Tensor) -> Tensor:
    """e^d − d − 1, nats. `expm1` keeps the digits near d = 0, where training spends its time."""
    return d.expm1() - d
