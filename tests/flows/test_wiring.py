"""What one engine for a whole run asks of the recipe's wiring: the same options for every stage."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.recipe import parse_recipe
from flows.wiring import distill_spec, student_spec, teacher_spec
from model.errors import RecipeError

DEMO = Path(__file__).parents[2] / "deployments/recipes/demo.toml"


@pytest.fixture
def values() -> dict[str, Any]:
    return tomllib.loads(DEMO.read_text(encoding="utf-8"))


def test_the_demos_stages_can_share_one_engine(values: dict[str, Any]) -> None:
    recipe = parse_recipe(values)
    teacher, student = teacher_spec(recipe), student_spec(recipe, recipe.student.model)
    assert replace(teacher.options, revision="") == replace(student.options, revision="")
    assert distill_spec(recipe) == teacher


def test_as_many_log_probabilities_as_are_stored(values: dict[str, Any]) -> None:
    assert teacher_spec(parse_recipe(values, ["distill.top_k=64"])).options.max_logprobs == 64
    live = ["distill.top_k=64", 'distill.teacher_logits="live"']
    assert teacher_spec(parse_recipe(values, live)).options.max_logprobs == 20


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ([], "raw_logprobs"),
        (["grpo.temperature=0.8"], "processed_logprobs"),
        (["grpo.temperature=0.8", "teacher.keep_running=false"], "raw_logprobs"),
        (["grpo.temperature=0.8", 'grpo.rollouts="transformers"', 'grpo.mismatch="none"'], "raw_logprobs"),
    ],
)
def test_log_probabilities_at_a_temperature_where_rollouts_are_weighed_by_them(
    values: dict[str, Any], changes: list[str], mode: str
) -> None:
    assert teacher_spec(parse_recipe(values, changes)).options.logprobs_mode == mode


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            'grpo.dtype="float32"',
            'grpo.dtype = "float32", but the kept engine samples in bfloat16: write teacher.dtype',
        ),
        ("teacher.gpus=1", "grpo.rollouts: the kept engine does not sleep, and would hold the trainer's GPU"),
        ("grpo.max_tokens=2048", "grpo.max_tokens = 2048 leaves no room for a prompt in the kept engine's 2048"),
        ('grpo.rollout_args=["--swap-space", "8"]', "grpo.rollout_args is for an engine of the stage's own"),
        (
            'teacher.extra_args=["--logits_processors", "a:B"]',
            "with --logits_processors the kept engine would tell grpo",
        ),
    ],
)
def test_what_a_kept_engine_cannot_do_for_a_stage(values: dict[str, Any], change: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse_recipe(values, [change])
    parse_recipe(values, [change, "teacher.keep_running=false"])
