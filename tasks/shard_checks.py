"""The second form of a check: one that needs a model, or many samples at once, and so is asked once per shard.

The first form (`model/rewards/check.py`) sees one sample and runs in the verifier pool. One of this form comes
after it, sees the pool's verdicts, and its own verdicts are written in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from model.rewards.check import Judgement, Scored
from model.rewards.workers.worker import Timed
from tasks.store import Dataset


@dataclass(frozen=True)
class ShardWork:
    """One shard's samples, each beside its problem, and what earlier checks said of each, by check name."""

    dataset: Dataset
    shard: int
    items: Sequence[Scored]
    verdicts: Mapping[str, Sequence[Judgement]]


class ShardCheck(Protocol):
    """A named, versioned function of one shard. `after_all`: it needs the samples of every shard.

    Trouble with one sample is its verdict `error`; an exception is for what stops all of them, as an endpoint that
    does not answer (SamplerError), and fails the shard's attempt.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def after_all(self) -> bool: ...

    def judge_shard(self, work: ShardWork) -> list[Timed]:
        """One judgement and its milliseconds per item, in the items' order."""
        ...
