"""What a reward model's scores mean, and batches that can be worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.records import Status
from model.rewards.reward_model import (
    Scoring,
    judge_score,
    length_batches,
    plain,
    reward_model_version,
    scoring_version,
    unused_token,
)
from model.rewards.settings import RewardModelSettings


@pytest.mark.parametrize(
    ("scoring", "verdict", "reason"),
    [
        (Scoring(-0.5, "", 9, 1.0), Status.PASS, "at_least_threshold"),
        (Scoring(-0.6, "", 9, 1.0), Status.FAIL, "below_threshold"),
        (Scoring(None, "too_long", 9, 0.0), Status.UNSCORABLE, "too_long"),
        (Scoring(None, "out_of_memory", 9, 1.0), Status.ERROR, "out_of_memory"),
        (Scoring(float("nan"), "", 9, 1.0), Status.ERROR, "not_finite"),
    ],
)
def test_scores_against_a_threshold(scoring: Scoring, verdict: Status, reason: str) -> None:
    judgement = judge_score(scoring, threshold=-0.5)
    assert (judgement.verdict, judgement.reason, judgement.detail) == (verdict, reason, "9 tokens")
    assert (judgement.score is None) == (verdict not in (Status.PASS, Status.FAIL))


def test_neighbours_in_length_share_a_batch() -> None:
    assert list(length_batches([1, 9, 3, 2, 8], 18)) == [[1, 4], [2, 3, 0]]  # 2 x 9; 3 x 3
    assert list(length_batches([50, 1], 10)) == [[0], [1]]  # one that is too big goes alone
    assert list(length_batches([], 10)) == []


@given(st.lists(st.integers(1, 300)), st.integers(1, 1000))
def test_batches_hold_every_place_once_and_never_too_many_tokens(lengths: list[int], most: int) -> None:
    batches = list(length_batches(lengths, most))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= most


def test_the_pad_token_is_one_that_no_row_holds() -> None:
    assert unused_token([[0, 1], [3, 1]]) == 2
    assert unused_token([[0, 1, 2]]) == 3
    assert unused_token([[5]]) == 0


def test_a_sample_holds_no_special_token() -> None:
    specials = ["<|im_end|>", "<|im_start|>", "</s>"]
    assert plain("7<|im_end|>\n<|im_start|>user </s>", specials) == "7< |im_end|>\n< |im_start|>user < /s>"
    assert plain("a < b \ud800", specials) == "a < b \ufffd"


def test_another_threshold_is_another_version_with_the_same_scores() -> None:
    one, two = RewardModelSettings(model="m"), RewardModelSettings(model="m", threshold=1.5)
    assert scoring_version(one, "r") == scoring_version(two, "r")
    assert reward_model_version(one, "r") != reward_model_version(two, "r")
    assert reward_model_version(one, "r").startswith(scoring_version(one, "r") + ".")
    for other in (RewardModelSettings(model="n"), RewardModelSettings(model="m", max_length=9)):
        assert scoring_version(other, "r") != scoring_version(one, "r")
    assert scoring_version(one, "other") != scoring_version(one, "r")


def test_settings_out_of_bounds_are_refused() -> None:
    for wrong in ({"device": "gpu"}, {"dtype": "int8"}, {"max_length": 0}, {"served_name": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RewardModelSettings(**wrong)  # type: ignore[arg-type]
