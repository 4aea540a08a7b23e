"""The check `duplicate` on samples: each is compared with all samples of its problem that were made before it.

Before: in an earlier shard, or earlier in the same one. It runs once all shards are made, and a verdict holds for what
was there then: a sample that is made again later does not change what was said of the others. A row that a newer one
stands in for is not compared with. What makes two samples twins is decided in `model/rewards/duplicate.py`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from model.rewards.check import Scored
from model.rewards.duplicate import NAME, Earlier, judge_samples, version
from model.rewards.settings import DuplicateSettings
from model.rewards.workers.worker import Timed
from tasks.shard_checks import ShardWork
from tasks.store import Dataset, Manifest, sample_path
from tasks.work import done_shards, planned_shards, supersedes


class DuplicateCheck:
    """A ShardCheck. Remembers which problems a shard holds (8 bytes each), so that few files are opened."""

    name = NAME
    after_all = True

    def __init__(self, settings: DuplicateSettings) -> None:
        self.settings = settings
        self._problems: dict[str, npt.NDArray[np.uint64]] = {}  # by the sample file's checksum

    @property
    def version(self) -> str:
        return version(self.settings)

    def judge_shard(self, work: ShardWork) -> list[Timed]:
        """One judgement per item; ShardCheck says the rest."""
        earlier = self._earlier(work)
        judged: list[Timed | None] = [None] * len(work.items)
        for problem, places in _by_problem(work.items).items():
            started = time.perf_counter()
            items = [work.items[place] for place in places]
            words = judge_samples(items, earlier.get(problem, ()), self.settings)
            each = (time.perf_counter() - started) * 1000 / len(items)
            for place, judgement in zip(places, words, strict=True):
                judged[place] = (judgement, each)
        return [_sure(timed) for timed in judged]

    def _earlier(self, work: ShardWork) -> Mapping[str, Sequence[Earlier]]:
        """By problem the samples in earlier shards, in order, without those that a newer row stands in for."""
        done = done_shards(work.dataset)
        wanted = sorted({item.problem_id for item in work.items})
        numbers, newest = _numbers(wanted), _remade(work.dataset, done)
        found: dict[str, list[Earlier]] = {}
        for shard in sorted(n for n in done if n < work.shard):
            if not np.isin(numbers, self._problems_of(work.dataset, done[shard]), assume_unique=True).any():
                continue
            for problem, sample in _samples_of(work.dataset, shard, wanted):
                if newest.get(sample.sample_id, shard) == shard:
                    found.setdefault(problem, []).append(sample)
        return found

    def _problems_of(self, dataset: Dataset, samples: Manifest) -> npt.NDArray[np.uint64]:
        if samples.sha256 not in self._problems:
            ids = dataset.read_table(samples.relative, ["problem_id"]).column(0).unique().to_pylist()
            self._problems[samples.sha256] = _numbers(ids)
        return self._problems[samples.sha256]


def _by_problem(items: Sequence[Scored]) -> Mapping[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.problem_id, []).append(place)
    return places


def _samples_of(dataset: Dataset, shard: int, problems: Collection[str]) -> Iterator[tuple[str, Earlier]]:
    columns, wanted = ["problem_id", "sample_id", "text"], [("problem_id", "in", list(problems))]
    table = pq.read_table(dataset.file(sample_path(shard)), columns=columns, filters=wanted)
    for row in table.to_pylist():
        yield row["problem_id"], Earlier(row["sample_id"], row["text"])


def _remade(dataset: Dataset, done: Mapping[int, Manifest]) -> dict[str, int]:
    """The shard that holds the newest row of each sample that was made more than once."""
    plans, newest = planned_shards(dataset), {}
    for shard in sorted(n for n in done if n in plans and supersedes(plans[n])):
        ids = dataset.read_table(sample_path(shard), ["sample_id"]).column(0).to_pylist()
        newest.update(dict.fromkeys(ids, shard))
    return newest


def _numbers(problems: Sequence[str]) -> npt.NDArray[np.uint64]:
    """64 bits of each id: a collision costs the opening of a file."""
    return np.unique(np.array([int(problem[:16], 16) for problem in problems], np.uint64))


def _sure(timed: Timed | None) -> Timed:
    assert timed is not None, "every item belongs to one problem"
    return timed
