"""Advantages of the G completions of each problem over one another: no critic.

    grpo      A_i = (r_i − mean r) / std r     (DeepSeek-R1; the std divides by G, not by G − 1)
    dr_grpo   A_i =  r_i − mean r              (Dr. GRPO, arXiv:2503.20783: no bias to easy or hard problems)
    rloo      A_i =  r_i − mean of the others  (leave-one-out, arXiv:2402.14740: G/(G − 1) times dr_grpo's)

A group of equal rewards says nothing and gets exactly 0. That case is told apart by max = min, so no epsilon is
added to the std; peers add 1e-4 (TRL) or 1e-6 (verl), and divide by G − 1: 1.6198 and 1.6202 where this gives 1.7321.

Axes: P problems, G completions of one problem.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class Advantage(StrEnum):
    """How rewards of a group are compared; see the module's table."""

    GRPO = "grpo"
    DR_GRPO = "dr_grpo"
    RLOO = "rloo"


def group_advantages(rewards_PG: Tensor, kind: Advantage) -> Tensor:
    """Advantage of every completion within its group, float32, shape [P, G]; each row sums to 0."""
    rewards_PG = rewards_PG.double()
    centred_PG = rewards_PG - rewards_PG.mean(-1, keepdim=True)
    match kind:
        case Advantage.GRPO:
            advantages_PG = centred_PG / rewards_PG.std(-1, correction=0, keepdim=True)
        case Advantage.DR_GRPO:
            advantages_PG = centred_PG
        case Advantage.RLOO:
            others_PG = rewards_PG.sum(-1, keepdim=True) - rewards_PG
            advantages_PG = rewards_PG - others_PG / (rewards_PG.shape[-1] - 1)
    silent_P1 = silent_groups(rewards_PG)[:, None]
    return torch.where(silent_P1, 0.0, advantages_PG).float()


def silent_groups(rewards_PG: Tensor) -> Tensor:
    """Groups whose rewards are all equal (and so teach nothing), bool, shape [P]."""
    return rewards_PG.amax(-1) == rewards_PG.amin(-1)
