"""What is shown of a run: samples to read are chosen by what became of them, and come with their texts."""

from __future__ import annotations

from pathlib import Path

from tasks.catalog import connect
from tasks.summary import accepted_preview, rejected_preview
from tasks.views import AcceptRule
from tests.tasks.small_dataset import generate, judge, make_dataset, plan


def test_samples_to_read_come_with_their_texts(tmp_path: Path) -> None:
    """Eight samples in two shards: of each four one passes, two fail, one is an error."""
    dataset = make_dataset(tmp_path / "data", problems=2)
    said = ["pass", "fail", "fail", "error"]
    for shard in plan(dataset, replicas=4, shard_size=4):
        generate(dataset, shard, text=lambda row: f"text of {row.sample_id}")
        judge(dataset, shard, "math", lambda row: said[row.replica], reasons={"fail": "wrong", "error": "timed_out"})
    con = connect(dataset, AcceptRule(("math",)))

    accepted = accepted_preview(con, 1)
    assert accepted == [{"sample_id": accepted[0]["sample_id"], "text": f"text of {accepted[0]['sample_id']}"}]
    assert len(accepted_preview(con, 5)) == 2
    rejected = rejected_preview(con, 5)
    assert [(row["check"], row["reason"]) for row in rejected] == [("math", "wrong"), ("math", "timed_out")]
    assert [row["text"] for row in rejected] == [f"text of {row['sample_id']}" for row in rejected]
    assert rejected_preview(con, 1) == rejected[:1]


def test_an_empty_dataset_has_none(tmp_path: Path) -> None:
    con = connect(make_dataset(tmp_path / "data"))
    assert accepted_preview(con, 5) == rejected_preview(con, 5) == []
