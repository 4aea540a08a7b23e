"""The split forward pass against transformers' own, and the promise that cuts do not matter."""

from __future__ import annotations

import pytest
import torch

from model.losses import head
from model.losses.normalise import Normalise, token_weights
from model.losses.sft import sft_loss
from model.training.data import Row, TokenBatch, collate
from model.training.forward import backward, completion_log_probs
from model.training.sft import sft_kernel
from tests.model.training.tiny import head_of, make_model, plain_logits

CPU = torch.device("cpu")
ROWS = [Row([3, 4, 5], [6, 7]), Row([8], [9, 10, 11, 0]), Row([12, 13], [14])]


def batch_of(rows: list[Row], normalise: Normalise = Normalise.TOKEN, chosen: slice = slice(None)) -> TokenBatch:
    lengths_B = torch.tensor([len(row.completion) for row in rows])
    return collate(rows[chosen], token_weights(lengths_B, normalise, 8)[chosen].tolist(), CPU)


def test_log_probs_are_those_of_each_row_run_alone() -> None:
    model = make_model()
    expected = []
    for row in ROWS:
        log_p_TV = model(input_ids=torch.tensor([row.context + row.completion])).logits[0].log_softmax(-1)
        expected += [log_p_TV[len(row.context) - 1 + t, token].item() for t, token in enumerate(row.completion)]
    assert completion_log_probs(model, batch_of(ROWS), 1.0).tolist() == pytest.approx(expected, abs=1e-5)


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("normalise", list(Normalise))
def test_micro_batches_change_neither_loss_nor_gradient(normalise: Normalise) -> None:
    whole, parts = make_model(), make_model()
    batch = batch_of(ROWS, normalise)
    loss, _ = backward(whole, batch, sft_kernel(batch), head_of(whole))
    pieces = [batch_of(ROWS, normalise, slice(b, b + 1)) for b in range(3)]
    place = head_of(parts)
    total = sum(backward(parts, piece, sft_kernel(piece), place)[0] for piece in pieces)
    assert total == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(gradient(parts), gradient(whole), atol=1e-6, rtol=1e-4)


def test_head_chunks_give_the_plain_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CPU_ROWS", 2)
    chunked, plain = make_model(), make_model()
    batch = batch_of(ROWS)
    loss, _ = backward(chunked, batch, sft_kernel(batch), head_of(chunked))
    expected = sft_loss(plain_logits(plain, batch), batch.targets_N, batch.weights_N)
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(gradient(chunked), gradient(plain), atol=1e-6, rtol=1e-4)
