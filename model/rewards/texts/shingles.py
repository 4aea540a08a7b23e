r"""Texts as sets of word n-grams (shingles), and their MinHash signatures: what near-duplicates are found by.

A text becomes tokens (words in lower case, numbers, signs, LaTeX commands; punctuation is left out), every run of
`width` tokens becomes one 64-bit number, and the share that two texts' sets of numbers have in common is their
Jaccard similarity. A signature estimates it without the sets: two sets agree in a slot with a probability equal to
their similarity. Signatures are rensa's R-MinHash; the hashes depend on no process, machine or order of texts.
Which texts count as twins is decided in `model/rewards/duplicate.py`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

MOST_CHARACTERS = 1_000_000  # of a text that become tokens: ten times the longest reasoning chain
SEED = 42  # of the signatures: part of what they mean
RECALL = 0.99  # least share of twins, at the very threshold, that share a band

# A minus between letters is a hyphen. Chinese, Japanese and Korean run words together: each character is a token.
# Commonest first, and nearly all start with a single class of characters: that is ruled out quickly.
_TOKEN = re.compile(
    r"[a-z][^\W\d_]*|\d\d*(?:,\d{3})*(?:\.\d+)?|\\[a-z]+|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_][^\W\d_]*"
    r"|[+*/^=<>%!|°±×÷\u2190-\u22ff]|-(?![^\W\d_])|(?<![^\W\d_])-"
)
_LAYOUT = frozenset(
    {
        r"\left", r"\right", r"\big", r"\bigg", r"\displaystyle", r"\text", r"\textbf", r"\mathrm", r"\mathbf",
        r"\quad", r"\qquad", r"\begin", r"\end",
    }
)  # fmt: skip
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)


def tokens(text: str) -> list[str]:
    """The tokens of the text's first million characters, in order."""
    found = _TOKEN.findall(text[:MOST_CHARACTERS].lower().replace("\u2212", "-"))
    return [token.replace(",", "") for token in found if token not in _LAYOUT]


def shingles(documents: Sequence[Sequence[str]], width: int) -> tuple[Hashes, Hashes]:
    """Hashes of every run of `width` tokens, and the offset at which each document's begin (one more than documents).

    A document shorter than that has one shingle: all of it. The same run twice in a document is there twice.
    """
    padded = [[*document, *[""] * (width - len(document))] for document in documents]
    flat, lengths = _token_hashes(padded)
    counts = lengths - width + 1
    windows = np.zeros(max(len(flat) - width + 1, 0), np.uint64)
    for place in range(width):
        windows = mixed(windows + flat[place : len(flat) - width + 1 + place])
    ends = np.cumsum(lengths)
    inside = np.ones(len(windows), bool)
    for place in range(1, width):  # windows that begin so close to a document's end run into the next one
        inside[(ends - place)[ends - place < len(windows)]] = False
    return windows[inside], np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)


def rows_of(flat: Hashes, offsets: Hashes) -> list[Hashes]:
    """Each document's set of shingles, sorted."""
    bounds = offsets.astype(np.int64).tolist()
    return [_distinct(np.sort(flat[start:end])) for start, end in itertools.pairwise(bounds)]


def signatures(flat: Hashes, offsets: Hashes, permutations: int) -> npt.NDArray[np.uint32]:
    """MinHash signatures of documents given by their shingles, of shape (documents, permutations)."""
    from rensa import RMinHash

    if len(offsets) == 1:
        return np.zeros((0, permutations), np.uint32)
    matrix: Any = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, permutations, SEED)
    return np.array(matrix.to_rows(), np.uint32)


def similarity(one: Hashes, other: Hashes) -> float:
    """Jaccard similarity of two sorted sets of shingles."""
    places = np.minimum(np.searchsorted(one, other), len(one) - 1)
    shared = int((one[places] == other).sum())
    return shared / (len(one) + len(other) - shared)


def rows_per_band(threshold: float, permutations: int) -> int:
    """The most rows of a band with which texts at `threshold` still share a band at least RECALL of the time.

    A band of r rows agrees with probability s^r, one of P/r bands with 1 - (1 - s^r)^(P/r).
    """
    fits = [r for r in range(1, permutations + 1) if 1 - (1 - threshold**r) ** (permutations // r) >= RECALL]
    return max(fits, default=1)


def band_keys(signed: npt.NDArray[np.uint32], salts: Hashes, rows: int) -> Hashes:
    """One number per document and band, of shape (documents, bands): equal where the band and the salt are equal."""
    bands = signed.shape[1] // rows
    keys = mixed(salts[:, None] + np.arange(1, bands + 1, dtype=np.uint64) * _MULTIPLIERS[0])
    cut = signed[:, : bands * rows].reshape(len(signed), bands, rows).astype(np.uint64)
    for row in range(rows):
        keys = mixed(keys + cut[:, :, row])
    return keys


def text_hashes(texts: Sequence[str]) -> Hashes:
    """64 bits of each text."""
    return _token_hashes([texts])[0] if texts else np.zeros(0, np.uint64)


def _token_hashes(documents: Sequence[Sequence[str]]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """64 bits of every token, one document after the other, and how many tokens each has."""
    from rensa import RMinHash

    rows: list[list[int]] = RMinHash.hash_token_sets(documents)
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(itertools.chain.from_iterable(rows), np.uint64, int(lengths.sum())), lengths


def _distinct(ordered: Hashes) -> Hashes:
    """`np.unique` of what is sorted, in a third of its time."""
    return np.asarray(ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])])


def mixed(values: Hashes) -> Hashes:
    """Every bit of the input changes about half of the output's (the finaliser of SplitMix64)."""
    values = values + _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
