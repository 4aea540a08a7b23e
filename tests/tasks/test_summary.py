"""What is shown of a run: samples to read are chosen by what became of them, and come with their texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.attempts import attempt
from tasks.catalog import connect
from tasks.summary import (
    accepted_preview,
    completion_lengths,
    failed_attempts,
    funnel_steps,
    newest_evaluations,
    pass_rates_by_source,
    rejected_preview,
    teacher_on_validation,
)
from tasks.views import AcceptRule
from tests.tasks.small_dataset import evaluate, generate, judge, make_dataset, plan, problem


def test_samples_to_read_come_with_their_texts(tmp_path: Path) -> None:
    """Eight samples in two shards: of each four one passes, two fail, one is an error."""
    dataset = make_dataset(tmp_path / "data", problems=2)
    said = ["pass", "fail", "fail", "error"]
    for shard in plan(dataset, replicas=4, shard_size=4):
        generate(dataset, shard, text=lambda row: f"text of {row.sample_id}")
        judge(dataset, shard, "math", lambda row: said[row.replica], reasons={"fail": "wrong", "error": "timed_out"})
    con = connect(dataset, AcceptRule(("math",)))

    accepted = accepted_preview(con, 1)
    assert accepted[0]["text"] == f"text of {accepted[0]['sample_id']}"
    asked = {problem(number).prompt: problem(number).gold for number in range(2)}
    assert all(asked[row["prompt"]] == row["gold"] for row in accepted)
    assert len(accepted_preview(con, 5)) == 2
    rejected = rejected_preview(con, 5)
    found = [(row["check"], row["reason"], row["samples"]) for row in rejected]
    assert found == [("math", "wrong", 4), ("math", "timed_out", 2)]
    assert [row["text"] for row in rejected] == [f"text of {row['sample_id']}" for row in rejected]
    assert rejected_preview(con, 1) == rejected[:1]


def test_an_empty_dataset_has_none(tmp_path: Path) -> None:
    con = connect(make_dataset(tmp_path / "data"))
    assert accepted_preview(con, 5) == rejected_preview(con, 5) == []
    assert pass_rates_by_source(con) == completion_lengths(con) == failed_attempts(con, 5) == []
    assert newest_evaluations(con) == []
    assert teacher_on_validation(con) is None
    assert [step["samples"] for step in funnel_steps(con)] == [0, 0, 0, 0, 0, 0]


def test_pass_rates_and_lengths_by_hand(tmp_path: Path) -> None:
    """Four problems of four samples: pass rates 1, 1/2 and 0, and one of which nothing is known; 5 tokens each."""
    dataset = make_dataset(tmp_path / "data", problems=4)
    said = dict(zip(plan(dataset, replicas=4, shard_size=4), ["pppp", "pfpf", "ffff", "eeee"], strict=True))
    words = {"p": "pass", "f": "fail", "e": "error"}
    for shard, verdicts in said.items():
        generate(dataset, shard)
        judge(dataset, shard, "math", lambda row, verdicts=verdicts: words[verdicts[row.replica]])
    con = connect(dataset, AcceptRule(("math",)))
    counts = {"source": "sums", "problems": 4, "samples": 16, "never": 1, "sometimes": 1, "always": 1, "unknown": 1}
    assert pass_rates_by_source(con) == [counts | {"pass_rate": 0.5}]
    lengths = {"low": 5, "median": 5, "high": 5, "most": 5}
    assert completion_lengths(con) == [
        lengths | {"outcome": "accepted", "samples": 6, "tokens": 30},
        lengths | {"outcome": "rejected", "samples": 10, "tokens": 50},
    ]
    assert [(step["step"], step["lost"], step["reasons"]) for step in funnel_steps(con)] == [
        ("generated", 0, {}),
        ("verified", 0, {}),
        ("math", 10, {"error": 4, "fail": 6}),
        ("accepted", 0, {}),
    ]


def test_failed_attempts_are_told_also_where_a_later_one_went_well(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data")
    for shard in (0, 0, 1):
        with pytest.raises(ValueError, match="refused"), attempt(dataset, "generate", shard, "run"):
            raise ValueError("refused")
    with attempt(dataset, "generate", 0, "run"):
        pass
    with pytest.raises(KeyError), attempt(dataset, "verify", 0, "run"):
        raise KeyError("a")
    keys = ("stage", "state", "error_type", "error", "attempts", "shards")
    found = failed_attempts(connect(dataset), 5)
    assert [tuple(row[key] for key in keys) for row in found] == [
        ("verify", "failed", "KeyError", "'a'", 1, 1),
        ("generate", "failed", "ValueError", "refused", 3, 2),
    ]
    assert failed_attempts(connect(dataset), 1) == found[:1]


def test_what_was_measured_last_counts(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data")
    measured = [("teacher", 0, "all", 0.1), ("sft", 9, "all", 0.2), ("teacher", 0, "all", 0.3)]
    for second, (model, step, suite, value) in enumerate([*measured, ("teacher", 0, "validation", 0.4)]):
        evaluate(dataset, f"k{second}", model, step, suite, value, second)
    con = connect(dataset)
    assert [(row["model"], row["value"]) for row in newest_evaluations(con)] == [("teacher", 0.3), ("sft", 0.2)]
    assert teacher_on_validation(con) == 0.4
