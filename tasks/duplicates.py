"""The check `duplicate` on samples: each is compared with all samples of its problem that were made before it.

Before: in an earlier shard, or earlier in the same one. It runs once all shards are made, and a verdict holds for what
was there then: a sample that is made again later does not change what was said of the others. A row that a newer one
stands in for is not compared with. What makes two samples twins is decided in `model/rewards/duplicate.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from model.rewards.check import Scored
from model.rewards.duplicate import NAME, Earlier, version
from model.rewards.settings import DuplicateSettings
from model.rewards.workers.comparing import Comparers, Group
from model.rewards.workers.worker import Timed
from tasks.shard_checks import ShardWork
from tasks.store import Dataset, Manifest, sample_path
from tasks.work import done_shards, planned_shards, supersedes


class DuplicateCheck:
    """A ShardCheck, in `workers` processes at most where a shard is large.

    Remembers which problems a shard holds (8 bytes each), so that few files are opened.
    """

    name = NAME
    after_all = True

    def __init__(self, settings: DuplicateSettings, workers: int = 1) -> None:
        self.settings = settings
        self._comparers = Comparers(settings, workers)
        self._problems: dict[str, npt.NDArray[np.uint64]] = {}  # by the sample file's checksum

    @property
    def version(self) -> str:
        return version(self.settings)

    def judge_shard(self, work: ShardWork) -> list[Timed]:
        """One judgement per item; ShardCheck says the rest."""
        earlier, places = self._earlier(work), _by_problem(work.items)
        # The text holds its reasoning and answer; without them a message to a process is half as long.
        items = [replace(item, reasoning=None, answer=None) for item in work.items]
        groups = [Group([items[at] for at in places[problem]], earlier.get(problem, ())) for problem in places]
        judged: dict[int, Timed] = {}
        for at, timed in zip(places.values(), self._comparers.judge(groups), strict=True):
            judged |= zip(at, timed, strict=True)
        return [judged[place] for place in range(len(items))]

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
