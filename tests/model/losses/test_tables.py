"""No loss ever holds a [tokens × vocabulary] table: the largest tensor that is made, counted as torch makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.losses.grpo import grpo_terms
from model.losses.head import Kernel, Part, head_gradients, project
from model.losses.kl import Divergence
from model.losses.log_probs import log_prob_part
from model.losses.top_k import top_k_part
from model.losses.uld import uld_part
from model.training import forward
from model.training.distill import divergence_kernel
from model.training.sft import sft_kernel

N, H, V, U, K, ROWS = 600, 8, 500, 700, 16, 20  # U: another tokenizer's vocabulary; ROWS: tokens of a chunk
GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


HIDDEN_NH, WEIGHT_VH = random(N, H), random(V, H)
TEACHER_NH, TEACHER_VH, OTHER_UH = random(N, H), random(V, H), random(U, H)
WEIGHTS_N, TARGETS_N = torch.full((N,), 1 / N), torch.randint(V, (N,), generator=GENERATOR)
BATCH: Any = SimpleNamespace(targets_N=TARGETS_N, weights_N=WEIGHTS_N)  # what of a batch a loss reads
IDS_NK, STORED_NK = torch.arange(K).repeat(N, 1), random(N, 2 * K).log_softmax(-1)[:, :K]


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that an operation gave, autograd's own operations too."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.entries = max([self.entries, *(leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, Tensor))])
        return found


def _live(kind: Divergence, dtype: torch.dtype) -> Kernel:
    teacher_NH, teacher_VH = TEACHER_NH.to(dtype), TEACHER_VH.to(dtype)
    return divergence_kernel(BATCH, teacher_NH, teacher_VH, V, kind, beta=0.3, temperature=2.0, own_text=True)


def _stored(logits_CV: Tensor, rows: slice) -> Part:
    return top_k_part(logits_CV, IDS_NK[rows], STORED_NK[rows], WEIGHTS_N[rows])


def _two_vocabularies(logits_CV: Tensor, rows: slice) -> Part:
    teacher_CU = project(TEACHER_NH[rows], OTHER_UH, precise=True)
    paired_C = torch.arange(len(logits_CV))
    return uld_part(logits_CV, teacher_CU, paired_C, WEIGHTS_N[rows], TARGETS_N[rows], uld_weight=1.5)


def _policy(logits_CV: Tensor, rows: slice) -> Part:
    def loss(log_probs_C: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        old_C, ones_C = log_probs_C.detach() - 0.1, torch.ones_like(log_probs_C)
        terms = grpo_terms(log_probs_C, old_C, old_C, ones_C, clip_low=0.2, clip_high=0.2, kl_weight=0.1)
        return (WEIGHTS_N[rows] * terms.loss_N).sum(), {"kl": terms.kl_N.sum()}

    return log_prob_part(logits_CV, TARGETS_N[rows], loss, 0.7, entropy=True)


KERNELS: dict[str, Callable[[torch.dtype], Kernel]] = {
    "cross-entropy": lambda _: sft_kernel(BATCH),
    "live forward": lambda dtype: _live(Divergence.FORWARD, dtype),
    "live reverse": lambda dtype: _live(Divergence.REVERSE, dtype),
    "live jsd": lambda dtype: _live(Divergence.JSD, dtype),
    "stored top-k": lambda _: Kernel(_stored, precise=True, vocabulary=V),
    "two vocabularies": lambda _: Kernel(_two_vocabularies, precise=True, vocabulary=V),
    "policy with entropy": lambda _: Kernel(_policy),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KERNELS)
def test_value_and_gradients_take_a_chunk_of_the_table(name: str, dtype: torch.dtype) -> None:
    """20 of 600 rows; nor is the head's gradient larger here, or that of the hidden states, or what is stored."""
    assert max(V * H, N * H, N * K) <= ROWS * V < N * V / 20
    hidden_NH, weight_VH = HIDDEN_NH.to(dtype), WEIGHT_VH.to(dtype)
    with Largest() as largest:
        found = head_gradients(hidden_NH, weight_VH, KERNELS[name](dtype), rows=ROWS)
    assert found.hidden_NH.abs().sum() > 0
    assert ROWS * V <= largest.entries <= ROWS * (U if name == "two vocabularies" else V)


def test_scoring_takes_a_chunk_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities without gradient: π_old, the reference."""
    monkeypatch.setattr(forward, "SCORED_ROWS", ROWS)
    monkeypatch.setattr(forward, "completion_hidden", lambda *_: HIDDEN_NH)
    monkeypatch.setattr(forward, "whole_head", lambda *_: WEIGHT_VH)
    with Largest() as largest:
        assert len(forward.completion_log_probs(None, BATCH, 0.7)) == N
    assert largest.entries == ROWS * V


def _autograds(logits_NV: Tensor) -> Tensor:
    return cross_entropy(logits_NV, TARGETS_N)


def _recomputed(logits_NV: Tensor) -> Tensor:
    """A loss of chunks whose logits were made at once."""
    parts = zip(logits_NV.split(ROWS), TARGETS_N.split(ROWS), strict=True)
    return torch.stack([cross_entropy(some_CV, targets_C, reduction="sum") for some_CV, targets_C in parts]).sum()


@pytest.mark.parametrize("loss", [_autograds, _recomputed])
def test_a_loss_of_all_logits_is_seen(loss: Callable[[Tensor], Tensor]) -> None:
    hidden_NH, weight_VH = HIDDEN_NH.clone().requires_grad_(), WEIGHT_VH.clone().requires_grad_()
    with Largest() as largest:
        torch.autograd.grad(loss(hidden_NH @ weight_VH.T), (hidden_NH, weight_VH))
    assert largest.entries == N * V
