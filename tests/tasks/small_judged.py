"""A shard of answers in words, which rules refuse and a judge may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.rewards.check import Judgement, Scored, failed, passed
from tasks.inputs import scored_rows
from tasks.shard_checks import ShardWork
from tasks.store import Dataset
from tests.tasks.small_dataset import generate, make_dataset, plan

RULES = {"math": "1", "format": "1"}
REJECTED = failed("different")


def judged_dataset(folder: Path) -> Dataset:
    """One shard: six problems `Calculate n + 1.`, each answered rightly once and wrongly once, both in words."""
    dataset = make_dataset(folder / "data", problems=6)
    (shard,) = plan(dataset, replicas=2, shard_size=12)
    generate(dataset, shard, text=lambda row: f"<think>\nhm\n</think>\nreplica {row.replica}")
    return dataset


def work_on(dataset: Dataset, said: Sequence[Judgement] | Judgement = REJECTED, **changes: Any) -> ShardWork:
    """The shard as the judge meets it: replica 0 answers rightly in words, replica 1 wrongly."""
    items = [_answered(item, **changes) for item in scored_rows(dataset, 0)]
    verdicts = [said] * len(items) if isinstance(said, Judgement) else list(said)
    return ShardWork(dataset, 0, items, {"math": verdicts, "format": [passed("full")] * len(items)})


def _answered(item: Scored, **changes: Any) -> Scored:
    gold = int(item.gold or 0)
    number = gold if item.text.endswith("0") else gold + 50
    return replace(item, text=f"<think>\nhm\n</think>\nwell, {number} it is", **changes)


def engine(tmp_path: Path) -> dict[str, Any]:
    """Settings of an `Engine`."""
    return {"concurrency": 8, "timeout_seconds": 20.0, "log_path": tmp_path / "vllm.log"}
