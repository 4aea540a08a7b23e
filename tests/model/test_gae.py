from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.gae import explained_variance, generalised_advantages, token_rewards, whitened

REWARDS_N, VALUES_N = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75])
THREE = torch.tensor([3])


def advantages(discount: float, gae_lambda: float) -> list[float]:
    found: list[float] = generalised_advantages(
        REWARDS_N, VALUES_N, THREE, discount=discount, gae_lambda=gae_lambda
    ).tolist()
    return found


def test_three_tokens_by_hand() -> None:
    """δ = (0 + ¼ − ½, 0 + ¾ − ¼, 1 − ¾); A_3 = ¼, A_2 = ½ + ½·¼, A_1 = −¼ + ½·⅝."""
    assert advantages(discount=1.0, gae_lambda=0.5) == [0.0625, 0.625, 0.25]


def test_lambda_one_is_what_came_less_what_was_expected() -> None:
    assert advantages(discount=1.0, gae_lambda=1.0) == [1 - 0.5, 1 - 0.25, 1 - 0.75]
    assert advantages(discount=0.5, gae_lambda=1.0) == [0.25 - 0.5, 0.5 - 0.25, 1 - 0.75]


def test_lambda_zero_is_one_tokens_surprise() -> None:
    assert advantages(discount=0.5, gae_lambda=0.0) == [0.125 - 0.5, 0.375 - 0.25, 1 - 0.75]


def test_completions_do_not_see_one_another() -> None:
    """Three, one and four tokens at once, and one after another."""
    generator, lengths_B = torch.Generator().manual_seed(0), torch.tensor([3, 1, 4])
    rewards_N, values_N = (torch.randn(8, generator=generator, dtype=torch.float64) for _ in range(2))

    def of(rewards_N: Tensor, values_N: Tensor, lengths_B: Tensor) -> Tensor:
        return generalised_advantages(rewards_N, values_N, lengths_B, discount=0.9, gae_lambda=0.8)

    apart = zip(rewards_N.split([3, 1, 4]), values_N.split([3, 1, 4]), lengths_B[:, None], strict=True)
    expected_N = torch.cat([of(*each) for each in apart])
    torch.testing.assert_close(of(rewards_N, values_N, lengths_B), expected_N, atol=1e-15, rtol=1e-14)


def test_a_completions_reward_is_its_last_tokens() -> None:
    penalties_N = torch.tensor([0.5, 0.25, 0.125])
    found_N = token_rewards(torch.tensor([1.0, 2.0]), penalties_N, torch.tensor([2, 1]))
    assert found_N.tolist() == [-0.5, 1 - 0.25, 2 - 0.125]


def test_whitened_two_and_four() -> None:
    for some, expected in [([2.0, 4.0], [-1.0, 1.0]), ([1.2, 1.2, 1.2], [0.0] * 3), ([0.7], [0.0])]:
        assert whitened(torch.tensor(some), torch.tensor(some)).tolist() == expected
    assert whitened(torch.tensor([4.0]), torch.tensor([2.0, 4.0])).tolist() == [1.0]  # of a process with half of them


def test_explained_variance() -> None:
    returns_N = torch.tensor([0.0, 1.0, 2.0])
    assert explained_variance(returns_N + 5, returns_N) == 1.0
    assert explained_variance(torch.ones(3), returns_N) == 0.0
    assert explained_variance(2 - returns_N, returns_N) == pytest.approx(1 - 4)
    assert not math.isnan(explained_variance(returns_N, torch.ones(3)))
