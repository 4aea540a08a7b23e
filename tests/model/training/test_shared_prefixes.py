"""Rows that share their openings: which tokens are run once, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.training import data, shared_prefixes
from model.training.data import Row, collate, row_packs
from model.training.forward import backward, completion_log_probs
from model.training.sft import sft_kernel
from model.training.shared_prefixes import LEAST_SAVED, Layout, Run, lay_out, shared_runs
from tests.model.training.tiny import head_of, make_model

CPU = torch.device("cpu")
SYSTEM, QUESTION, OTHER = list(range(3, 23)), list(range(23, 43)), [40, 3, 7]


def test_a_group_shares_its_question_and_all_share_what_comes_before_it() -> None:
    one, other = SYSTEM + QUESTION, SYSTEM + OTHER
    runs, ends = shared_runs([one, other, one, one], [50] * 4)
    assert runs == [Run(SYSTEM, -1), Run(QUESTION, 0)]
    assert ends == [(1, 40), (0, 20), (1, 40), (1, 40)]


@pytest.mark.parametrize("shared", [LEAST_SAVED - 1, LEAST_SAVED])
def test_what_saves_too_little_is_not_shared(shared: int) -> None:
    contexts = [[*range(shared), token] for token in (40, 41)]
    assert bool(shared_runs(contexts, [20, 20])[0]) == (shared == LEAST_SAVED)
    assert shared_runs(contexts[:1], [20]) == ([], [(-1, 0)])
    assert shared_runs([], []) == ([], [])


@pytest.mark.parametrize("length", [160, 161])
def test_a_short_opening_of_long_rows_is_not_shared(length: int) -> None:
    """20 tokens are a sixteenth of two rows of 160."""
    contexts = [[*SYSTEM, 40], [*SYSTEM, 41]]
    assert bool(shared_runs(contexts, [160, length])[0]) == (length == 160)


def test_a_context_may_be_the_opening_of_another() -> None:
    runs, ends = shared_runs([SYSTEM, SYSTEM + OTHER], [25, 28])
    assert runs == [Run(SYSTEM, -1)]
    assert ends == [(0, 20), (0, 20)]


tokens = st.lists(st.integers(0, 1), max_size=8)
# Contexts that fork here and there, some of them equal, none empty.
contexts_of_rows = st.lists(
    st.tuples(st.integers(0, 30), tokens, st.integers(0, 20), tokens).map(
        lambda parts: [2, *[3] * parts[0], *parts[1], *[4] * parts[2], *parts[3]]
    ),
    min_size=1,
    max_size=10,
)


def read(layout: Layout, row: int) -> list[int]:
    return [layout.tokens[place] for place in layout.places[row]]


@given(contexts_of_rows)
def test_every_row_is_found_whole_along_its_own_runs(contexts: list[list[int]]) -> None:
    rows = [[*context, *[9] * (i % 3)] for i, context in enumerate(contexts)]
    layout = lay_out(rows, contexts)
    assert [read(layout, row) for row in range(len(rows))] == rows
    assert all(run.parent < at and run.tokens for at, run in enumerate(layout.runs))
    assert len(layout.tokens) <= sum(map(len, rows))
    bounds, begin = [], 0
    for run in layout.runs:
        bounds.append(range(begin, begin + len(run.tokens)))
        begin += len(run.tokens)
    for places in layout.places:  # the runs that a row's places touch, each a child of the one before
        touched = [at for at, places_of in enumerate(bounds) if places_of[0] in places]
        assert [layout.runs[at].parent for at in touched] == [-1, *touched[:-1]]


def rows_of(*sizes: int) -> list[Row]:
    """Completions of these lengths to one question, and one to another."""
    one = [Row(SYSTEM + QUESTION, [5 + i, *range(6, 5 + size)]) for i, size in enumerate(sizes)]
    return [*one, Row(SYSTEM + OTHER, [11, 12])]


def test_shared_is_unshared_in_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weights = rows_of(1, 4, 9, 4), [0.5, 0.1, 0.2, 0.3, 1.0]
    shared = collate(rows, weights, CPU)
    monkeypatch.setattr(shared_prefixes, "LEAST_SAVED", 10**9)
    unshared = collate(rows, weights, CPU)
    assert (len(shared.tokens_T), len(unshared.tokens_T)) == (20 + 20 + 3 + 8 + 3 + 4, shared.row_tokens)
    assert torch.equal(shared.targets_N, unshared.targets_N)
    results = []
    for batch in (shared, unshared):
        model = make_model()
        loss, _ = backward(model, batch, sft_kernel(batch), head_of(model))
        results.append((loss, torch.cat([weight.grad.flatten() for weight in model.parameters()])))
    (one, one_gradient), (other, other_gradient) = results
    assert one == pytest.approx(other, rel=1e-6)
    torch.testing.assert_close(one_gradient, other_gradient, atol=1e-6, rtol=1e-4)
    scored = [completion_log_probs(make_model(), batch, 1.0) for batch in (shared, unshared)]
    torch.testing.assert_close(*scored, atol=1e-5, rtol=0)


def test_rows_of_one_context_stay_together_and_it_counts_once() -> None:
    rows = rows_of(10, 10, 10, 10)  # a context of 40 tokens with 40 learned ones, and a row of 25
    assert row_packs(rows, 105) == [[0, 1, 2, 3, 4]]
    assert row_packs(rows, 80) == [[0, 1, 2, 3], [4]]
    assert row_packs(rows, 61) == [[0, 2], [1, 3], [4]]
    assert row_packs(rows, 50) == [[0], [1], [2], [3], [4]]
    assert row_packs([], 50) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), max_size=30), st.integers(25, 90))
def test_packs_hold_every_row_once_and_run_no_more_than_the_budget(sizes: list[tuple[int, int]], budget: int) -> None:
    contexts = [[context] * (1 + 4 * context) for context in range(4)]  # what two or three share saves too little
    rows = [Row(contexts[context], [7] * length) for context, length in sizes]
    packs = row_packs(rows, budget)
    assert sorted(i for pack in packs for i in pack) == list(range(len(rows)))
    for pack in packs:
        assert collate([rows[i] for i in pack], [1.0] * len(pack), CPU).documents.total <= budget


def test_rows_of_different_contexts_are_packed_by_their_lengths() -> None:
    rows = [Row([i] * (3 + i % 4), [7] * (1 + i % 5)) for i in range(20)]
    assert row_packs(rows, 30) == data.micro_batches([row.length for row in rows], 30)
