from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from model.training.job import Precision, Schedule, SFTJob
from model.training.optimizer import MasterAdamW, all_finite, learning_rate


def job(**settings: object) -> SFTJob:
    return SFTJob(init=Path(), out=Path(), examples=Path(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [(Schedule.COSINE, 0.55, 0.1), (Schedule.LINEAR, 0.55, 0.1), (Schedule.CONSTANT, 1, 1)],
)
def test_warm_up_then_down_to_a_tenth(schedule: Schedule, middle: float, last: float) -> None:
    settings = job(learning_rate=1.0, warmup_share=0.2, schedule=schedule, min_lr_share=0.1)
    rates = [learning_rate(settings, step, 10) for step in range(1, 11)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[5] == pytest.approx(middle)
    assert rates[9] == pytest.approx(last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("value", "finite"), [(3e38, True), (-3e38, True), (torch.nan, False), (-torch.inf, False)])
def test_one_that_is_no_number_is_found_among_many(dtype: torch.dtype, value: float, finite: bool) -> None:
    among = torch.ones(1000, dtype=dtype)
    among[777] = value
    assert all_finite([torch.zeros(()), torch.empty(0), among]) is finite


def test_updates_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    """One ulp of bfloat16 at 1 is 1/128; twenty updates of 1e-3 each are more than two of them."""
    layer = torch.nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = MasterAdamW(layer, weight_decay=0.0)
    for _ in range(20):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.collect()
        optimizer.step(1e-3, grad_clip=10.0)
    assert optimizer.masters[0].item() == pytest.approx(0.98, abs=1e-4)
    assert layer.weight.item() == pytest.approx(0.98, abs=1 / 256)


def test_micro_batch_gradients_are_summed_in_float32() -> None:
    layer = torch.nn.Linear(1, 1, bias=False).bfloat16()
    optimizer = MasterAdamW(layer, weight_decay=0.0)
    for gradient in (256.0, 1.0):  # 257 does not exist in bfloat16
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.collect()
    assert optimizer.step(0.0, grad_clip=1e9) == 257.0


def test_the_gradient_is_clipped_by_its_global_norm() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    optimizer = MasterAdamW(layer, weight_decay=0.0)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    optimizer.collect()
    assert optimizer.step(0.0, grad_clip=1.0) == 5.0


def trained(gradients: Sequence[float], moments: Precision, *, beside: bool = False) -> MasterAdamW:
    """One weight after these gradients; `beside` another one that never has any."""
    layer = torch.nn.Linear(1, 1, bias=beside)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = MasterAdamW(layer, weight_decay=0.1, moments=moments)
    for gradient in gradients:
        layer.weight.grad = torch.full((1, 1), gradient)
        optimizer.step(1e-3, grad_clip=1e9)
    return optimizer


def test_moments_in_bfloat16_make_the_same_first_step_and_nearly_the_same_later_ones() -> None:
    """They are rounded after an update, and the first one comes from zeros."""
    draw = random.Random(0)
    gradients = [1 + draw.gauss(0, 0.5) for _ in range(300)]
    for count, tolerance in ((1, 0.0), (300, 0.02)):
        exact = trained(gradients[:count], Precision.FLOAT32).masters[0].item()
        narrow = trained(gradients[:count], Precision.BFLOAT16).masters[0].item()
        assert 1 - narrow == pytest.approx(1 - exact, rel=tolerance, abs=0.0)


@pytest.mark.parametrize("gradient", [0.013, 1.0, 700.0])
def test_a_second_moment_in_bfloat16_stays_within_eight_percent(gradient: float) -> None:
    """Rises from below and falls from ten times the square: it stands still where a change is under half an ulp."""
    for gradients in ([gradient] * 200, [gradient * 3] + [gradient] * 200):
        optimizer = trained(gradients, Precision.BFLOAT16)
        second = optimizer.state_dict()["exp_avg_sq.weight"]
        assert second.dtype == torch.bfloat16
        assert second.item() == pytest.approx(gradient**2, rel=0.08)


def test_moments_in_bfloat16_go_through_a_checkpoint_and_of_weights_without_gradients_too() -> None:
    optimizer = trained([1.0, 2.0], Precision.BFLOAT16, beside=True)
    state = optimizer.state_dict()
    assert {name: tensor.dtype for name, tensor in state.items() if "exp" in name} == dict.fromkeys(
        ("exp_avg.weight", "exp_avg_sq.weight", "exp_avg.bias", "exp_avg_sq.bias"), torch.bfloat16
    )
    assert state["step.weight"].item() == 2
    assert state["step.bias"].item() == 0
    again = trained([], Precision.BFLOAT16, beside=True)
    for name, tensor in again.state_dict().items():
        tensor.copy_(state[name])
    for each in (optimizer, again):
        each.masters[0].grad = torch.full((1, 1), 3.0)
        each.step(1e-3, grad_clip=1e9)
    assert torch.equal(optimizer.masters[0], again.masters[0])


def test_weight_decay_spares_vectors() -> None:
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1.0)
    optimizer = MasterAdamW(layer, weight_decay=0.5)
    layer.weight.grad, layer.bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.collect()
    optimizer.step(0.1, grad_clip=1.0)
    assert (layer.weight.item(), layer.bias.item()) == pytest.approx((0.95, 1.0))
