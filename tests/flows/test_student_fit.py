"""A student that training would refuse, or train beyond what it can, is refused before anything is generated."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import student_fit
from flows.recipe import Recipe, parse_recipe
from flows.student_fit import require_fitting_student
from model.errors import RecipeError
from model.positions import longest_position, positions_in
from model.pretrained import folder_here, small_files
from model.same_tokens import token_difference
from tasks.store import PROBLEMS, Dataset
from tests.fake_endpoint import FakeEndpoint
from tests.flows.test_bad_input import assert_told
from tests.model.training.tiny import LETTERS, make_tokenizer, save_tiny

Command = Callable[..., subprocess.CompletedProcess[str]]
WriteRecipe = Callable[..., Path]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with the letters in another order."""
    folder = save_tiny(tmp_path_factory.mktemp("other"))
    make_tokenizer(LETTERS[::-1]).save_pretrained(folder)
    return folder


def recipe_of(student: Path | str, teacher: Path | str, *overrides: str) -> Recipe:
    """SFT alone, of a student with 256 positions."""
    values: dict[str, Any] = {
        "name": "fit",
        "teacher": {"type": "vllm", "model": str(teacher), "max_model_len": 256},
        "student": {"model": str(student)},
        "problems": [{"type": "builtin", "name": "sums-2x1"}],
        "generate": {"max_tokens": 128},
        "sft": {"max_length": 256},
        "distill": {"max_length": 256},
        "on_policy": {"max_tokens": 128},
        "evaluate": {"max_tokens": 128},
    }
    return parse_recipe(values, overrides)


def refusal(recipe: Recipe) -> str:
    with pytest.raises(RecipeError) as caught:
        require_fitting_student(recipe)
    (line,) = str(caught.value).splitlines()
    return line


# --- positions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sft.max_length=257"], "sft.max_length = 257 is more than the 256 positions of"),
        (["distill.max_length=300", "distill.enabled=true"], "distill.max_length = 300 is more than the 256"),
        (["grpo.max_tokens=256", "grpo.enabled=true"], "grpo.max_tokens = 256 leaves no room for a prompt in the 256"),
        (["on_policy.max_tokens=999", "on_policy.enabled=true"], "on_policy.max_tokens = 999 leaves no room"),
        (["student.max_model_len=300"], "student.max_model_len = 300 is more than the 256 positions"),
        (["teacher.max_model_len=300"], "student.max_model_len = 0, which stands for 300, is more than the 256"),
        (
            [
                "sft.validate_every=5",
                "problems.0.validation=0.1",
                "evaluate.models=['teacher']",
                "teacher.max_model_len=512",
                "evaluate.max_tokens=256",
            ],
            "evaluate.max_tokens = 256 leaves no room",
        ),
    ],
)
def test_a_length_beyond_the_students_positions(student: Path, overrides: list[str], says: str) -> None:
    line = refusal(recipe_of(student, "org/teacher", *overrides))
    assert says in line
    assert line.endswith(("lower it, or take a student with more", "max_model_len = 256, or take another student"))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["distill.max_length=999", "on_policy.max_tokens=999", "grpo.max_tokens=999"],  # these do not run
        ["teacher.max_model_len=999", "student.max_model_len=256"],
        ["teacher.max_model_len=999", "evaluate.models=['teacher', 'grpo']"],
        ["teacher.max_model_len=999", "evaluate.models=['teacher']", "evaluate.max_tokens=400"],
    ],
)
def test_lengths_within_the_students_positions(student: Path, overrides: list[str]) -> None:
    require_fitting_student(recipe_of(student, "org/teacher", *overrides))


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 2048}, "max_position_embeddings": 7}, 2048),
        ({"hidden_size": 64}, None),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 8.0}}, 32_768),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 4096),
        # Llama 3.1, DeepSeek and Gemma 3 name what scaling leads to, Qwen's cards what was there before.
        ({"max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131_072),
        (
            {
                "max_position_embeddings": 163_840,
                "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            },
            163_840,
        ),
        (
            {
                "max_position_embeddings": 32_768,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
            },
            131_072,
        ),
        (
            {
                "max_position_embeddings": 131_072,
                "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}},
            },
            131_072,
        ),
    ],
)
def test_positions_in_a_config(config: dict[str, Any], positions: int | None) -> None:
    assert longest_position(config) == positions


def test_a_config_that_is_none(tmp_path: Path) -> None:
    assert positions_in(tmp_path) is None
    (tmp_path / "config.json").write_text("[no JSON")
    assert positions_in(tmp_path) is None


def test_too_long_a_text_ends_a_plan_and_a_run_in_one_line(
    stillhouse: Command,
    cli: Command,
    write_recipe: WriteRecipe,
    endpoint: FakeEndpoint,
    student: Path,
    tmp_path: Path,
) -> None:
    recipe = write_recipe(endpoint.url, problems=4)
    words = ["--set", f"student.model={student}", "--set", "sft.enabled=true"]
    assert_told(cli("plan", recipe, *words), "sft.max_length = 4096 is more than the 256 positions")
    assert_told(stillhouse("run", recipe, *words), "sft.max_length = 4096 is more than the 256 positions")
    assert (endpoint.requests, Dataset(tmp_path / "dataset").manifests(PROBLEMS)) == ([], [])


# --- tokens ----------------------------------------------------------------------------------------


def test_a_teacher_with_other_tokens_is_refused_where_distributions_are_compared(student: Path, other: Path) -> None:
    line = refusal(recipe_of(student, other, "distill.enabled=true"))
    assert line.startswith(f"distill: teacher {other} and student {student} have different vocabularies")
    assert 'write distill.enabled = false (sft alone), or distill.divergence = "uld"' in line
    stored = refusal(recipe_of(student, other, "distill.enabled=true", "distill.teacher_logits=stored"))
    assert stored.endswith('distill.divergence = "uld" and distill.teacher_logits = "live"')
    line = refusal(recipe_of(student, other, "on_policy.enabled=true"))
    assert "on_policy needs one tokenizer: write on_policy.enabled = false" in line


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["distill.enabled=true", "distill.divergence=uld"],
        ["distill.enabled=true", "distill.teacher={student}"],
        ["on_policy.enabled=true", "on_policy.teacher={student}"],
    ],
)
def test_what_needs_no_common_tokens_may_have_others(student: Path, other: Path, overrides: list[str]) -> None:
    require_fitting_student(recipe_of(student, other, *(text.format(student=student) for text in overrides)))


def test_an_endpoint_is_believed_to_have_the_tokenizer_that_is_named(student: Path, other: Path) -> None:
    distill = ["distill.enabled=true", "distill.teacher_logits=stored", "student.max_model_len=256"]
    endpoint = 'teacher={{type = "openai", model = "m", urls = ["http://h/v1"], tokenizer = "{}"}}'
    require_fitting_student(recipe_of(student, other, endpoint.format(""), *distill))
    assert "different vocabularies" in refusal(recipe_of(student, other, endpoint.format(other), *distill))


@pytest.mark.parametrize("fetch", [False, True])
def test_what_cannot_be_read_here_is_not_judged(student: Path, tmp_path: Path, fetch: bool) -> None:
    kl = ["distill.enabled=true", "on_policy.enabled=true"]
    require_fitting_student(recipe_of(student, "org/teacher", *kl), fetch=fetch)
    require_fitting_student(recipe_of("org/student", student, *kl), fetch=fetch)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    require_fitting_student(recipe_of(student, tmp_path, *kl), fetch=fetch)


def test_one_model_is_not_compared_with_itself(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_fit, "load_tokenizer", lambda *_: pytest.fail("a tokenizer was read"))
    require_fitting_student(recipe_of(student, student, "distill.enabled=true", "on_policy.enabled=true"))


def test_tokens_of_one_vocabulary_may_be_split_otherwise() -> None:
    from tokenizers import pre_tokenizers

    one, whole_words = make_tokenizer(), make_tokenizer()
    whole_words.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert token_difference(one, make_tokenizer(), ["a b", "ab"]) is None
    assert token_difference(one, whole_words, ["a", "ab"]) == "split 'ab' into different tokens"


def test_models_that_would_have_to_be_fetched_or_converted_are_not_here(student: Path, tmp_path: Path) -> None:
    assert folder_here(str(student)) == student.resolve()
    assert folder_here("builtin:smollm2-135m-instruct", cache_dir=tmp_path) is None
    assert folder_here("builtin:no-such-model") is None
    assert folder_here("org/student") is None
    assert folder_here("no hub has such a name") is None
    assert folder_here(str(tmp_path / "none")) is None
    assert small_files("org/student") is None
    assert small_files(str(tmp_path / "none")) is None


def test_other_tokens_end_a_plan_and_a_run_in_one_line(
    stillhouse: Command,
    cli: Command,
    write_recipe: WriteRecipe,
    endpoint: FakeEndpoint,
    other: Path,
    tmp_path: Path,
) -> None:
    recipe = write_recipe(endpoint.url, problems=4)
    words = ["--set", "distill.enabled=true", "--set", f"distill.teacher={other}", "--set", "distill.init=student"]
    assert_told(cli("plan", recipe, *words), "different vocabularies", "distill.enabled = false")
    assert_told(stillhouse("run", recipe, *words), "different vocabularies", "distill.enabled = false")
    assert (endpoint.requests, Dataset(tmp_path / "dataset").manifests(PROBLEMS)) == ([], [])
