from __future__ import annotations

import pytest
import torch

from model.losses.value import value_terms


@pytest.mark.parametrize(
    ("value", "loss", "gradient"),
    [
        (1.0, 0.5 * 0.8**2, 0.0),  # the return itself: too far, all the same
        (0.1, 0.5 * 0.9**2, -0.9),  # has moved towards the return, but not by 0.2 yet
        (0.5, 0.5 * 0.8**2, 0.0),  # has moved far enough: held at 0.2
        (-0.5, 0.5 * 1.5**2, -1.5),  # has moved away: the full pull back
    ],
)
def test_an_old_value_of_zero_and_a_return_of_one(value: float, loss: float, gradient: float) -> None:
    values_N = torch.tensor([value], requires_grad=True)
    terms = value_terms(values_N, torch.zeros(1), torch.ones(1), clip=0.2)
    (gradient_N,) = torch.autograd.grad(terms.loss_N.sum(), values_N)
    assert terms.loss_N.item() == pytest.approx(loss)
    assert gradient_N.item() == pytest.approx(gradient)
    assert terms.clipped_N.item() == (gradient == 0)


def test_without_a_clip_it_is_half_the_square() -> None:
    values_N = torch.tensor([0.5], requires_grad=True)
    terms = value_terms(values_N, torch.zeros(1), torch.ones(1), clip=0.0)
    (gradient_N,) = torch.autograd.grad(terms.loss_N.sum(), values_N)
    assert (terms.loss_N.item(), gradient_N.item(), terms.clipped_N.item()) == (0.125, -0.5, 0.0)
