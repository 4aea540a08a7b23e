from __future__ import annotations

import math

import pytest
import torch

from model.advantages import Advantage, fill_unjudged, group_advantages, silent_groups

COMPARING = [kind for kind in Advantage if kind is not Advantage.RFT]


def test_one_winner_in_four() -> None:
    advantages = group_advantages(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), Advantage.GRPO)[0].tolist()
    assert advantages == pytest.approx([-1 / math.sqrt(3), math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3)])


def test_the_std_divides_by_the_group_size() -> None:
    rewards_PG = torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 0]])
    assert group_advantages(rewards_PG, Advantage.GRPO)[0, 0].item() == pytest.approx(1.7321, abs=5e-5)


def test_dr_grpo_only_centres() -> None:
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]])
    assert group_advantages(rewards_PG, Advantage.DR_GRPO).tolist() == [
        [0.75, -0.25, -0.25, -0.25],
        [1.0, 1.0, -1.0, -1.0],
    ]


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [4.0, 2.0, 0.0, 0.0]])
    assert group_advantages(rewards_PG, Advantage.RLOO).tolist() == [
        [1.0, pytest.approx(-1 / 3), pytest.approx(-1 / 3), pytest.approx(-1 / 3)],
        [pytest.approx(4 - 2 / 3), pytest.approx(2 - 4 / 3), -2.0, -2.0],
    ]


def test_a_group_of_one_has_no_others_and_no_advantage() -> None:
    assert group_advantages(torch.tensor([[1.0]]), Advantage.RLOO).tolist() == [[0.0]]


@pytest.mark.parametrize("kind", COMPARING)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1.2])
def test_a_silent_group_is_exactly_zero(kind: Advantage, reward: float) -> None:
    """0.1 and 1.2 have rounded means: (r − mean) / (std + 1e-6) would not be 0."""
    rewards_PG = torch.full((2, 7), reward)
    assert group_advantages(rewards_PG, kind).tolist() == [[0.0] * 7] * 2
    assert silent_groups(rewards_PG, kind).tolist() == [True, True]


def test_groups_do_not_see_one_another() -> None:
    pair_PG = torch.tensor([[1.0, 0.0], [5.0, 1.0]])
    assert group_advantages(pair_PG, Advantage.GRPO).tolist() == [[1.0, -1.0], [1.0, -1.0]]


@pytest.mark.parametrize("kind", COMPARING)
@pytest.mark.parametrize("reward", [0.1, 0.2, 1.2])
@pytest.mark.parametrize("group", range(2, 17))
def test_a_group_of_equal_rewards_and_an_unjudged_one_says_nothing(kind: Advantage, reward: float, group: int) -> None:
    """Their mean, which stands for the unjudged one, may be rounded."""
    rewards_PG = torch.tensor([[reward] * group + [math.nan]])
    assert silent_groups(rewards_PG, kind).tolist() == [True]
    assert group_advantages(rewards_PG, kind).tolist() == [[0.0] * (group + 1)]


def test_online_rft_takes_what_is_right_and_nothing_else() -> None:
    """Accuracy 1 or 0, 0.2 for the form, and a penalty for length: only what was paid 1 and more is right."""
    rewards_PG = torch.tensor([[1.2, 1.0, 0.2, 0.9], [0.2, 0.0, -0.5, math.nan], [1.2, 1.2, 1.2, math.nan]])
    assert group_advantages(rewards_PG, Advantage.RFT).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert silent_groups(rewards_PG, Advantage.RFT).tolist() == [False, True, False]


@pytest.mark.parametrize("kind", COMPARING)
def test_an_unjudged_rollout_has_no_advantage_and_others_its_groups_mean(kind: Advantage) -> None:
    rewards_PG = torch.tensor([[1.0, math.nan, 0.0], [math.nan, math.nan, math.nan], [0.1, 0.1, math.nan]])
    assert fill_unjudged(rewards_PG)[:2].tolist() == [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    first, *others = group_advantages(rewards_PG, kind).tolist()
    assert first[1] == 0.0
    assert first[0] == -first[2] > 0
    assert others == [[0.0] * 3] * 2
    assert silent_groups(rewards_PG, kind).tolist() == [False, True, True]
