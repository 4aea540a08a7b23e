"""Several documents in one row of tokens, none of which sees another.

A row without padding costs what its tokens cost; attention alone must know where a document ends. It is told so here
(`Documents`) and not left to guess: transformers finds packed documents only where neither a mask nor a cache is
given, and otherwise lets them see one another without a word. Our attention function is registered with transformers
under PACKED. On CUDA in 16 bits it is torch's variable-length flash attention; elsewhere documents of similar length
are taken out of the row, attended to side by side, and put back.

Axes: T tokens of a row, D documents, L the longest of some documents, P tokens before the row that all documents see,
Q and K attention heads of queries and of keys (Q a multiple of K), E entries of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.errors import TrainingError

PACKED = "packed"  # the attention's name in transformers
_LONG = 256  # tokens from which a fused kernel beats plain products on a CPU
_WASTE = 1.25  # padded tokens per token that documents taken side by side may have


@dataclass(frozen=True)
class Documents:
    """The documents of a row, one after another, and how many keys before the row's own each of them sees."""

    lengths: tuple[int, ...]
    device: torch.device
    prefix: int = 0

    @property
    def total(self) -> int:
        """Tokens T of the row."""
        return sum(self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """Each token's position in its document, after the prefix."""
        ranges = [torch.arange(self.prefix, self.prefix + length) for length in self.lengths]
        return torch.cat(ranges).to(self.device)

    @cached_property
    def bounds(self) -> Tensor:
        """Where documents begin, and where the last one ends, int32, [D + 1]."""
        return torch.tensor([0, *self.lengths]).cumsum(0).to(self.device, torch.int32)

    @cached_property
    def groups(self) -> list[Tensor]:
        """Documents of similar length, as places in the row, [D, L]; a shorter one repeats its last place."""
        starts = self.bounds[:-1].tolist()
        groups: list[list[int]] = []
        for d in sorted(range(len(self.lengths)), key=lambda d: -self.lengths[d]):
            together = [*groups[-1], d] if groups else []
            padded = len(together) * self.lengths[together[0]] if together else 0
            if together and padded <= _WASTE * sum(self.lengths[i] for i in together):
                groups[-1] = together
            else:
                groups.append([d])
        return [self._places(group, starts) for group in groups]

    @cached_property
    def order(self) -> Tensor:
        """Where each token of the row lies in all groups' places, one group after another."""
        order_T = torch.empty(self.total, dtype=torch.int64)
        begin = 0
        for places_DL in self.groups:
            # From the last to the first: of a document's repeated last place, the one that is not padding stays.
            flat = places_DL.flatten().cpu().flip(0)
            order_T[flat] = torch.arange(begin, begin + len(flat)).flip(0)
            begin += len(flat)
        return order_T.to(self.device)

    def _places(self, group: Sequence[int], starts: Sequence[int]) -> Tensor:
        longest = self.lengths[group[0]]
        offsets_L = torch.arange(longest)
        rows = [starts[d] + offsets_L.clamp(max=self.lengths[d] - 1) for d in group]
        return torch.stack(rows).to(self.device)

    def forward_arguments(self) -> dict[str, Any]:
        """What a transformers trunk is to be called with, beside the tokens [1, T].

        A mask of four dimensions is taken as it is, so none is built; it holds NaN, so that an attention that used it
        would be found out.
        """
        no_mask = torch.full((1, 1, 1, 1), torch.nan, device=self.device)
        return {"position_ids": self.positions[None], "attention_mask": no_mask, "documents": self}


def packed_attention(
    module: torch.nn.Module,
    query_1QTE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each document, [1, T, Q, E]; without `documents`, transformers' own with its mask."""
    if documents is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        others |= {"scaling": scaling, "sliding_window": sliding_window}
        out_BTQE, _ = sdpa_attention_forward(module, query_1QTE, key_1KTE, value_1KTE, attention_mask, **others)
        return out_BTQE, None
    if sliding_window is not None and documents.prefix + max(documents.lengths) > sliding_window:
        raise TrainingError(f"documents longer than the model's sliding window of {sliding_window} tokens")
    if query_1QTE.is_cuda and query_1QTE.dtype in (torch.bfloat16, torch.float16):
        return _flash(query_1QTE, key_1KTE, value_1KTE, scaling, documents)[None], None
    parts = [_side_by_side(query_1QTE, key_1KTE, value_1KTE, scaling, documents, g) for g in documents.groups]
    return torch.cat(parts)[documents.order][None], None


def _flash(query_1QTE: Tensor, key_1KTE: Tensor, value_1KTE: Tensor, scaling: float, documents: Documents) -> Tensor:
    """Torch's flash attention for documents of any lengths, [T, Q, E]."""
    from torch.nn.attention.varlen import varlen_attn

    keys, key_bounds = _with_prefix(documents)
    longest = max(documents.lengths)
    out_TQE = varlen_attn(
        query_1QTE[0].transpose(0, 1).contiguous(),
        key_1KTE[0].transpose(0, 1)[keys].contiguous(),
        value_1KTE[0].transpose(0, 1)[keys].contiguous(),
        documents.bounds,
        key_bounds,
        longest,
        documents.prefix + longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query_1QTE.shape[1] != key_1KTE.shape[1],
    )
    assert isinstance(out_TQE, Tensor), "a tuple is returned only where more is asked for"
    return out_TQE


def _with_prefix(documents: Documents) -> tuple[Tensor | slice, Tensor]:
    """The keys of all documents, each one's after a copy of the prefix, and where they begin."""
    if not documents.prefix:
        return slice(None), documents.bounds
    bounds = documents.bounds.tolist()
    prefix, own = torch.arange(documents.prefix), torch.arange(documents.prefix, documents.prefix + documents.total)
    keys = torch.cat([torch.cat([prefix, own[a:b]]) for a, b in pairwise(bounds)])
    steps = torch.arange(len(bounds), device=documents.device, dtype=torch.int32)
    return keys.to(documents.device), documents.bounds + documents.prefix * steps


def _side_by_side(
    query_1QTE: Tensor, key_1KTE: Tensor, value_1KTE: Tensor, scaling: float, documents: Documents, places_DL: Tensor
) -> Tensor:
    """Attention in documents of similar length, [D·L, Q, E]; what a document's padding gives is never read."""
    heads, groups, prefix = key_1KTE.shape[1], query_1QTE.shape[1] // key_1KTE.shape[1], documents.prefix
    count, longest = places_DL.shape
    query_DQLE = query_1QTE[0][:, places_DL].transpose(0, 1)
    key_DKSE, value_DKSE = (_keys(whole, places_DL, prefix) for whole in (key_1KTE, value_1KTE))
    causal_LS = torch.ones(longest, prefix + longest, dtype=torch.bool, device=documents.device).tril(prefix)
    if longest >= _LONG or query_1QTE.is_cuda:
        mask = None if prefix == 0 else causal_LS
        out_DQLE = scaled_dot_product_attention(
            query_DQLE, key_DKSE, value_DKSE, mask, is_causal=mask is None, scale=scaling, enable_gqa=groups > 1
        )
    else:  # all queries of a key's group as rows of one product
        query = query_DQLE.reshape(count, heads, groups * longest, -1)
        scores = (query @ key_DKSE.transpose(2, 3)).view(count, heads, groups, longest, -1) * scaling
        shares = scores.masked_fill(~causal_LS, -torch.inf).softmax(-1, dtype=torch.float32).to(scores.dtype)
        out_DQLE = (shares.flatten(2, 3) @ value_DKSE).view(count, heads * groups, longest, -1)
    return out_DQLE.transpose(1, 2).flatten(0, 1)


def _keys(whole_1KTE: Tensor, places_DL: Tensor, prefix: int) -> Tensor:
    """Keys (or values) of some documents behind the prefix, [D, K, P + L, E]."""
    own_DKLE = whole_1KTE[0][:, prefix + places_DL].transpose(0, 1)
    if not prefix:
        return own_DKLE
    return torch.cat([whole_1KTE[:, :, :prefix].expand(len(places_DL), -1, -1, -1), own_DKLE], dim=2)


def attend_by_document(model: Any) -> None:
    """Gives a transformers model this attention; calls that name no documents are masked and answered as by `sdpa`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    model.set_attn_implementation(PACKED)


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """For `generate`: plain products on a CPU, where short bfloat16 rows take 0.8 of the fused kernel's time."""
    if model.device.type != "cpu" or model.config._attn_implementation != PACKED:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(PACKED)
