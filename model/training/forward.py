"""The two halves of a model, run apart: the trunk on all tokens, the vocabulary head on completion tokens only.

Head and loss go together chunk by chunk (`model/losses/head.py`), and the trunk is back-propagated once.

Axes: T tokens of all rows, N completion tokens of all rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from model.losses.head import Kernel, chunks, head_gradients
from model.losses.log_probs import token_log_probs
from model.training.data import TokenBatch
from model.training.optimizer import Head
from model.training.parallel import cut_again, gathered

SCORED_ROWS = 1024  # tokens whose log-probabilities are read at once
Model = Any  # transformers' classes share no useful static type


def completion_hidden(model: Model, batch: TokenBatch) -> Tensor:
    """The trunk's last hidden state where completion tokens are predicted, [N, H]."""
    hidden_1TH: Tensor = model.base_model(
        input_ids=batch.tokens_T[None], use_cache=False, **batch.documents.forward_arguments()
    ).last_hidden_state
    if not torch.is_grad_enabled():
        cut_again(model.base_model)
    return hidden_1TH[0, batch.positions_N]


def backward(model: Model, batch: TokenBatch, kernel: Kernel, head: Head) -> tuple[float, dict[str, float]]:
    """Adds a batch's gradient to the model's, and the head's to `head.gradient_VH`.

    Returns the loss and its sums of per-token metrics. What a tied head gets as embedding is in its `grad`.
    """
    kernel.begin()
    hidden_NH = completion_hidden(model, batch)
    into_VH = head.gradient_VH
    found = head_gradients(hidden_NH.detach(), head.weight_VH, kernel, into_VH=into_VH, frozen=into_VH is None)
    hidden_NH.backward(found.hidden_NH)  # type: ignore[no-untyped-call]
    return found.loss, found.sums


def whole_head(model: Model, precision: torch.dtype) -> Tensor:
    """The weight of a model's vocabulary head, also where it is cut over processes, which then all ask; [V, H]."""
    return gathered(model.get_output_embeddings().weight, precision)


@torch.no_grad()
def completion_log_probs(model: Model, batch: TokenBatch, temperature: float) -> Tensor:
    """log π of every completion token, nats, float32, [N], without gradient."""
    hidden_NH = completion_hidden(model, batch)
    head_VH = whole_head(model, hidden_NH.dtype)
    parts = [
        token_log_probs(linear(hidden_NH[rows], head_VH), batch.targets_N[rows], temperature)
        for rows in chunks(len(hidden_NH), SCORED_ROWS)
    ]
    return torch.cat(parts) if parts else torch.empty(0, device=hidden_NH.device)
