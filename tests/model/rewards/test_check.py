"""What a check may look at is what the two records say."""

from __future__ import annotations

from dataclasses import fields

from model.records import Problem, Sample
from model.rewards.check import Scored, scored


def test_a_scored_item_takes_every_field_from_its_records() -> None:
    problem = Problem("p", "math", "s", prompt="1+1?", gold="2", tests="t")
    sample = Sample(
        sample_id="i", problem_id="p", shard=0, teacher="m", teacher_revision="r", template="t",
        temperature=1.0, top_p=1.0, max_tokens=64, replica=0, seed=1, prompt_tokens=5, completion_tokens=9,
        finish_reason="length", text="<think>x</think>", reasoning="x", answer="y", error=None, seconds=0.1,
        created_at="2026-01-01",
    )  # fmt: skip
    item = scored(problem, sample)
    taken = [getattr(item, field.name) for field in fields(Scored)]
    assert taken == ["<think>x</think>", "2", "1+1?", "t", "math", "i", "p", "x", "y", "length", 9, 64]
