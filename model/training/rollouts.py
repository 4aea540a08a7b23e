"""Completions of the policy as it is now. `Rollouts` is the interface; here transformers generates in this process,
`vllm_rollouts.py` has an engine do it.

Token ids come back as they were sampled, never re-tokenised from text, so that their probabilities are those that
training scores. Where several processes train, each samples its share, and all of them have all rollouts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model.errors import TrainingError
from model.records import FinishReason
from model.training.data import Row, Tokenizer, tokenize
from model.training.documents import generating
from model.training.forward import Model
from model.training.out_of_memory import is_out_of_memory
from model.training.parallel import World


@dataclass(frozen=True)
class Rollout:
    """One sampled completion: its tokens behind their context, and its text up to and with the stop string.

    `log_probs`: of the tokens, nats, as a sampler that is not the trained model itself had them at its temperature.
    """

    row: Row
    text: str
    finish_reason: FinishReason
    log_probs: list[float] | None = None


class Rollouts(Protocol):
    """A sampler of the current policy. Randomness comes from torch's generator, which the step has seeded."""

    def current(self) -> AbstractContextManager[Mapping[str, float]]:
        """A block in which `sample` draws from the policy as it was at its beginning; gives metrics of the change."""
        ...

    def sample(self, contexts: Sequence[str]) -> list[Rollout]:
        """One completion of every context (prompt and prefill), in order."""
        ...


class LocalRollouts:
    """All contexts as one left-padded batch through `generate` of the model that is being trained; as several where
    that does not fit into memory.

    A row's random numbers are its own: it is the same whichever process samples it, and beside what, but for rounding.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        world: World,
        *,
        temperature: float,
        max_tokens: int,
        stop: Sequence[str],
        top_p: float = 1.0,
    ) -> None:
        self.model, self.tokenizer, self.world = model, tokenizer, world
        self.temperature, self.max_tokens, self.stop, self.top_p = temperature, max_tokens, tuple(stop), top_p
        self._rows_that_fit = sys.maxsize

    def current(self) -> AbstractContextManager[Mapping[str, float]]:
        """See `Rollouts`: the policy is the sampler."""
        return nullcontext({})

    def sample(self, contexts: Sequence[str]) -> list[Rollout]:
        """See `Rollouts`."""
        seeds: list[int] = torch.randint(2**63 - 1, (len(contexts),)).tolist()
        own = self.world.dealt(list(zip(contexts, seeds, strict=True)))
        with self.world.whole(self.model):
            found = self._sample(own)
        return self.world.collected(found)

    def _sample(self, asked: Sequence[tuple[str, int]]) -> list[Rollout]:
        """As many at once as fit; how many do is found out by trying."""
        found: list[Rollout] = []
        while len(found) < len(asked):
            part = asked[len(found) : len(found) + self._rows_that_fit]
            try:
                found += self._sample_at_once(part)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    what = f"one completion of at most {self.max_tokens} tokens was written"
                    raise TrainingError(f"out of memory while {what}: lower that limit") from error
                self._rows_that_fit = len(part) // 2
        return found

    @torch.no_grad()
    def _sample_at_once(self, asked: Sequence[tuple[str, int]]) -> list[Rollout]:
        contexts_ids = [tokenize(self.tokenizer, context) for context, _ in asked]
        numbers = RowNumbers([seed for _, seed in asked], self.max_tokens, self.model.device)
        tokens_BT, mask_BT = pad_left(contexts_ids, self.tokenizer.eos_token_id, self.model.device)
        ended = StopTexts(self.tokenizer, self.stop, tokens_BT.shape)
        with generating(self.model):
            out_BT = self.model.generate(
                input_ids=tokens_BT,
                attention_mask=mask_BT,
                logits_processor=[DrawnTokens(self.temperature, numbers, self.top_p)],
                stopping_criteria=[ended],
                do_sample=False,  # of the tokens that are left: the one drawn
                repetition_penalty=1.0,
                max_new_tokens=self.max_tokens,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.eos_token_id,
            )
        new = out_BT[:, tokens_BT.shape[1] :].tolist()
        return [self._rollout(c, n, e) for c, n, e in zip(contexts_ids, new, ended.lengths, strict=True)]

    def _rollout(self, context: list[int], tokens: list[int], stopped_at: int) -> Rollout:
        """Cuts a row where it ended: at its stop text, at its end-of-turn token, or at the token limit."""
        eos = self.tokenizer.eos_token_id
        finish_reason = FinishReason.STOP
        if stopped_at:
            tokens = tokens[:stopped_at]
        elif eos in tokens:
            tokens = tokens[: tokens.index(eos) + 1]
        else:
            finish_reason = FinishReason.LENGTH
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Rollout(Row(context, tokens), cut_after_stop(text, self.stop), finish_reason)


class RowNumbers:
    """Uniform numbers in [0, 1), one for each token of each row, four bytes each: a row's come of its seed alone."""

    def __init__(self, seeds: Sequence[int], tokens: int, device: torch.device) -> None:
        rows = [torch.rand(tokens, 1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self._left = iter(torch.stack(rows, dim=1).to(device))

    def next(self) -> Tensor:
        """Of the next token, [B, 1]."""
        numbers_B1: Tensor = next(self._left)
        return numbers_B1


class DrawnTokens:
    """A logits processor of transformers that draws each row's token from softmax(logits / T) and leaves no other.

    One uniform number per row looks its token up in the cumulated probabilities. torch.multinomial draws one number
    per token of the vocabulary instead, which took half of a rollout's time on a CPU. With `top_p` below 1 only the
    fewest tokens that have this much of the probability can be drawn; at temperature 0 only the likeliest one can.
    """

    def __init__(self, temperature: float, numbers: RowNumbers, top_p: float = 1.0) -> None:
        self.temperature, self.numbers, self.top_p = temperature, numbers, top_p

    def __call__(self, _tokens_BT: Tensor, logits_BV: Tensor) -> Tensor:
        """Scores with 0 at the drawn token and −∞ elsewhere, [B, V]."""
        return torch.full_like(logits_BV, -torch.inf).scatter_(1, self._draw(logits_BV), 0.0)

    def _draw(self, logits_BV: Tensor) -> Tensor:
        if not self.temperature:
            return logits_BV.argmax(-1, keepdim=True)
        shares_BV = (logits_BV.float() / self.temperature).softmax(-1)
        if self.top_p < 1.0:
            shares_BV = nucleus(shares_BV, self.top_p)
        cumulated_BV = shares_BV.cumsum(-1)
        point_B1 = self.numbers.next() * cumulated_BV[:, -1:]
        return torch.searchsorted(cumulated_BV, point_B1, right=True).clamp_(max=logits_BV.shape[1] - 1)


def nucleus(shares_BV: Tensor, top_p: float) -> Tensor:
    """Probabilities with all but the likeliest tokens, the fewest that have `top_p` of them together, at 0."""
    sorted_BV, order_BV = shares_BV.sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    return torch.zeros_like(shares_BV).scatter_(1, order_BV, sorted_BV.masked_fill(before_BV >= top_p, 0.0))


class StopTexts:
    """A stopping criterion of transformers: a row ends with the token that completes a stop text.

    Only the newest tokens are decoded; every token is at least one byte, so as many as the longest stop has bytes do.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], context_shape: Sequence[int]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        rows, self.context_length = context_shape
        self.lengths = [0] * rows  # tokens until the stop text was complete; 0: not yet
        self.window = max((len(text.encode()) for text in stop), default=0)

    def __call__(self, tokens_BT: Tensor, _scores: Any, **_: Any) -> Tensor:
        """Which rows have ended, bool, [B]."""
        length = tokens_BT.shape[1] - self.context_length
        if self.stop:
            recent = tokens_BT[:, self.context_length :][:, -self.window :]
            for b, text in enumerate(self.tokenizer.batch_decode(recent, skip_special_tokens=True)):
                if not self.lengths[b] and any(stop in text for stop in self.stop):
                    self.lengths[b] = length
        return torch.tensor([length > 0 for length in self.lengths], device=tokens_BT.device)


def cut_after_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the end of the stop text that comes first."""
    ends = [text.index(s) + len(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text


def pad_left(rows: Sequence[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask, [B, T], each row at the right edge."""
    width = max(len(row) for row in rows)
    tokens = [[pad_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
