"""Reading what an engine says of every position: which token stands where, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model.sampling.stored_size import stored_bytes
from model.sampling.top_k import TopK, read_top_k, within_vocabulary


def said(**log_probs: float) -> dict[str, dict[str, Any]]:
    """`_7=-1.0` is token 7."""
    return {name[1:]: {"logprob": value, "decoded_token": "?"} for name, value in log_probs.items()}


def test_the_likeliest_come_first_and_the_context_is_left_out() -> None:
    answers = [None, said(_5=-0.1), said(_9=-3.0, _7=-0.5, _8=-1.0), said(_2=-0.2, _3=-2.0)]
    top_k = read_top_k(answers, [4, 5, 7, 2], first=2, k=2)
    assert top_k.ids_TK.tolist() == [[7, 8], [2, 3]]
    assert top_k.log_probs_TK.tolist() == [[-0.5, -1.0], np.float32([-0.2, -2.0]).tolist()]


def test_the_own_token_that_vllm_adds_is_not_one_of_the_k() -> None:
    top_k = read_top_k([None, said(_9=-8.0, _7=-0.5, _8=-1.0)], [4, 9], first=1, k=2)
    assert top_k.ids_TK.tolist() == [[7, 8]]


def test_a_small_vocabulary_leaves_places_without_a_token() -> None:
    top_k = read_top_k([None, said(_1=-0.5)], [0, 1], first=1, k=3)
    assert top_k.ids_TK.tolist() == [[1, 0, 0]]
    assert top_k.log_probs_TK.tolist() == [[-0.5, -np.inf, -np.inf]]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([None, said(_5=-0.1)], "2 positions are scored, but 3 tokens were sent"),
        ([None, said(_6=-0.1), said(_7=-0.1)], "position 1 does not speak of its token 5"),  # shifted by one
        ([None, said(_5=-0.1), None], "position 2 does not speak of its token 6"),
    ],
)
def test_answers_about_other_tokens_are_an_error(answers: list[Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_top_k(answers, [4, 5, 6], first=1, k=1)


def test_ids_that_no_token_has_make_room_at_the_end() -> None:
    log_probs_TK = np.float32([[-0.5, -1.0, -2.0]])
    cut = within_vocabulary(TopK(np.int32([[3, 46, 44]]), log_probs_TK), 45)
    assert cut.ids_TK.tolist() == [[3, 44, 0]]
    assert cut.log_probs_TK.tolist() == [[-0.5, -2.0, -np.inf]]


def test_mass_is_the_mean_over_positions() -> None:
    halves = TopK(np.int32([[1, 2], [1, 2]]), np.log(np.float32([[0.5, 0.25], [0.75, 0.25]])))
    assert halves.mass == pytest.approx((0.75 + 1.0) / 2)


def test_a_million_tokens_of_64_are_384_megabytes() -> None:
    assert stored_bytes(1e6, 64) == 384e6
