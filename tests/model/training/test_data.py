from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.records import TrainingExample
from model.training.data import Batches, Row, collate, completion_tokens, epoch_batches, micro_batches
from model.training.job import JobError
from tests.model.training.tiny import make_tokenizer

CPU = torch.device("cpu")


def example(completion: str) -> TrainingExample:
    return TrainingExample("sample-1", "problem-1", "q? ", "q? ", completion, None)


def test_what_is_learned_is_the_completion_after_the_prefill_and_the_end_of_turn() -> None:
    tokenizer = make_tokenizer()
    (learned,) = completion_tokens(tokenizer, [example("a: 7.")], "a: ")
    assert tokenizer.decode(learned[:-1]) == "7."
    assert learned[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_a_completion_without_the_prefill_is_refused_by_name() -> None:
    with pytest.raises(JobError, match="sample-1 does not start"):
        completion_tokens(make_tokenizer(), [example("7.")], "a: ")


def test_collate_by_hand() -> None:
    batch = collate([Row([5, 6], [7, 8]), Row([9], [4])], [0.5, 0.25], CPU)
    assert batch.tokens_T.tolist() == [5, 6, 7, 9]
    assert batch.documents.lengths == (3, 1)
    assert batch.documents.positions.tolist() == [0, 1, 2, 0]
    assert batch.positions_N.tolist() == [1, 2, 3]  # 6 predicts 7, 7 predicts 8, 9 predicts 4
    assert batch.targets_N.tolist() == [7, 8, 4]
    assert batch.weights_N.tolist() == [0.5, 0.5, 0.25]


def test_an_epoch_sees_every_row_once_in_even_batches() -> None:
    lengths = [3, 9, 4, 7, 2, 8, 6, 5]  # 44 tokens
    batches = epoch_batches(lengths, 15, seed=1, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert len(batches) == 3
    assert all(7 <= sum(lengths[i] for i in batch) <= 23 for batch in batches)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [5] * 40

    def drawn(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in epoch_batches(lengths, 50, seed, epoch)]

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0) != drawn(1, 1)
    assert drawn(1, 0) != drawn(2, 0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 3), st.none() | st.integers(1, 60))
def test_steps_are_the_epochs_batches_one_after_another(lengths: list[int], epochs: int, most: int | None) -> None:
    every = [rows.tolist() for epoch in range(epochs) for rows in epoch_batches(lengths, 45, 7, epoch)][:most]
    batches = Batches(lengths, 45, 7, epochs, most)
    assert [batches[step] for step in range(len(batches))] == every
    assert [batches[step] for step in reversed(range(len(batches)))] == every[::-1]
    assert batches.most_tokens == max(sum(lengths[i] for i in rows) for rows in every)


def test_micro_batches_by_hand() -> None:
    assert micro_batches([2, 10, 3, 9, 2], 20) == [[1, 0, 4], [3, 2]]  # 14 and 12, where best fit has 19 and 7
    assert micro_batches([6, 5, 4, 3], 10) == [[0, 3], [1, 2]]
    assert micro_batches([6, 6, 4, 4, 4], 12) == [[0, 1], [2, 3, 4]]  # evened out, one would hold 14: best fit it is
    assert micro_batches([50], 20) == [[0]]  # a row longer than the budget runs alone
    assert micro_batches([50, 1], 20) == [[0], [1]]
    assert micro_batches([], 20) == []


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 50))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    packs = micro_batches(lengths, budget)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert all(len(pack) == 1 or sum(lengths[i] for i in pack) <= budget for pack in packs)
    # Of two packs that fit into one, best fit would have made one.
    sums = sorted(sum(lengths[i] for i in pack) for pack in packs)
    assert len(sums) < 2 or sums[0] + sums[1] > budget
