"""The k likeliest tokens at each position of a text that an engine has read (vLLM's `prompt_logprobs`).

What stands at a position is the distribution of that position's token, given all before it. An answer that is not
about the very tokens that were sent is an error, never a shift by one.

Axes: T scored tokens, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """Likeliest first. Log-probabilities in nats over the whole vocabulary; −inf where a place has no token."""

    ids_TK: NDArray[np.int32]
    log_probs_TK: NDArray[np.float32]

    @property
    def mass(self) -> float:
        """Mean over positions of the probability that the stored tokens have together."""
        return float(np.exp(self.log_probs_TK).sum(-1).mean())


def read_top_k(answers: Sequence[Mapping[str, Any] | None], tokens: Sequence[int], first: int, k: int) -> TopK:
    """The k likeliest at positions `first` … of `tokens`, from what vLLM says of every position.

    vLLM names the position's own token beside the k likeliest, so that one is looked for: ValueError where it is
    not, or where the positions are not as many as the tokens.
    """
    if len(answers) != len(tokens):
        raise ValueError(f"{len(answers)} positions are scored, but {len(tokens)} tokens were sent")
    ids_TK = np.zeros((len(tokens) - first, k), np.int32)
    log_probs_TK = np.full(ids_TK.shape, -np.inf, np.float32)
    for row in range(len(ids_TK)):
        found, token = answers[first + row], tokens[first + row]
        if found is None or str(token) not in found:
            raise ValueError(f"what is said of position {first + row} does not speak of its token {token}")
        best = sorted(((entry["logprob"], int(name)) for name, entry in found.items()), reverse=True)[:k]
        log_probs_TK[row, : len(best)], ids_TK[row, : len(best)] = zip(*best, strict=True)
    return TopK(ids_TK, log_probs_TK)


def within_vocabulary(top_k: TopK, vocabulary: int) -> TopK:
    """Without ids that no token has: rows that pad a teacher's head. Their mass counts as the tail's."""
    log_probs_TK = np.where(top_k.ids_TK < vocabulary, top_k.log_probs_TK, np.float32(-np.inf))
    order_TK = np.argsort(-log_probs_TK, axis=-1, kind="stable")
    log_probs_TK = np.take_along_axis(log_probs_TK, order_TK, -1)
    ids_TK = np.take_along_axis(top_k.ids_TK, order_TK, -1)
    return TopK(np.where(np.isneginf(log_probs_TK), np.int32(0), ids_TK), log_probs_TK)
