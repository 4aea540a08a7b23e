"""Several documents in one row of tokens, none of which sees another.

A row without padding costs what its tokens cost; attention alone must know where a document ends. It is told so here
(`Documents`) and not left to guess: transformers finds packed documents only where neither a mask nor a cache is
given, and otherwise lets them see one another without a word. Our attention function is registered with transformers
under PACKED. On CUDA in 16 bits it is torch's variable-length flash attention, but for long documents, which cuDNN's
kernel took one by one in 0.6 of its time on an H100; elsewhere documents of similar length are taken out of the row,
attended to side by side, and put back.

A document may go on from another one of the row, its parent, and then sees that and what that one sees: tokens that
several rows open with are run once (`shared_prefixes.py`).

Axes: T tokens of a row, D documents, L the longest of some documents, P tokens before the row that all documents see,
A tokens of the row that some documents see before their own, Q and K attention heads of queries and of keys (Q a
multiple of K), E entries of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from model.errors import TrainingError

PACKED = "packed"  # the attention's name in transformers
_LONG = 256  # keys from which a fused kernel beats plain products on a CPU, and keeps no table of them
_ALONE = 4096  # tokens of a document that keeps a GPU busy for longer than it takes to be started
_LENGTHS_BITS = 4  # of a long document's length; what is below is rounded up
_WASTE = 1.25  # padded tokens per token that documents taken side by side may have


@dataclass(eq=False)  # and not frozen: torch.compile would compile anew for every value of a frozen one
class Documents:
    """The documents of a row, one after another, and how many keys before the row's own each of them sees.

    `parents` are the documents that each goes on from, further to the front, or −1; empty where none does.
    """

    lengths: tuple[int, ...]
    device: torch.device
    prefix: int = 0
    parents: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """Tokens T of the row."""
        return sum(self.lengths)

    @cached_property
    def before(self) -> list[int]:
        """How many of the row's tokens each document sees before its own, A."""
        before: list[int] = []
        for parent in self.parents or [-1] * len(self.lengths):
            before.append(before[parent] + self.lengths[parent] if parent >= 0 else 0)
        return before

    @cached_property
    def longest(self) -> int:
        """The most keys that a token sees."""
        return self.prefix + max(map(int.__add__, self.before, self.lengths))

    @cached_property
    def positions(self) -> Tensor:
        """Each token's position in its document, after the prefix and what the document goes on from."""
        firsts = [self.prefix + before for before in self.before]
        ranges = [torch.arange(at, at + length) for at, length in zip(firsts, self.lengths, strict=True)]
        return torch.cat(ranges).to(self.device)

    @cached_property
    def starts(self) -> list[int]:
        """Where documents begin, and where the last one ends."""
        return [0, *accumulate(self.lengths)]

    @cached_property
    def bounds(self) -> Tensor:
        """The same as int32, [D + 1]."""
        return torch.tensor(self.starts, dtype=torch.int32, device=self.device)

    @cached_property
    def runs(self) -> list[Documents]:
        """The documents in order: long ones that see their own tokens alone, one by one, and what lies between them."""
        if self.prefix or any(self.before):
            return [self]
        found: list[tuple[int, ...]] = []
        for is_long, lengths in groupby(self.lengths, key=lambda length: length >= _ALONE):
            together = tuple(lengths)
            found += [(length,) for length in together] if is_long else [together]
        return [Documents(lengths, self.device) for lengths in found]

    @cached_property
    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """Documents of similar length that see as many tokens before their own: their places in the row, [D, L], and
        those tokens' places, [D, A]. A shorter document repeats its last place."""
        groups: list[list[int]] = []
        for d in sorted(range(len(self.lengths)), key=lambda d: (self.before[d], -self.lengths[d])):
            together = [*groups[-1], d] if groups and self.before[groups[-1][0]] == self.before[d] else []
            padded = len(together) * self.lengths[together[0]] if together else 0
            if together and padded <= _WASTE * sum(self.lengths[i] for i in together):
                groups[-1] = together
            else:
                groups.append([d])
        return [(self._places(group), self._seen_by(group)) for group in groups]

    @cached_property
    def order(self) -> Tensor:
        """Where each token of the row lies in all groups' places, one group after another."""
        order_T = torch.empty(self.total, dtype=torch.int64)
        begin = 0
        for places_DL, _ in self.groups:
            # From the last to the first: of a document's repeated last place, the one that is not padding stays.
            flat = places_DL.flatten().cpu().flip(0)
            order_T[flat] = torch.arange(begin, begin + len(flat)).flip(0)
            begin += len(flat)
        return order_T.to(self.device)

    def _places(self, group: Sequence[int]) -> Tensor:
        """Where the documents of a group lie in the row, [D, L]."""
        offsets_L = torch.arange(self.lengths[group[0]])
        rows = [self.starts[d] + offsets_L.clamp(max=self.lengths[d] - 1) for d in group]
        return torch.stack(rows).to(self.device)

    def _seen_by(self, group: Sequence[int]) -> Tensor:
        """The places of the row's tokens that each document of a group sees before its own, in order, [D, A]."""
        return torch.tensor([self._seen(d) for d in group], dtype=torch.int64).to(self.device)

    def _seen(self, d: int) -> list[int]:
        parent = self.parents[d] if self.parents else -1
        return [*self._seen(parent), *self._own(parent)] if parent >= 0 else []

    def _own(self, d: int) -> range:
        return range(self.starts[d], self.starts[d + 1])

    @cached_property
    def keys(self) -> tuple[Tensor | slice, Tensor]:
        """The keys that documents see, one document's after another's, and where they begin, int32, [D + 1].

        Places among the prefix and the row's tokens; all of them in order where every document sees its own alone.
        """
        if not self.prefix and not any(self.before):
            return slice(None), self.bounds
        seen = [[*self._seen(d), *self._own(d)] for d in range(len(self.lengths))]
        keys = [key for places in seen for key in (*range(self.prefix), *(self.prefix + place for place in places))]
        counts = accumulate((self.prefix + len(places) for places in seen), initial=0)
        return torch.tensor(keys, device=self.device), torch.tensor([*counts], dtype=torch.int32, device=self.device)

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
    if sliding_window is not None and documents.longest > sliding_window:
        raise TrainingError(f"documents longer than the model's sliding window of {sliding_window} tokens")
    if query_1QTE.is_cuda and query_1QTE.dtype in (torch.bfloat16, torch.float16):
        totals = [run.total for run in documents.runs]
        if len(totals) == 1:
            return _in_16_bits(query_1QTE, key_1KTE, value_1KTE, scaling, *documents.runs), None
        queries, keys, values = (torch.split(whole, totals, dim=2) for whole in (query_1QTE, key_1KTE, value_1KTE))
        runs = zip(queries, keys, values, documents.runs, strict=True)
        return torch.cat([_in_16_bits(q, k, v, scaling, run) for q, k, v, run in runs], dim=1), None
    parts = [_side_by_side(query_1QTE, key_1KTE, value_1KTE, scaling, documents.prefix, *g) for g in documents.groups]
    return torch.cat(parts)[documents.order][None], None


def _in_16_bits(
    query_1QTE: Tensor, key_1KTE: Tensor, value_1KTE: Tensor, scaling: float, documents: Documents
) -> Tensor:
    """A GPU's attention for one of `Documents.runs`, [1, T, Q, E]."""
    from torch.nn.attention.varlen import varlen_attn

    if len(documents.lengths) == 1 and documents.total >= _ALONE and documents.longest == documents.total:
        return _alone(query_1QTE, key_1KTE, value_1KTE, scaling)
    keys, key_bounds = documents.keys
    out_TQE = varlen_attn(
        query_1QTE[0].transpose(0, 1).contiguous(),
        key_1KTE[0].transpose(0, 1)[keys].contiguous(),
        value_1KTE[0].transpose(0, 1)[keys].contiguous(),
        documents.bounds,
        key_bounds,
        max(documents.lengths),
        documents.longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query_1QTE.shape[1] != key_1KTE.shape[1],
    )
    assert isinstance(out_TQE, Tensor), "a tuple is returned only where more is asked for"
    return out_TQE[None]


def _alone(query_1QLE: Tensor, key_1KLE: Tensor, value_1KLE: Tensor, scaling: float) -> Tensor:
    """Attention in one long document, [1, L, Q, E].

    cuDNN makes a plan for every new shape, strides among it, which takes longer than the attention. So a document is
    laid out by itself and its length rounded up, to one of eight in each power of two: no token sees what is added.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    length = query_1QLE.shape[2]
    more = -length % (1 << max(0, length.bit_length() - _LENGTHS_BITS))

    def laid_out(whole_1KLE: Tensor) -> Tensor:
        own_LKE = whole_1KLE[0].transpose(0, 1)
        return pad(own_LKE, (0, 0, 0, 0, 0, more)).contiguous()[None].transpose(1, 2)

    query, key, value = (laid_out(each) for each in (query_1QLE, key_1KLE, value_1KLE))
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        grouped = query.shape[1] != key.shape[1]
        out_1QLE = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    # Cut last: a plan is kept for the gradient's strides too, and not told apart by them.
    return out_1QLE.transpose(1, 2)[:, :length]


def _side_by_side(
    query_1QTE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    scaling: float,
    prefix: int,
    places_DL: Tensor,
    seen_DA: Tensor,
) -> Tensor:
    """Attention in documents of similar length, [D·L, Q, E]; what a document's padding gives is never read."""
    heads, groups = key_1KTE.shape[1], query_1QTE.shape[1] // key_1KTE.shape[1]
    count, longest = places_DL.shape
    before, keys_DS = prefix + seen_DA.shape[1], torch.cat([seen_DA, places_DL], dim=1)
    query_DQLE = query_1QTE[0][:, places_DL].transpose(0, 1)
    key_DKSE, value_DKSE = (_keys(whole, keys_DS, prefix) for whole in (key_1KTE, value_1KTE))
    causal_LS = torch.ones(longest, before + longest, dtype=torch.bool, device=query_1QTE.device).tril(before)
    if before + longest >= _LONG or query_1QTE.is_cuda:
        mask = None if before == 0 else causal_LS
        out_DQLE = scaled_dot_product_attention(
            query_DQLE, key_DKSE, value_DKSE, mask, is_causal=mask is None, scale=scaling, enable_gqa=groups > 1
        )
    else:  # all queries of a key's group as rows of one product
        query = query_DQLE.reshape(count, heads, groups * longest, -1)
        scores = (query @ key_DKSE.transpose(2, 3)).view(count, heads, groups, longest, -1) * scaling
        shares = scores.masked_fill(~causal_LS, -torch.inf).softmax(-1, dtype=torch.float32).to(scores.dtype)
        out_DQLE = (shares.flatten(2, 3) @ value_DKSE).view(count, heads * groups, longest, -1)
    return out_DQLE.transpose(1, 2).flatten(0, 1)


def _keys(whole_1KTE: Tensor, keys_DS: Tensor, prefix: int) -> Tensor:
    """Keys (or values) of some documents behind the prefix, [D, K, P + S, E]."""
    own_DKSE = whole_1KTE[0][:, prefix + keys_DS].transpose(0, 1)
    if not prefix:
        return own_DKSE
    return torch.cat([whole_1KTE[:, :, :prefix].expand(len(keys_DS), -1, -1, -1), own_DKSE], dim=2)


def attend_by_document(model: Any) -> None:
    """Gives a transformers model this attention; calls that name no documents are masked and answered as by `sdpa`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if PACKED not in ALL_ATTENTION_FUNCTIONS:  # else it may be what another model's layers were compiled for
        AttentionInterface.register(PACKED, packed_attention)
        AttentionMaskInterface.register(PACKED, sdpa_mask)
    model.set_attn_implementation(PACKED)


def compile_layers(model: Any, backend: str | Callable[..., Any] = "inductor") -> None:
    """Has a transformers model's layers compiled when they first run, once for rows of all lengths.

    Between their products layers read and write what they just wrote; compiled, they do so once. Attention stays as it
    is: which documents there are is nothing to compile for. What is compiled in one layer serves the others.
    """
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if not hasattr(model.base_model, "layers"):
        raise TrainingError(f"the layers of a {type(model).__name__} are not where others are: set compile = false")
    if ALL_ATTENTION_FUNCTIONS[PACKED] is packed_attention:
        AttentionInterface.register(PACKED, torch.compiler.disable(packed_attention))  # type: ignore[no-untyped-call]
    for layer in model.base_model.layers:
        layer.compile(dynamic=True, backend=backend)
    model.has_compiled_layers = True


def has_compiled_layers(model: Any) -> bool:
    """Were they compiled?"""
    return bool(getattr(model, "has_compiled_layers", False))


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """For `generate`: plain products on a CPU, where short bfloat16 rows take 0.8 of the fused kernel's time.

    Out of training mode, in which activation checkpointing would forbid a cache. Layers run as they are written,
    compiled or not: rows grow by a token at a time.
    """
    was_training = model.training
    model.eval()
    try:
        with _plain_layers(model):
            yield
    finally:
        model.train(was_training)


@contextmanager
def _plain_layers(model: Any) -> Iterator[None]:
    if has_compiled_layers(model):
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    if model.device.type != "cpu" or model.config._attn_implementation != PACKED:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(PACKED)
