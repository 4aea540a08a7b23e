"""Advantages of the G completions of each problem over one another: no critic.

    grpo      A_i = (r_i − mean r) / std r     (DeepSeek-R1; the std divides by G, not by G − 1)
    dr_grpo   A_i =  r_i − mean r              (Dr. GRPO, arXiv:2503.20783: no bias to easy or hard problems)
    rloo      A_i =  r_i − mean of the others  (leave-one-out, arXiv:2402.14740: G/(G − 1) times dr_grpo's)
    rft       A_i =  1 where r_i ≥ 1, else 0   (online RFT, DeepSeekMath, arXiv:2402.03300, eq. 11: what is right)

The first three compare: a group of equal rewards says nothing and gets exactly 0. That case is told apart by max = min,
so no epsilon is added to the std; peers add 1e-4 (TRL) or 1e-6 (verl), and divide by G − 1: 1.6198 and 1.6202 where
this gives 1.7321. rft compares nothing: a group says nothing where none is right, and a right answer is worth 1
whatever else its reward holds (`model/rewards/reward.py`). A rollout that could not be judged, `nan`, has the
advantage 0, and its group's mean stands for it where others are compared.

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
    RFT = "rft"


RIGHT = 1.0  # least reward of a right answer


def group_advantages(rewards_PG: Tensor, kind: Advantage) -> Tensor:
    """Advantage of every completion within its group, float32, shape [P, G]; each row sums to 0, but for `rft`."""
    judged_PG, silent_P = ~rewards_PG.isnan(), silent_groups(rewards_PG, kind)
    rewards_PG = fill_unjudged(rewards_PG.double())
    centred_PG = rewards_PG - rewards_PG.mean(-1, keepdim=True)
    match kind:
        case Advantage.GRPO:
            advantages_PG = centred_PG / rewards_PG.std(-1, correction=0, keepdim=True)
        case Advantage.DR_GRPO:
            advantages_PG = centred_PG
        case Advantage.RLOO:
            others_PG = rewards_PG.sum(-1, keepdim=True) - rewards_PG
            advantages_PG = rewards_PG - others_PG / (rewards_PG.shape[-1] - 1)
        case Advantage.RFT:
            advantages_PG = (rewards_PG >= RIGHT).double()
    return torch.where(judged_PG & ~silent_P[:, None], advantages_PG, 0.0).float()


def silent_groups(rewards_PG: Tensor, kind: Advantage) -> Tensor:
    """Groups that teach nothing, bool, shape [P]: all rewards are equal, or none is that of a right answer (`rft`)."""
    if kind is Advantage.RFT:
        return ~(rewards_PG >= RIGHT).any(-1)
    unjudged_PG = rewards_PG.isnan()
    highest_P = rewards_PG.masked_fill(unjudged_PG, -torch.inf).amax(-1)
    return highest_P <= rewards_PG.masked_fill(unjudged_PG, torch.inf).amin(-1)


def fill_unjudged(rewards_PG: Tensor) -> Tensor:
    """A rollout that could not be judged, `nan`, gets its group's mean; a group of such gets 0."""
    means_P1 = rewards_PG.nanmean(-1, keepdim=True).nan_to_num(0.0)
    return torch.where(rewards_PG.isnan(), means_P1, rewards_PG)
