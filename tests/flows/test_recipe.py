"""Recipes: what is read, what is refused, and that a refusal's first line says which key and what to do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

from flows.recipe import Recipe, load_recipe, parse_recipe
from flows.recipe_sections import CHECK_NAMES
from model.errors import RecipeError
from tasks.builtin_problems import BUILTIN_SETS

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "deployments" / "recipes").glob("*.toml"))

SMALL = """
name = "small"
[teacher]
type = "vllm"
model = "org/teacher"
[student]
model = "org/student"
[[problems]]
type = "builtin"
name = "sums-2x1"
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def refusal(path: Path | str, *overrides: str) -> str:
    """First line of the error that these overrides cause."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()[0]


def appended(path: Path, text: str) -> Path:
    path.write_text(path.read_text() + text)
    return path


# --- reading ---------------------------------------------------------------------------------------


def test_small_recipe_takes_defaults_for_the_rest(small: Path) -> None:
    recipe = load_recipe(small)
    assert recipe.dataset == "data/small"
    assert recipe.teacher.model == "org/teacher"
    assert recipe.generate.top_p == 0.95
    assert (recipe.sft.enabled, recipe.distill.enabled, recipe.grpo.enabled) == (True, False, False)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_survive_their_resolved_form(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert parse_recipe(recipe.resolved()) == recipe


def test_r1_recipes_have_r1s_learning_rates() -> None:
    rates = {path.stem: load_recipe(path).sft.learning_rate for path in RECIPES}
    assert rates["r1_distill_qwen_1_5b"] == 1e-4
    assert rates["r1_distill_llama_8b"] == 5e-5


def test_r1_recipes_differ_in_nothing_that_a_dataset_is_bound_to() -> None:
    qwen, llama = (load_recipe(path) for path in RECIPES if path.stem.startswith("r1_"))
    assert qwen.fingerprint_fields() == llama.fingerprint_fields()
    assert qwen.problems == llama.problems


def test_recipe_is_final(small: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(small).generate.replicas = 8  # type: ignore[misc]


# --- overrides -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("generate.replicas=8", "generate", "replicas", 8),
        ("generate.temperature=1", "generate", "temperature", 1.0),
        ("accept.distinct=false", "accept", "distinct", False),
        ("accept.require=['finish|math', 'format']", "accept", "require", ("finish|math", "format")),
        ("accept.problems=['audit']", "accept", "problems", ("audit",)),
        ("accept.pass_rate=[0.1, 0.9]", "accept", "pass_rate", (0.1, 0.9)),
        ("student.model=Qwen/Qwen2.5-Math-1.5B", "student", "model", "Qwen/Qwen2.5-Math-1.5B"),
        ('student.model="quoted"', "student", "model", "quoted"),
        ("accept.where=completion_tokens > 5", "accept", "where", "completion_tokens > 5"),
        ("template.prefill=", "template", "prefill", ""),
        (" generate.top_p = 1", "generate", "top_p", 1.0),
    ],
)
def test_override(small: Path, override: str, section: str, field: str, value: Any) -> None:
    assert getattr(getattr(load_recipe(small, [override]), section), field) == value


def test_override_reaches_into_lists_and_the_last_one_wins(small: Path) -> None:
    recipe = load_recipe(small, ["problems.0.limit=5", "problems.0.limit=6", "evaluate.k=[1]"])
    assert recipe.problems[0].limit == 6
    assert recipe.evaluate.k == (1,)


def test_override_of_a_whole_list_item(small: Path) -> None:
    recipe = load_recipe(small, ['problems.0={type = "jsonl", path = "a.jsonl"}'])
    assert recipe.problems[0].type == "jsonl"


def test_an_override_cannot_smuggle_in_a_second_key(small: Path) -> None:
    assert load_recipe(small, ["student.model=1\nseed = 3"]).seed == 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("generate.replicas", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("generate..replicas=3", "write it as section.key=value"),
        ("problems.4.limit=5", "`problems` is a list of one item, 0; did you mean `problems.0.limit`?"),
        ("problems.4=5", "`problems` is a list of one item, 0; did you mean `problems.0`?"),
        ("problems.limit=5", "`problems` is a list of one item, 0; did you mean `problems.0.limit`?"),
        ("problems.validation=0.1", "did you mean `problems.0.validation`?"),
        ("problems.columns.gold=a", "did you mean `problems.0.columns.gold`?"),
        ("validation=0.1", "unknown key `validation`; did you mean `problems.0.validation`?"),
        ("assistant=a", "unknown key `assistant`; did you mean `template.shots.0.assistant`?"),
        ("name.first=5", "no section before `first`"),
        ("generate.replicsa=8", "unknown key `generate.replicsa`; did you mean `generate.replicas`?"),
    ],
)
def test_bad_override(small: Path, override: str, says: str) -> None:
    assert says in refusal(small, override)


def test_an_override_of_a_list_says_how_long_it_is(small: Path) -> None:
    """The empty one stands in the file: an override of nothing in it has no item to name."""
    path = appended(small, '[[problems]]\ntype = "builtin"\nname = "sums-3x1"\n[template]\nshots = []\n')
    assert "`problems` is a list of the items 0 to 1; did you mean `problems.0.limit`?" in refusal(
        path, "problems.7.limit=5"
    )
    line = refusal(path, "template.shots.0.user=a")
    assert line.endswith("`template.shots` is an empty list; set the whole of it: template.shots=[…]")


# --- refusals --------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.toml") == f"no such recipe: {tmp_path / 'none.toml'}"


def test_folder(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


def test_not_toml_names_line_and_column(small: Path) -> None:
    lines = len(SMALL.splitlines())
    assert f"is not TOML: Expected '=' after a key in a key/value pair (at line {lines + 1}" in refusal(
        appended(small, "oh dear\n")
    )


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "caf\xe9"')
    assert "not a text file in UTF-8 (byte 11)" in refusal(path)


def test_empty_file_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).splitlines() == [
        f"{path}: `name` is missing",
        "  also: `teacher` is missing",
        "  also: `student` is missing",
        "  also: `problems` is missing",
    ]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("generate.temprature=1", "unknown key `generate.temprature`; did you mean `generate.temperature`?"),
        ("temperature=1", "unknown key `temperature`; did you mean `generate.temperature`?"),
        ("teacher.modle=x", "unknown key `teacher.modle`; did you mean `teacher.model`?"),
        ("teacher.urls=[]", "unknown key `teacher.urls`; it belongs to another `teacher.type`"),
        ("problems.0.path=x", "unknown key `problems.0.path`; it belongs to another `problems.0.type`"),
        ("grpo.epochs=3", "unknown key `grpo.epochs`; did you mean `sft.epochs`?"),
        ("problems.0.limt=3", "unknown key `problems.0.limt`; did you mean `problems.0.limit`?"),
        ("sfd.epochs=3", "unknown key `sfd`; did you mean `sft`?"),
        ("grpo.zzz=3", "unknown key `grpo.zzz`; the nearest is `grpo."),
        (
            'template.shots=[{user="a", assistant="b", asistant="c"}]',
            "did you mean `template.shots.0.assistant`?",
        ),
        ("generate.replicas=four", "generate.replicas = 'four': input should be a valid integer"),
        ("generate.replicas=0", "generate.replicas = 0: input should be greater than or equal to 1"),
        ("generate.temperature=nan", "generate.temperature = nan: input should be a finite number"),
        ("teacher.max_num_seqs=-1", "teacher.max_num_seqs = -1: input should be greater"),
        ("teacher.type=llama", "teacher.type = 'llama': should be one of 'vllm', 'openai'"),
        ("teacher={model = 'm'}", "`teacher.type` is missing"),
        ("problems.0={name = 'sums-2x1'}", "`problems.0.type` is missing"),
        ("sft=3", "sft = 3: should be a section with keys of its own"),
        ("teacher=3", "teacher"),
        ("problems=3", "problems = 3: input should be a valid list"),
        ("name=a/b", "name = 'a/b': string should match pattern"),
        ("problems=[]", "problems: list should have at least 1 item"),
        ("problems.0.name=sums-9x9", "problems.0.name = 'sums-9x9': input should be 'sums-2x1'"),
        ("verify.checks=['maths']", "verify.checks: there is no check 'maths' (there are: finish"),
        ("verify.checks=['math', 'math']", "verify.checks: names a check twice"),
        ("accept.require=['judge']", "accept.require names `judge`, which is not in verify.checks"),
        ("accept.require=['pkg.mod:f']", "accept.require names `pkg.mod:f`: give the `name`"),
        ("accept.require=['math|judge']", "accept.require names `judge`, which is not in verify.checks"),
        ("accept.require=['math|']", "accept.require names no check left or right of a `|`: math|"),
        ("accept.problems=['audits']", "accept.problems.0 = 'audits': input should be 'audit', 'duplicate' or"),
        ("accept.keep=longest", "accept.keep = 'longest': input should be 'first', 'shortest' or 'diverse'"),
        ("accept.keep=diverse", 'accept.keep = "diverse" ranks by the check `duplicate`: add it to verify.checks'),
        ("accept.keep=shortest", 'accept.keep = "shortest" chooses nothing without accept.max_per_problem'),
        ("accept.pass_rate=[0.9, 0.1]", "accept.pass_rate runs from low to high, not from 0.9 to 0.1"),
        ("accept.pass_rate=[0.9]", "accept.pass_rate: list should have at least 2 items"),
        ("grpo.overlong_tokens=2048", "overlong_tokens = 2048 is more than max_tokens = 1024"),
        ("grpo.objective=ppo", "grpo.objective = 'ppo': input should be 'grpo', 'gspo' or 'cispo'"),
        ("grpo.rollout_urls=['http://a/v1']", 'rollout_urls is for rollouts = "vllm"'),
        (
            "sft.tokens_per_micro_batch=100",
            "sft.max_length = 4096 is more than sft.tokens_per_micro_batch = 100",
        ),
        ("grpo.mismatch=tis", 'mismatch is for rollouts = "vllm"'),
        ("grpo.rollouts_ahead=1", 'rollouts_ahead is for rollouts = "vllm"'),
        ("on_policy.rollouts_ahead=2", "on_policy.rollouts_ahead = 2: input should be less than or equal to 1"),
        ("on_policy.divergence=uld", "on_policy.divergence = 'uld': input should be 'reverse', 'forward' or 'jsd'"),
        ("evaluate.k=[8]", "evaluate.k asks for pass@8, but evaluate.replicas = 4"),
        ("generate.max_tokens=4096", "generate.max_tokens = 4096 leaves no room for a prompt"),
        ("student.max_model_len=2048", "evaluate.max_tokens = 2048 leaves no room for a prompt in student.max_model"),
    ],
)
def test_refused_value(small: Path, override: str, says: str) -> None:
    assert says in refusal(small, override)


def test_stages_that_validate_ask_about_the_same_problems(small: Path) -> None:
    """The teacher's line is drawn beside all of their curves."""
    watched = ["problems.0.validation=0.1", "sft.validate_every=5", "grpo.validate_every=5", "grpo.enabled=true"]
    with pytest.raises(
        RecipeError, match=r"sft\.validation_limit = 50, grpo\.validation_limit = 0: the teacher's line"
    ):
        load_recipe(small, [*watched, "sft.validation_limit=50"])
    load_recipe(small, [*watched, "sft.validation_limit=50", "grpo.validation_limit=50"])


def test_a_check_of_ones_own_is_required_by_a_name_that_only_its_import_tells(small: Path) -> None:
    own = "verify.checks=['finish', 'pkg.mod:factory']"
    assert load_recipe(small, [own, "accept.require=['finish', 'mine']"]).accept.require == ("finish", "mine")
    assert "accept.require names `math`" in refusal(small, own, "accept.require=['math']")


def test_samples_may_be_kept_by_how_unlike_they_are_once_that_is_checked(small: Path) -> None:
    checks = "verify.checks=['finish', 'format', 'math', 'duplicate']"
    recipe = load_recipe(small, [checks, "accept.keep=diverse", "accept.max_per_problem=2"])
    assert (recipe.accept.keep, recipe.verify.duplicate.threshold) == ("diverse", 0.8)


def test_sorted_probabilities_have_no_temperature(small: Path) -> None:
    assert load_recipe(small, ["distill.divergence=uld"]).distill.uld_weight == 1.5
    assert "write distill.temperature = 1" in refusal(small, "distill.divergence=uld", "distill.temperature=2")


def test_rollouts_of_older_weights_are_weighed(small: Path) -> None:
    ahead = ["grpo.rollouts=vllm", "grpo.rollouts_ahead=1"]
    assert 'set mismatch = "tis" or "icepop"' in refusal(small, *ahead)
    assert load_recipe(small, [*ahead, "grpo.mismatch=tis"]).grpo.rollouts_ahead == 1
    assert "exclude each other" in refusal(small, *ahead, "grpo.mismatch=tis", "grpo.max_refills=1")
    assert load_recipe(small, ["on_policy.rollouts=vllm", "on_policy.rollouts_ahead=1"]).on_policy.rollouts_ahead == 1


def test_a_teacher_beside_the_student_has_weights(small: Path) -> None:
    endpoint = 'teacher={type = "openai", model = "m", urls = ["http://h/v1"]}'
    assert "set on_policy.teacher" in refusal(small, endpoint, "on_policy.enabled=true")
    assert "set distill.teacher, or" in refusal(small, endpoint, "distill.enabled=true")
    assert load_recipe(small, [endpoint, "distill.enabled=true", "distill.teacher_logits=stored"]).distill.enabled
    recipe = load_recipe(small, [endpoint, "on_policy.enabled=true", "on_policy.teacher=org/other"])
    assert recipe.on_policy.init == "sft"


@pytest.mark.parametrize("stage", ["distill", "on_policy", "grpo"])
def test_stage_that_starts_from_a_stage_that_does_not_run(small: Path, stage: str) -> None:
    line = refusal(small, "sft.enabled=false", f"{stage}.enabled=true", f"{stage}.init=sft")
    assert f'{stage}.init = "sft", but sft.enabled = false' in line


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("distill.divergence=reverse", 'write distill.divergence = "forward", or distill.teacher_logits = "live"'),
        ("distill.divergence=jsd", 'distill.divergence = "jsd" needs the teacher\'s whole distributions'),
        ("distill.temperature=2", 'write distill.temperature = 1, or distill.teacher_logits = "live"'),
        ("distill.top_k=0", "distill.top_k = 0: input should be greater than or equal to 1"),
        ("distill.top_k=2000", "distill.top_k = 2000: input should be less than or equal to 1024"),
    ],
)
def test_what_stored_log_probabilities_cannot_teach(small: Path, override: str, says: str) -> None:
    stored = "distill.teacher_logits=stored"
    assert load_recipe(small, [stored]).distill.top_k == 64
    line = refusal(small, stored, override)
    assert says in line
    assert len(line.splitlines()) == 1


def test_a_disabled_stage_may_start_from_a_disabled_stage(small: Path) -> None:
    assert not load_recipe(small, ["sft.enabled=false"]).grpo.enabled


def test_duplicate_source(small: Path) -> None:
    path = appended(small, '[[problems]]\ntype = "builtin"\nname = "sums-2x1"\n')
    assert "problems.1 has the same label `sums-2x1` as problems.0" in refusal(path)
    assert load_recipe(path, ["problems.1.source=again"]).problems[1].source == "again"


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("(", "not a regular expression"), ("abc", "exactly one group"), ("(a)(b)", "this has 2")],
)
def test_gold_pattern(small: Path, pattern: str, says: str) -> None:
    item = f"problems.0={{type = 'jsonl', path = 'a', gold_pattern = '{pattern}'}}"
    assert says in refusal(small, item)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", ""])
def test_teacher_url(small: Path, url: str) -> None:
    line = refusal(small, f'teacher={{type = "openai", model = "m", urls = ["{url}"]}}')
    assert f"teacher.urls: {url!r} is not an http(s) URL" in line


def test_key_is_never_asked_for_itself(small: Path) -> None:
    item = 'teacher={type = "openai", model = "m", urls = ["http://h/v1"], api_key_env = "sk-123"}'
    assert "teacher.api_key_env = 'sk-123'" in refusal(small, item)


def test_several_mistakes_are_all_listed(small: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(small, ["generate.replicas=0", "sft.epochs=0"])
    first, second = str(caught.value).splitlines()
    assert "generate.replicas" in first
    assert second.startswith("  also: sft.epochs")


@pytest.mark.parametrize("override", ["problems.0.limt=3", "problems.0.limit=-1", "problems.0.type=tsv"])
def test_a_wrong_item_does_not_make_its_list_too_short(small: Path, override: str) -> None:
    """pydantic says so beside the item's own mistake: it had dropped the item before it counted."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(small, [override])
    (only,) = str(caught.value).splitlines()
    assert override.partition("=")[0] in only


# --- what others build on --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("generate.max_tokens=100", True),
        ("generate.replicas=9", True),
        ("generate.shard_size=9", True),
        ("problems.0.limit=9", True),
        ("accept.distinct=false", True),
        ("sft.epochs=9", True),
        ("seed=9", True),
        ("teacher.model=other", False),
        ("teacher.revision=v2", False),
        ("template.prefill=", False),
        ("generate.temperature=1.0", False),
        ("generate.top_p=1.0", False),
    ],
)
def test_what_a_dataset_is_bound_to(small: Path, override: str, same: bool) -> None:
    before, after = (load_recipe(small, chosen).fingerprint_fields() for chosen in ([], [override]))
    assert (before == after) is same


def test_every_field_says_what_it_means() -> None:
    schema = Recipe.model_json_schema()
    sections = {"Recipe": schema, **schema["$defs"]}
    bare = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, value in section.get("properties", {}).items()
        if not value.get("description")
    ]
    assert bare == []
    assert len(sections) > 15


def test_check_and_set_names_are_those_of_the_code() -> None:
    from model.rewards.registry import CHECKS

    assert set(CHECK_NAMES) == set(CHECKS)
    names = Recipe.model_json_schema()["$defs"]["BuiltinProblems"]["properties"]["name"]["enum"]
    assert set(names) == set(BUILTIN_SETS)


def test_choices_of_the_grpo_section_are_those_of_the_code() -> None:
    from model.training.job import GRPOJob

    section, hints = Recipe.model_json_schema()["$defs"]["GRPOSection"]["properties"], get_type_hints(GRPOJob)
    for name in ("objective", "advantage", "kl_estimator", "kl_in", "normalise", "schedule", "rollouts", "mismatch"):
        assert section[name]["enum"] == [choice.value for choice in hints[name]], name


def test_choices_of_the_on_policy_section_are_those_of_the_code() -> None:
    from model.training.job import OnPolicyJob

    section, hints = Recipe.model_json_schema()["$defs"]["OnPolicySection"]["properties"], get_type_hints(OnPolicyJob)
    assert {*section["divergence"]["enum"], "uld"} == {choice.value for choice in hints["divergence"]}
    assert (
        not section.keys()
        - {field.name for field in dataclasses.fields(OnPolicyJob)}
        - {"enabled", "attempts", "pass_rate"}
    )


def test_template_arguments() -> None:
    values = {"system": "", "shots": [{"user": "u", "assistant": "a"}]}
    recipe = parse_recipe({**_minimal(), "template": values})
    kwargs = recipe.template.to_kwargs()
    assert kwargs["system"] is None
    assert kwargs["shots"] == (("u", "a"),)
    assert kwargs["stop"] == ("</answer>",)


def test_recipe_is_a_prefect_parameter() -> None:
    from prefect.utilities.callables import parameter_schema

    def flow(recipe: Recipe) -> None: ...

    schema = parameter_schema(flow).model_dump_for_openapi()
    assert schema["definitions"]["GenerateSection"]["properties"]["replicas"]["description"] == "Samples per problem."


def test_importing_recipe_and_plan_loads_nothing_heavy_and_is_quick() -> None:
    heavy = ["torch", "prefect", "vllm", "duckdb", "pyarrow", "datasets", "reasoning_gym", "rich", "numpy"]
    code = (
        "import sys, time, pydantic, pydantic.main, pydantic.fields, pydantic.functional_validators\n"
        "start = time.process_time()\n"
        "import flows.recipe, flows.planning\n"
        f"print(time.process_time() - start, [m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.split(maxsplit=1)
    assert loaded.strip() == "[]"
    # 0.08 s when measured; the bound leaves room for a busy machine.
    assert float(seconds) < 0.5


def _minimal() -> dict[str, Any]:
    return {
        "name": "small",
        "teacher": {"type": "vllm", "model": "t"},
        "student": {"model": "s"},
        "problems": [{"type": "builtin", "name": "sums-2x1"}],
    }
