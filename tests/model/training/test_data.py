from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.records import EXAMPLE_SCHEMA
from model.training.data import Row, collate, completion_row, epoch_batches, micro_batches, read_examples
from model.training.job import JobError
from tests.model.training.tiny import make_tokenizer

CPU = torch.device("cpu")


def test_a_row_learns_the_completion_after_the_prefill_and_the_end_of_turn() -> None:
    tokenizer = make_tokenizer()
    row = completion_row(tokenizer, "q? ", "a: 7.", "a: ", "sample-1")
    assert tokenizer.decode(row.context) == "q? a: "
    assert tokenizer.decode(row.completion[:-1]) == "7."
    assert row.completion[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_a_completion_without_the_prefill_is_refused_by_name() -> None:
    with pytest.raises(JobError, match="sample-1 does not start"):
        completion_row(make_tokenizer(), "q? ", "7.", "a: ", "sample-1")


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
    assert epoch_batches(lengths, 50, 1, 0) == epoch_batches(lengths, 50, 1, 0)
    assert epoch_batches(lengths, 50, 1, 0) != epoch_batches(lengths, 50, 1, 1)
    assert epoch_batches(lengths, 50, 1, 0) != epoch_batches(lengths, 50, 2, 0)


def test_micro_batches_are_the_best_fit_by_hand() -> None:
    assert micro_batches([2, 10, 3, 9, 2], 20) == [[1, 3], [2, 0, 4]]  # 10 + 9 leave 1: nothing fits
    assert micro_batches([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]  # 4 goes where it leaves 0, not beside 5
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


def test_files_that_hold_no_examples_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(EXAMPLE_SCHEMA.empty_table(), empty)
    with pytest.raises(JobError, match="holds no training examples"):
        read_examples(empty)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    with pytest.raises(JobError, match="does not hold training examples"):
        read_examples(other)
