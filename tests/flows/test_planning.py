"""The plan's arithmetic, on a recipe whose figures a person can work out on paper."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.planning import Plan, parameters_in_name, plan, render
from flows.recipe import load_recipe, parse_recipe
from model.errors import ProblemsError
from tasks.load import load
from tasks.store import Dataset

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "deployments" / "recipes").glob("*.toml"))
SECOND = 1 / 3600  # in hours

# 100 problems (products of two digits), 20 held out, 80 x 5 = 400 samples of 50 + 100 tokens.
PAPER: dict[str, Any] = {
    "name": "paper",
    "teacher": {"type": "vllm", "model": "org/teacher-2B"},
    "student": {"model": "org/student-1B"},
    "problems": [{"type": "builtin", "name": "products-1x1", "held_out": 0.2}],
    "generate": {"replicas": 5, "shard_size": 150},
    "sft": {"epochs": 2, "tokens_per_batch": 9_000},
    "distill": {"enabled": True, "epochs": 2, "tokens_per_batch": 9_000},
    "grpo": {"enabled": True, "steps": 2, "problems_per_step": 5, "group_size": 10},
    "evaluate": {"replicas": 4},
    "prices": {"gpu_hour": 36.0},
    "plan": {
        "tokens_per_second": 1000,
        "mean_prompt_tokens": 50,
        "mean_completion_tokens": 100,
        "accepted_share": 0.5,
        "bytes_per_token": 2.0,
        "peak_tflops": 1.0,
        "mfu": 0.5,
    },
}


def planned(*overrides: str, measured: dict[str, float] | None = None) -> Plan:
    return plan(parse_recipe(PAPER, overrides), measured)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("problems", 100),
        ("held_out", 20),
        ("train", 80),
        ("samples", 80 * 5),
        ("shards", 3),  # 150 + 150 + 100
        ("prompt_tokens", 400 * 50),
        ("completion_tokens", 400 * 100),
        ("disk_bytes", 40_000 * 2),
        ("generate_hours", 40 * SECOND),  # 40,000 tokens at 1,000 a second
        ("accepted", 200),
        ("sft_tokens", 200 * 150 * 2),
        ("sft_steps", 8),  # twice 30,000 tokens in batches of 9,000
        ("sft_hours", 720 * SECOND),  # 6 x 10^9 x 60,000 operations at half of 10^12 a second
        ("distill_hours", 1200 * SECOND),  # (6 x 10^9 + 2 x 2 x 10^9) x 60,000
        ("grpo_tokens", 2 * 5 * 10 * 100),
        ("grpo_rollout_hours", 10 * SECOND),
        ("grpo_hours", 160 * SECOND),  # 8 x 10^9 x 10,000
        ("student_bytes", 3 * 2e9),  # three students in bfloat16; no stage gets to its first checkpoint
        ("training_memory", 24e9),  # distillation: 20 bytes a parameter, and 2 of each of the teacher's 2 x 10^9
        ("token_bytes", 2 * 200 * 150 * 4),  # distillation's, with what the teacher reads
        ("all_bytes", 3 * 2e9 + 2 * 200 * 150 * 4 + 80_000),
        ("evaluate_samples", 20 * 4 * 5),  # teacher, student, sft, distill, grpo
        ("evaluate_hours", 40 * SECOND),
        ("total_hours", (40 + 720 + 1200 + 10 + 160 + 40) * SECOND),
        ("money", 21.7),  # 2,170 seconds at a cent each
    ],
)
def test_figure(key: str, value: float) -> None:
    assert planned()[key] == pytest.approx(value)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("problems.0.limit=10", "problems", 10),
        ("problems.0.limit=500", "problems", 100),
        ("generate.max_tokens=20", "completion_tokens", 400 * 20),
        ("accept.max_per_problem=1", "accepted", 80),
        ("sft.max_length=100", "sft_tokens", 200 * 100 * 2),
        ("sft.max_steps=3", "sft_tokens", 27_000),
        ("sft.max_steps=3", "sft_steps", 3),
        ("sft.max_steps=300", "sft_steps", 8),
        ("sft.checkpoint_every=7", "student_bytes", 6e9 + 14e9),  # one at step 7: weights, and 12 bytes a parameter
        ("sft.checkpoint_every=1", "student_bytes", 6e9 + 2 * 14e9),  # two stay
        ("sft.checkpoint_every=7 sft.optimizer_state=bfloat16", "student_bytes", 6e9 + 10e9),
        ("distill.teacher_logits=stored", "training_memory", 22e9),  # grpo, with its reference
        ("distill.enabled=false grpo.kl_weight=0", "training_memory", 20e9),
        ("distill.enabled=false grpo.enabled=false sft.dtype=float32", "training_memory", 16e9),
        ("distill.enabled=false grpo.enabled=false sft.processes=8", "training_memory", 2e9),
        ("distill.enabled=false grpo.enabled=false sft.optimizer_state=bfloat16", "training_memory", 16e9),
        ("distill.enabled=false grpo.enabled=false sft.lora_rank=8", "training_memory", 2e9),
        ("sft.checkpoint_every=8", "student_bytes", 6e9),  # the last step writes the model alone
        ("grpo.dtype=float32", "student_bytes", 4e9 + 4e9),
        ("grpo.enabled=false", "student_bytes", 4e9),
        ("grpo.updates_per_step=2", "grpo_hours", 280 * SECOND),  # (2 x 6 + 2) x 10^9 x 10,000
        ("grpo.max_tokens=50", "grpo_tokens", 100 * 50),
        ("distill.teacher_logits=stored", "stored_bytes", 200 * 100 * 64 * 6),
        # 6 x 10^9 for each of 60,000, and 2 x 2 x 10^9 for 30,000: the teacher is asked once
        ("distill.teacher_logits=stored", "distill_hours", 960 * SECOND),
        ("grpo.enabled=false", "evaluate_samples", 20 * 4 * 4),
        ('evaluate.models=["student"]', "evaluate_samples", 20 * 4),
        ("evaluate.limit=5", "evaluate_samples", 5 * 4 * 5),
        ("plan.student_parameters=2e9", "sft_hours", 1440 * SECOND),
        ("plan.mean_completion_tokens=0", "completion_tokens", 400 * 1024),  # half of max_tokens
    ],
)
def test_figure_follows_the_recipe(override: str, key: str, value: float) -> None:
    assert planned(*override.split())[key] == pytest.approx(value)


def test_what_was_measured_replaces_what_was_assumed() -> None:
    measured = planned(measured={"tokens_per_second": 2000.0, "accepted_share": 0.25, "unrelated": 3.0})
    assert measured["generate_hours"] == pytest.approx(20 * SECOND)
    assert measured["accepted"] == 100
    text = render(measured)
    assert "2,000 tokens/s, measured by a pilot" in text
    assert "50 each, plan.mean_prompt_tokens" in text


def test_a_stage_that_does_not_run_costs_nothing() -> None:
    off = planned("sft.enabled=false", "distill.enabled=false", "grpo.enabled=false")
    for key in ("sft_hours", "student_bytes"):
        with pytest.raises(KeyError):
            off[key]
    assert off["total_hours"] == pytest.approx((40 + 16) * SECOND)


def test_disk_for_stored_log_probabilities_is_said_only_where_they_are_stored() -> None:
    with pytest.raises(KeyError):
        planned()["stored_bytes"]
    text = render(planned("distill.teacher_logits=stored", "distill.top_k=8"))
    assert "960 kB  48 bytes a token before compression, distill.top_k" in text


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    unknown = planned('problems.0={type = "hf", name = "org/set"}', "student.model=org/student")
    assert (unknown["problems"], unknown["samples"], unknown["sft_hours"], unknown["money"]) == (None,) * 4
    text = render(unknown)
    assert "set problems.0.limit or expected_rows" in text
    assert "set plan.student_parameters" in text


def test_no_rate_no_hours() -> None:
    without = planned("plan.tokens_per_second=0")
    assert without["completion_tokens"] == 40_000
    assert (without["generate_hours"], without["total_hours"], without["money"]) == (None,) * 3
    assert "set plan.tokens_per_second" in render(without)


def test_lines_of_a_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(f'{{"prompt": "{number}"}}\n' for number in range(7)))
    source = f'problems.0={{type = "jsonl", path = "{path}"}}'
    assert planned(source)["samples"] == 35
    path.unlink()
    with pytest.raises(ProblemsError, match="no such problems file"):
        planned(source)


def test_small_files_are_planned_as_a_run_loads_them(tmp_path: Path) -> None:
    """Rows that are no problems, rows that come twice, and questions held out by their hash."""
    path = tmp_path / "set.jsonl"
    rows = [*(f'{{"prompt": "What is {number} + 1?"}}' for number in range(30)), "no JSON", '{"prompt": ""}']
    path.write_text("\n".join([*rows, rows[0]]) + "\n")
    section = f'problems.0={{type = "jsonl", path = "{path}", held_out = 0.3}}'
    loaded = load.fn(Dataset.create(tmp_path / "data"), [parse_recipe(PAPER, [section]).problems[0].to_source()])
    whole = planned(section)
    assert (whole["train"], whole["held_out"]) == (loaded.train, loaded.held_out)
    assert (whole["problems"], loaded.held_out > 0) == (30, True)
    assert "set 30 (33 rows of the file)" in render(whole)
    assert whole.warnings == ()


def test_a_share_that_holds_nothing_out_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(f'{{"prompt": "What is {number} + 1?"}}\n' for number in range(7)))
    section = f'problems.0={{type = "jsonl", path = "{path}", held_out = 0.001}}'
    whole = planned(section)
    assert whole["held_out"] == 0
    assert "warning: set: held_out = 0.001 holds out none of its 7 problems" in render(whole)
    assert "warning" not in render(planned(section.replace("0.001", "0")))


def test_what_is_loaded_already_is_not_guessed_at() -> None:
    held_out = 'problems.0={type = "builtin", name = "products-1x1", limit = 7, held_out = 0.1}'
    assert planned(held_out).warnings
    assert planned(held_out, measured={"train": 6, "held_out": 1}).warnings == ()


@pytest.mark.parametrize(
    ("key", "share", "limit", "chance"),
    [
        ("held_out", 0.1, 7, "48%"),  # 0.9 to the power of 7
        ("validation", 0.5, 1, "50%"),
        ("held_out", 0.1, 44, None),  # 0.97 %
        ("held_out", 1.0, 1, None),
        ("held_out", 0.0, 7, None),
    ],
)
def test_a_share_that_may_hold_nothing_out_is_warned_of(key: str, share: float, limit: int, chance: str | None) -> None:
    """Of a built-in set, which is not read here: each question is kept apart with the chance that the share says."""
    section = f'problems.0={{type = "builtin", name = "products-1x1", limit = {limit}, {key} = {share}}}'
    warnings = planned(section).warnings
    told = f"products-1x1: {key} = {share:g} of {limit} problems keeps none with a chance of {chance}, for a question"
    assert [warning.startswith(told) for warning in warnings] == [True] * (chance is not None)


def test_what_a_run_has_loaded_is_known() -> None:
    whole = planned(measured={"train": 77.0, "held_out": 23.0})
    assert (whole["problems"], whole["held_out"], whole["samples"]) == (100, 23, 77 * 5)
    assert "about: problems.*.held_out" in render(planned())


def test_students_learn_from_prompts_without_the_worked_turns() -> None:
    """Of the demo's prompts of 166 tokens about 120 are worked turns; it took 12 steps of SFT and 11 of KL."""
    demo = load_recipe(ROOT / "deployments" / "recipes" / "demo.toml")
    pilot = {"mean_prompt_tokens": 165.6, "mean_completion_tokens": 21.6, "accepted_share": 0.1893, "train": 276.0}
    whole = plan(demo, pilot | {"held_out": 124.0})
    assert whole["sft_steps"] == pytest.approx(12, abs=2)
    assert whole["distill_steps"] == pytest.approx(11, abs=2)
    assert "0.189 of all, measured by a pilot" in render(whole)


def test_validation_is_planned_beside_training() -> None:
    """100 products: 20 held out, 10 for validation. 12 rounds, validated before the first, after 5, 10 and the last."""
    rounds = ["problems.0.validation=0.1", "grpo.steps=12", "grpo.checkpoint_every=5", "grpo.validation_samples=3"]
    watched, unwatched = (planned(*rounds, f"grpo.validate_every={every}") for every in (5, 0))
    assert (watched["held_out"], watched["validation"], watched["train"]) == (20, 10, 70)
    assert watched["grpo_validation"] == 10 * 3 * 4
    limited = planned(*rounds, "grpo.validate_every=5", "grpo.validation_limit=4")
    assert limited["grpo_validation"] == 4 * 3 * 4
    assert "grpo_validation" not in {figure.key for figure in unwatched.figures}
    hours = [each["total_hours"] or 0.0 for each in (watched, unwatched)]
    assert hours[0] - hours[1] == pytest.approx(watched["grpo_validation_hours"])
    # Three times the weights, in bfloat16: the best now, and to who resumes from either checkpoint.
    sizes = [each["student_bytes"] or 0.0 for each in (watched, unwatched)]
    assert sizes[0] - sizes[1] == pytest.approx(3 * 2 * 1e9)


def test_checkpoints_that_stay_are_as_many_as_a_recipe_keeps() -> None:
    """12 rounds with a checkpoint after every second: five are written, the last round writes the model."""
    rounds = ["grpo.steps=12", "grpo.checkpoint_every=2"]
    sizes = [planned(*rounds, f"grpo.keep_checkpoints={count}")["student_bytes"] or 0.0 for count in (1, 3, 9)]
    assert sizes[1] - sizes[0] == pytest.approx(2 * (2 + 12) * 1e9)
    assert sizes[2] - sizes[0] == pytest.approx(4 * (2 + 12) * 1e9)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-Math-1.5B", 1.5e9),
        ("meta-llama/Llama-3.1-8B", 8e9),
        ("builtin:smollm2-135m-instruct", 1.35e8),
        ("deepseek-ai/DeepSeek-R1", None),
        ("a100b2c", None),
    ],
)
def test_parameters_in_name(name: str, parameters: float | None) -> None:
    assert parameters_in_name(name) == parameters


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_have_a_whole_plan_at_once(path: Path) -> None:
    start = time.perf_counter()
    whole = plan(load_recipe(path))
    assert time.perf_counter() - start < 1.0
    assert [figure.key for figure in whole.figures if figure.value is None] == []
    assert all(figure.origin for figure in whole.figures)
    assert all(figure.label in render(whole) for figure in whole.figures)


def test_r1_recipes_plan_800_thousand_samples() -> None:
    for path in RECIPES:
        if path.stem.startswith("r1_"):
            whole = plan(load_recipe(path))
            assert (whole["samples"], whole["shards"], whole["held_out"]) == (800_000, 200, 530)


def test_the_recipe_for_one_gpu_is_an_hour_of_every_kind_of_stage_without_a_data_download() -> None:
    """6,300 problems, of which a tenth and a twentieth are kept apart, four answers each, two of them learned."""
    recipe = load_recipe(ROOT / "deployments" / "recipes" / "one_gpu_1_5b.toml")
    whole = plan(recipe)
    assert {source.type for source in recipe.problems} == {"builtin"}
    assert (whole["held_out"], whole["validation"], whole["train"]) == (630, 315, 5355)
    assert (whole["samples"], whole["accepted"]) == (5355 * 4, 5355 * 2)
    assert (whole["sft_steps"], whole["distill_steps"]) == (198, 99)
    assert whole["sft_validation"] == 128 * 2 * 5  # before the first step, after 50, 100, 150, and at the end
    assert whole["stored_bytes"] == 5355 * 2 * 150 * 64 * 6
    assert 0.3 < (whole["total_hours"] or 0) < 3
    for stage in (recipe.sft, recipe.distill, recipe.grpo):
        assert stage.enabled
        assert (stage.keep, stage.lora_rank) == ("best", 0)
    assert (recipe.distill.teacher_logits, recipe.grpo.rollouts) == ("stored", "vllm")


def test_a_cpu_recipe_speaks_of_machines() -> None:
    units = {figure.unit for figure in planned("teacher.gpus=0").figures}
    assert "machine h" in units
    assert "GPU h" not in units


def test_planning_does_not_load_what_it_does_not_need() -> None:
    heavy = ["torch", "prefect", "duckdb", "pyarrow", "reasoning_gym", "datasets"]
    code = (
        "import sys; from flows.recipe import load_recipe; from flows.planning import plan, render\n"
        f"render(plan(load_recipe({str(RECIPES[0])!r})))\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("replicas", "text"), [(1, "16 kB"), (100, "1.6 MB"), (4000, "64 MB")])
def test_disk_is_readable(replicas: int, text: str) -> None:
    """80 problems, 100 tokens each, 2 bytes a token."""
    line = next(line for line in render(planned(f"generate.replicas={replicas}")).splitlines() if "disk" in line)
    assert f" {text} " in line


def test_a_student_that_learns_from_its_own_texts() -> None:
    """2 x 5 x 10 rollouts of 100 tokens at 1,000 a second; (6 + 2 x 2) x 10^9 operations a token at half of 10^12."""
    sizes = [
        f"on_policy.{name}={value}" for name, value in (("steps", 2), ("problems_per_step", 5), ("group_size", 10))
    ]
    found = planned("on_policy.enabled=true", *sizes)
    assert found["on_policy_tokens"] == 10_000
    assert found["on_policy_rollout_hours"] == pytest.approx(10 * SECOND)
    assert found["on_policy_hours"] == pytest.approx(200 * SECOND)
    assert found["student_bytes"] == pytest.approx(4 * 2e9)
    assert found["evaluate_samples"] == 20 * 4 * 6
