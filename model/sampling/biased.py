"""Arguments of vLLM after which a token's log-probability is not log softmax(logits / T) at the sampler's T."""

from __future__ import annotations

from collections.abc import Iterable

_BIASED = ("--logprobs-mode", "--logits-processors", "--speculative-config")
_EXACT = ("-sc", "--config")  # the last one's short name; a file that may hold any of them
_LEAST = len("--log")  # argparse takes any beginning of a name that no other name shares


def biased_argument(words: Iterable[str]) -> str | None:
    """The first word that is such an argument in any of vLLM's spellings: `--a_b`, `--a-b.c=1`, `--a-`; else None."""
    return next((word for word in words if _is_biased(word)), None)


def _is_biased(word: str) -> bool:
    name = word.split("=")[0].split(".")[0].replace("_", "-")
    return name in _EXACT or (len(name) >= _LEAST and any(biased.startswith(name) for biased in _BIASED))
