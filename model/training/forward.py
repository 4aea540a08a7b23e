"""The two halves of a model, run apart: the trunk on all tokens, the vocabulary head on completion tokens only.

The head is run on `HEAD_ROWS` tokens at a time and back-propagated at once, so that no [N, V] table outlives its
chunk: every loss here is a plain sum over tokens, and the sum's gradient is the chunks' gradients together.

Axes: B rows, T positions, N completion tokens of all rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import ModelFolderError
from model.losses.log_probs import token_log_probs
from model.training.data import TokenBatch, Tokenizer
from model.training.job import JobError, Precision

HEAD_ROWS = 1024  # tokens per head chunk: 0.2 GB of float32 logits at V = 49,152
Model = Any  # transformers' classes share no useful static type

# (logits_NV of some rows, those rows) -> (their part of the loss, their sums of per-token metrics)
TokenLoss = Callable[[Tensor, slice], tuple[Tensor, Mapping[str, Tensor]]]


def load_model(folder: Path, precision: Precision, device: torch.device) -> tuple[Model, Tokenizer]:
    """Model and tokenizer of a folder. Dropout stays off: the policy that samples is the one that is scored."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # In bfloat16 on a CPU, rows of 56 tokens train 1.35 times as fast with eager attention as with torch's kernel.
    attention = "eager" if device.type == "cpu" else "sdpa"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, precision), attn_implementation=attention, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelFolderError(f"{folder} does not hold a model with its tokenizer: {error}") from error
    for scaling in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, scaling, None) not in (None, 1, 1.0):
            raise JobError(f"{folder} scales its logits after the head ({scaling}), which training leaves out")
    return model.to(device).eval(), tokenizer


def completion_hidden(model: Model, batch: TokenBatch) -> Tensor:
    """The trunk's last hidden state where completion tokens are predicted, [N, H]."""
    # use_cache=False also keeps transformers from guessing packed documents out of the positions.
    hidden_BTH: Tensor = model.base_model(input_ids=batch.tokens_BT, use_cache=False).last_hidden_state
    return hidden_BTH.flatten(0, 1)[batch.positions_N]


def backward(model: Model, batch: TokenBatch, loss: TokenLoss) -> tuple[float, dict[str, float]]:
    """Adds a batch's gradient to the model's; returns its loss and its sums of per-token metrics."""
    head = model.get_output_embeddings()
    hidden_NH = completion_hidden(model, batch)
    leaf_NH = hidden_NH.detach().requires_grad_()
    total, sums = 0.0, dict[str, float]()
    for rows in chunks(batch.token_count):
        part, metrics = loss(head(leaf_NH[rows]), rows)
        part.backward()  # type: ignore[no-untyped-call]
        total += part.item()
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    hidden_NH.backward(leaf_NH.grad)  # type: ignore[no-untyped-call]
    return total, sums


@torch.no_grad()
def completion_log_probs(model: Model, batch: TokenBatch, temperature: float) -> Tensor:
    """log π of every completion token, nats, float32, [N], without gradient."""
    head = model.get_output_embeddings()
    hidden_NH = completion_hidden(model, batch)
    parts = [
        token_log_probs(head(hidden_NH[rows]), batch.targets_N[rows], temperature) for rows in chunks(len(hidden_NH))
    ]
    return torch.cat(parts)


def chunks(count: int) -> Iterator[slice]:
    """The head's chunks of `count` tokens."""
    return (slice(start, start + HEAD_ROWS) for start in range(0, count, HEAD_ROWS))
