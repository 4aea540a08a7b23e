"""The vocabulary head and a loss on it: hidden states × head weight → loss and gradients, never all logits at once.

A loss here is a plain sum over tokens, so its gradient is that of its chunks together: each chunk's logits are made,
turned into their own gradient in place, and multiplied back, all in the forward pass. That is three products with the
head per token, two where the head is frozen; memory is one chunk's logits (`rows` × V entries; three to four such
tables for a divergence) and the gradient of a head that is trained in float32, whatever N is.

Reductions are in float32 whatever the weight's type, the head's gradient is summed in float32, and a kernel that
compares distributions has logits that were not rounded to bfloat16 on their way (`precise`): rounding costs a
divergence's gradient an error of 1.5 %, and cross-entropy's next to nothing; not rounding costs a CPU half again the
time (benchmarks/head_losses.json). Which loss it is, a kernel says: it has a chunk's logits (which it may overwrite)
and gives value and gradient in closed form, as its loss's file derives them.

Axes: N tokens, C tokens of one chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

CPU_ROWS = 256  # tokens of a chunk: 50 MB of float32 logits at V = 49,152
GPU_TABLE = 5 * 2**27  # bytes of a chunk's logits where products want to be large: 2,048 bfloat16 rows at V = 152,000
_ALIGNED = 64  # entries, of which a row of a GPU's table has a multiple
_TILE = 2048  # entries of the vocabulary that are widened at once


@dataclass(frozen=True)
class Part:
    """What a chunk adds to a loss."""

    loss: Tensor  # scalar, float32, nats
    gradient_CV: Tensor  # ∂loss/∂logits, in their type or float32
    sums: Mapping[str, Tensor] = field(default_factory=dict)  # of metrics, over the chunk's tokens


@dataclass(frozen=True)
class Kernel:
    """A loss on a chunk's logits.

    `part` is given logits_CV, to be overwritten at will, and which tokens they are. `precise`: it wants logits that
    were not rounded to the weight's type; else they come in that type on a GPU, where reading them is what they cost,
    and in float32 elsewhere. `vocabulary`: how many token ids there are; further rows of the head are padding, and get
    neither mass nor gradient (None: there are none). With one, on a GPU, the gradient is to be written over the logits.
    `begin`: what a training pass over the tokens calls before it runs the trunk, also where there are no tokens.
    """

    part: Callable[[Tensor, slice], Part]
    precise: bool = False
    vocabulary: int | None = None
    begin: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class HeadGradients:
    """A loss, its gradients (of the hidden states in their type, of the head in float32), and sums of metrics.

    A frozen head's gradient is None.
    """

    loss: float
    hidden_NH: Tensor
    weight_VH: Tensor | None
    sums: dict[str, float]


@torch.no_grad()
def head_gradients(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    kernel: Kernel,
    *,
    into_VH: Tensor | None = None,
    rows: int = 0,
    frozen: bool = False,
) -> HeadGradients:
    """The loss of logits = hidden · weightᵀ under `kernel`, and its gradients.

    Args:
        hidden_NH: the trunk's output where tokens are predicted: only tokens that count, so compact before.
        weight_VH: the head's weight, of the same type. A head with a bias is not covered.
        kernel: the loss.
        into_VH: what the head's gradient is added to, float32 (None: zeros), so that all micro-batches of a step
            share one table.
        rows: tokens of a chunk (0: `chunk_rows`); bounds memory, and changes the result by rounding only.
        frozen: the head's gradient is wanted by nobody and not computed.
    """
    by_weight_VH = into_VH
    if by_weight_VH is None and not frozen:
        by_weight_VH = torch.zeros_like(weight_VH, dtype=wide_type(weight_VH))
    by_hidden_NH, whole_VH, vocabulary = torch.empty_like(hidden_NH), by_weight_VH, kernel.vocabulary
    weight_VH = weight_VH[: table_width(weight_VH, vocabulary)]
    if by_weight_VH is not None:
        by_weight_VH = by_weight_VH[: len(weight_VH)]
    loss, sums = torch.zeros((), dtype=wide_type(weight_VH), device=hidden_NH.device), dict[str, Tensor]()
    for chunk in chunks(len(hidden_NH), rows or chunk_rows(weight_VH, precise=kernel.precise)):
        logits_CV = _table(hidden_NH[chunk], weight_VH, precise=kernel.precise)
        part = kernel.part(logits_CV[:, :vocabulary], chunk)
        gradient_CV = _over_whole_table(part.gradient_CV, logits_CV)
        del logits_CV  # where the gradient is another table
        by_hidden_NH[chunk] = _back_project(gradient_CV, hidden_NH[chunk], weight_VH, by_weight_VH)
        loss += part.loss
        sums = {name: sums[name] + value if name in sums else value for name, value in part.sums.items()}
        del part, gradient_CV  # before the next ones are made
    return HeadGradients(loss.item(), by_hidden_NH, whole_VH, {name: sums[name].item() for name in sums})


def table_width(weight_VH: Tensor, vocabulary: int | None) -> int:
    """Rows of a head whose logits are computed: of a GPU's products those are slow whose rows are of an odd length."""
    if vocabulary is None or not weight_VH.is_cuda:
        return vocabulary or len(weight_VH)
    return min(len(weight_VH), -(-vocabulary // _ALIGNED) * _ALIGNED)


def _over_whole_table(gradient_CV: Tensor, table_CW: Tensor) -> Tensor:
    """A chunk's gradient for all of its logits' table, to whose front it was written if that is wider: 0 beyond."""
    vocabulary = gradient_CV.shape[-1]
    if vocabulary == table_CW.shape[-1]:
        return gradient_CV
    assert gradient_CV.data_ptr() == table_CW.data_ptr(), "see `Kernel`"
    table_CW[:, vocabulary:] = 0.0
    return table_CW


def chunk_rows(weight_VH: Tensor, *, precise: bool) -> int:
    """Tokens of a chunk."""
    if not weight_VH.is_cuda:
        return CPU_ROWS
    entry = wide_type(weight_VH).itemsize if precise else weight_VH.itemsize
    return max(256, GPU_TABLE // (len(weight_VH) * entry) // 256 * 256)


def wide_type(tensor: Tensor) -> torch.dtype:
    """The type to reduce in: float32, or the tensor's own where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def project(hidden_CH: Tensor, weight_VH: Tensor, vocabulary: int | None = None, *, precise: bool) -> Tensor:
    """A chunk's logits for the first `vocabulary` token ids (None: all), shape [C, V]; see `Kernel` for their type.

    On a GPU they may lie in a wider table. Given float64, they are that.
    """
    return _table(hidden_CH, weight_VH[: table_width(weight_VH, vocabulary)], precise=precise)[:, :vocabulary]


def _table(hidden_CH: Tensor, weight_VH: Tensor, *, precise: bool) -> Tensor:
    """A chunk's logits for every row of the weight, shape [C, V]."""
    wide = wide_type(weight_VH)
    if weight_VH.dtype == wide:
        return hidden_CH @ weight_VH.T
    if weight_VH.is_cuda:
        return torch.mm(hidden_CH, weight_VH.T, out_dtype=wide if precise else weight_VH.dtype)
    if not precise:
        return (hidden_CH @ weight_VH.T).to(wide)
    logits_CV = torch.empty(len(hidden_CH), len(weight_VH), dtype=wide, device=hidden_CH.device)
    wide_CH = hidden_CH.to(wide)
    for tile in chunks(len(weight_VH), _TILE):
        torch.mm(wide_CH, weight_VH[tile].to(wide).T, out=logits_CV[:, tile])
    return logits_CV


def _back_project(gradient_CV: Tensor, hidden_CH: Tensor, weight_VH: Tensor, by_weight_VH: Tensor | None) -> Tensor:
    """Gradient of a chunk's hidden states; adds to the head's, without rounding the product before it is added."""
    if weight_VH.is_cuda and weight_VH.dtype != wide_type(weight_VH):
        gradient_CV = gradient_CV.to(weight_VH.dtype)
        if by_weight_VH is not None:
            torch.addmm(by_weight_VH, gradient_CV.T, hidden_CH, out_dtype=by_weight_VH.dtype, out=by_weight_VH)
        return gradient_CV @ weight_VH
    wide_CH = hidden_CH.to(gradient_CV.dtype)
    by_hidden_CH = torch.zeros_like(wide_CH)
    for tile in chunks(len(weight_VH), _TILE):
        by_hidden_CH.addmm_(gradient_CV[:, tile], weight_VH[tile].to(gradient_CV.dtype))
        if by_weight_VH is not None:
            by_weight_VH[tile].addmm_(gradient_CV[:, tile].T, wide_CH)
    return by_hidden_CH


def chunks(count: int, rows: int) -> Iterator[slice]:
    """`count` things, `rows` at a time."""
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))
