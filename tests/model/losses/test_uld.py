from __future__ import annotations

import math

import pytest
import torch

from model.losses.head import Part
from model.losses.kl import Divergence, divergence, divergence_part
from model.losses.uld import uld_part

ONE, ROW_0 = torch.ones(1), torch.tensor([0])


def part_of(student: list[float], teacher: list[float], uld_weight: float = 1.0) -> Part:
    return uld_part(
        torch.tensor([student]).log(), torch.tensor([teacher]).log(), ROW_0, ONE, ROW_0, uld_weight=uld_weight
    )


def test_two_against_three_tokens() -> None:
    """q = (¾, ¼), p = (¼, ½, ¼): |½ − ¾| + |¼ − ¼| + |¼ − 0|; s = (1, 0), so λ q (s − Σqs) = 1.5·(3/16, −3/16)."""
    part = part_of([0.75, 0.25], [0.25, 0.5, 0.25], uld_weight=1.5)
    assert part.sums["uld"].item() == pytest.approx(0.5)
    assert part.loss.item() == pytest.approx(-math.log(0.75) + 1.5 * 0.5)
    assert part.gradient_CV[0].tolist() == pytest.approx([-0.25 + 1.5 * 3 / 16, 0.25 - 1.5 * 3 / 16], abs=1e-6)


def test_three_against_two_tokens() -> None:
    """q = (½, ¼, ¼), p = (½, ½): 0 + |¼ − ½| + ¼."""
    assert part_of([0.5, 0.25, 0.25], [0.5, 0.5]).sums["uld"].item() == pytest.approx(0.5)


def test_it_sees_how_sure_the_teacher_is_and_not_of_what() -> None:
    part = part_of([0.75, 0.25], [0.25, 0.75])
    assert part.sums["uld"].item() == pytest.approx(0.0, abs=1e-6)
    assert part.loss.item() == pytest.approx(-math.log(0.75))


def test_a_token_without_a_partner_has_cross_entropy_alone() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    part = uld_part(torch.tensor([[0.75, 0.25]]).log(), torch.zeros(0, 3), none, ONE, ROW_0, uld_weight=1.5)
    assert part.loss.item() == pytest.approx(-math.log(0.75))
    assert part.gradient_CV[0].tolist() == pytest.approx([-0.25, 0.25])
    assert (part.sums["uld"].item(), part.sums["aligned_share"].item()) == (0.0, 0.0)


def test_distances_over_one_vocabulary_refuse_it() -> None:
    logits_NV = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="sorted probabilities"):
        divergence(logits_NV, logits_NV, Divergence.ULD)
    with pytest.raises(ValueError, match="sorted probabilities"):
        divergence_part(logits_NV, logits_NV, ONE, Divergence.ULD, ROW_0)
