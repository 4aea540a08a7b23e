"""The recipe: the one TOML file that says how a dataset and its students are made.

`load_recipe` reads, overrides and validates; whatever is wrong becomes a RecipeError whose first line
names the dotted key and, for an unknown one, the nearest that exists. People write only what differs from
the defaults; `Recipe.resolved()` is the whole. A `Recipe` is a plain pydantic model and so a Prefect flow
parameter as it is.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, ValidationError, model_validator

from flows.recipe_sections import (
    CHECK_NAMES,
    AcceptSection,
    AuditSection,
    DistillSection,
    EvaluateSection,
    GenerateSection,
    GRPOSection,
    OnPolicySection,
    OptimiserSection,
    PlanSection,
    PricesSection,
    Problems,
    Section,
    SFTSection,
    StudentSection,
    Teacher,
    TemplateSection,
    VerifySection,
    VLLMTeacher,
)
from flows.stages import TRAINED
from model.errors import RecipeError
from model.rewards.rule import checks_of
from model.sampling.biased import biased_argument

ACCURACY = ("math", "code")  # the checks that compare with a gold answer

_INPUT_CHARS = 60


class Recipe(Section):
    """How a dataset and its students are made."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the recipe and of its Prefect flow runs."""
    dataset: str = Field("", max_length=4096)
    """Folder of the dataset, relative to the working directory; empty: `data/` and the name."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of training and evaluation (a sample's seed comes from its id)."""
    teacher: Teacher
    """The model that answers the problems."""
    student: StudentSection
    """The model that learns from the accepted answers."""
    problems: tuple[Problems, ...] = Field(min_length=1)
    """Sources of problems."""
    template: TemplateSection = TemplateSection()
    """The wording around a problem."""
    generate: GenerateSection = GenerateSection()
    """Sampling from the teacher."""
    verify: VerifySection = VerifySection()
    """Checking every sample."""
    audit: AuditSection = AuditSection()
    """The checks on trial with gold and with corrupted answers."""
    accept: AcceptSection = AcceptSection()
    """Which samples are accepted."""
    sft: SFTSection = SFTSection()
    """Supervised fine-tuning on the accepted samples."""
    distill: DistillSection = DistillSection()
    """KL to the teacher's token distributions."""
    on_policy: OnPolicySection = OnPolicySection()
    """The same on the student's own texts."""
    grpo: GRPOSection = GRPOSection()
    """Reinforcement learning with verifiers as rewards."""
    evaluate: EvaluateSection = EvaluateSection()
    """Measurement on held-out problems."""
    prices: PricesSection = PricesSection()
    """What an hour costs, for `stillhouse plan`."""
    plan: PlanSection = PlanSection()
    """Assumptions of `stillhouse plan`."""

    @model_validator(mode="before")
    @classmethod
    def _default_dataset(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("dataset") and isinstance(values.get("name"), str):
            return {**values, "dataset": f"data/{values['name']}"}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        for conflict in _conflicts(self):
            raise ValueError(conflict)
        return self

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as JSON values; `parse_recipe` of it is this recipe again."""
        return self.model_dump(mode="json")

    def student_room(self) -> int:
        """Longest prompt plus completion, in tokens, of the engine in which students are measured."""
        like = self.teacher if isinstance(self.teacher, VLLMTeacher) else VLLMTeacher(model=self.student.model)
        return self.student.max_model_len or like.max_model_len

    def evaluates_students(self) -> bool:
        """Whether a run measures any model but the teacher."""
        running = {"teacher": False, "student": True} | {stage.value: getattr(self, stage).enabled for stage in TRAINED}
        return any(running[model] for model in self.evaluate.models)

    def has_audit(self) -> bool:
        """Whether a run of the recipe audits: unless that is switched off, or no check compares with a gold answer."""
        return self.audit.enabled and bool(self.audit.checks or set(ACCURACY) & set(self.verify.checks))

    def audited_checks(self) -> list[str]:
        """The checks that compare with a gold answer (`math`, `code`), and those that `[audit]` names.

        RecipeError where there is none.
        """
        names = [name for name in self.verify.checks if name in ACCURACY]
        names += [name for name in self.audit.checks if name not in names]
        if not names:
            remedy = 'put "math" or "code" into verify.checks, or one of your own into audit.checks'
            raise RecipeError(f"there is no check to audit: {remedy}")
        return names

    def fingerprint_fields(self) -> dict[str, Any]:
        """What a dataset is bound to, by dotted key: all that shapes the distribution of its samples.

        The rest (limits, replicas, more problems, selection, training) may change over a dataset's life.
        """
        fields: dict[str, Any] = {
            "teacher.model": self.teacher.model,
            "teacher.revision": self.teacher.revision,
        }
        template = self.template.model_dump(mode="json")
        fields.update({f"template.{key}": value for key, value in template.items()})
        fields["generate.temperature"] = self.generate.temperature
        fields["generate.top_p"] = self.generate.top_p
        return fields


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file, with `section.key=value` overrides (values as in TOML; bare words are text).

    Raises RecipeError: no such file, not TOML, unknown or ill-typed key, sections that do not fit together.
    """
    return parse_recipe(_read_toml(Path(path)), overrides, origin=str(path))


def parse_recipe(values: Mapping[str, Any], overrides: Sequence[str] = (), origin: str = "recipe") -> Recipe:
    """The recipe in a mapping (parsed TOML, a `recipe.json`). Raises RecipeError as `load_recipe` does."""
    merged: dict[str, Any] = _copy(dict(values))
    for override in overrides:
        _override(merged, override)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(_explain(error, merged, origin)) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(f"no such recipe: {path}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; a recipe is a TOML file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a text file in UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error


# --- what spans two sections -----------------------------------------------------------------------


def _conflicts(recipe: Recipe) -> Iterator[str]:
    """One sentence, dotted key first, for each pair of settings that cannot both be meant."""
    yield from _selection_conflicts(recipe)
    yield from _length_conflicts(recipe)
    yield from _budget_conflicts(recipe)
    yield from _lent_conflicts(recipe)
    yield from _stage_conflicts(recipe)
    yield from _source_conflicts(recipe)
    yield from _validation_conflicts(recipe)


def _selection_conflicts(recipe: Recipe) -> Iterator[str]:
    accept, checks = recipe.accept, recipe.verify.checks
    # A check of one's own says its name only once it is imported, which reading a recipe must not do.
    any_name = any(":" in check for check in checks)
    for check in checks_of(accept.require):
        if not check:
            yield f"accept.require names no check left or right of a `|`: {', '.join(accept.require)}"
        elif ":" in check:
            yield f"accept.require names `{check}`: give the `name` that this check's verdicts carry"
        elif check not in checks and not (any_name and check not in CHECK_NAMES):
            yield f"accept.require names `{check}`, which is not in verify.checks ({', '.join(checks)})"
    if accept.keep == "diverse" and "duplicate" not in checks:
        yield 'accept.keep = "diverse" ranks by the check `duplicate`: add it to verify.checks'
    if accept.keep != "first" and not accept.max_per_problem:
        yield f'accept.keep = "{accept.keep}" chooses nothing without accept.max_per_problem: set both'
    low, high = accept.pass_rate
    if low > high:
        yield f"accept.pass_rate runs from low to high, not from {low} to {high}"
    for k in recipe.evaluate.k:
        if k > recipe.evaluate.replicas:
            yield f"evaluate.k asks for pass@{k}, but evaluate.replicas = {recipe.evaluate.replicas} samples"


def _length_conflicts(recipe: Recipe) -> Iterator[str]:
    limit, room = recipe.evaluate.max_tokens, recipe.student_room()
    own_room = recipe.student.max_model_len or not isinstance(recipe.teacher, VLLMTeacher)
    if own_room and recipe.evaluates_students() and limit >= room:
        yield f"evaluate.max_tokens = {limit} leaves no room for a prompt in student.max_model_len = {room}"
    if not isinstance(recipe.teacher, VLLMTeacher):
        return
    room = recipe.teacher.max_model_len
    for section, limit in (
        ("generate", recipe.generate.max_tokens),
        ("evaluate", recipe.evaluate.max_tokens),
    ):
        if limit >= room:
            message = f"{section}.max_tokens = {limit} leaves no room for a prompt"
            yield f"{message} in teacher.max_model_len = {room}"


def _budget_conflicts(recipe: Recipe) -> Iterator[str]:
    """A row that is longer than what runs at once would break the bound of memory; rollouts also have a prompt."""
    limits = {"sft": "max_length", "distill": "max_length", "on_policy": "max_tokens", "grpo": "max_tokens"}
    for name, field in limits.items():
        stage = getattr(recipe, name)
        limit, budget = getattr(stage, field), stage.tokens_per_micro_batch
        if stage.enabled and limit > budget:
            remedy = f"raise {name}.tokens_per_micro_batch, or lower {name}.{field}"
            yield f"{name}.{field} = {limit} is more than {name}.tokens_per_micro_batch = {budget}: {remedy}"


def _lent_conflicts(recipe: Recipe) -> Iterator[str]:
    """What a stage asks of its rollouts' engine, where that is the one which the run keeps."""
    teacher = recipe.teacher
    if not (isinstance(teacher, VLLMTeacher) and teacher.keep_running):
        return
    room = recipe.student_room()
    for name, stage in (("on_policy", recipe.on_policy), ("grpo", recipe.grpo)):
        if not stage.enabled or stage.rollouts != "vllm" or stage.rollout_urls:
            continue
        if teacher.gpus:
            yield (
                f"{name}.rollouts: the kept engine does not sleep, and would hold the trainer's GPU: write "
                f"teacher.keep_running = false, or name engines in {name}.rollout_urls"
            )
        if biased := biased_argument(teacher.extra_args):
            wrong = f"teacher.extra_args: with {biased} the kept engine would tell {name} biased log-probabilities"
            yield f"{wrong}: leave it out, or write teacher.keep_running = false"
        if stage.max_tokens >= room:
            yield f"{name}.max_tokens = {stage.max_tokens} leaves no room for a prompt in the kept engine's {room}"
        if stage.dtype == "float32" and teacher.dtype != "float32":
            wrong = f'{name}.dtype = "float32", but the kept engine samples in {teacher.dtype}'
            yield f'{wrong}: write teacher.dtype = "float32", or teacher.keep_running = false'
        if stage.rollout_args or stage.rollout_python:
            own = "rollout_args" if stage.rollout_args else "rollout_python"
            yield f"{name}.{own} is for an engine of the stage's own: write teacher.keep_running = false"


def _stage_conflicts(recipe: Recipe) -> Iterator[str]:
    enabled = {"student": True, "sft": recipe.sft.enabled, "distill": recipe.distill.enabled}
    enabled["on_policy"] = recipe.on_policy.enabled
    for name, stage in (("distill", recipe.distill), ("on_policy", recipe.on_policy), ("grpo", recipe.grpo)):
        if stage.enabled and not enabled[stage.init]:
            remedy = 'start from "student", or enable it'
            yield f'{name}.init = "{stage.init}", but {stage.init}.enabled = false: {remedy}'
    if recipe.distill.teacher_logits == "stored":
        yield from _stored_conflicts(recipe.distill)
    elif recipe.distill.enabled and not recipe.distill.teacher and not isinstance(recipe.teacher, VLLMTeacher):
        remedy = 'set distill.teacher, or distill.teacher_logits = "stored"'
        yield f"distill with a live teacher needs its weights, an endpoint has none to give: {remedy}"
    if recipe.distill.divergence == "uld" and recipe.distill.temperature != 1.0:
        yield 'distill.divergence = "uld" has no temperature: write distill.temperature = 1'
    if recipe.grpo.enabled and recipe.grpo.advantage == "rft":
        takes = 'grpo.advantage = "rft" takes a reward of 1 and more for a right answer'
        if recipe.verify.format_weight >= 1:
            yield f"{takes}: set verify.format_weight = {recipe.verify.format_weight:g} below 1"
        if recipe.grpo.overlong_tokens:
            yield f"{takes}, and a penalty would take it away: write grpo.overlong_tokens = 0"
    if recipe.on_policy.enabled and not recipe.on_policy.teacher and not isinstance(recipe.teacher, VLLMTeacher):
        yield "on_policy needs its teacher's weights, an endpoint has none to give: set on_policy.teacher"


def _validates(recipe: Recipe, name: str) -> bool:
    stage: OptimiserSection = getattr(recipe, name)
    return stage.enabled and bool(stage.validate_every)


def _validation_conflicts(recipe: Recipe) -> Iterator[str]:
    limits = {name: getattr(recipe, name).validation_limit for name in TRAINED if _validates(recipe, name)}
    if len(set(limits.values())) > 1:
        listed = ", ".join(f"{name}.validation_limit = {limit}" for name, limit in limits.items())
        yield f"{listed}: the teacher's line is of one choice of problems, so write the same number in all of them"
    for name in TRAINED:
        stage: OptimiserSection = getattr(recipe, name)
        if not stage.enabled:
            continue
        if stage.validate_every and not any(source.validation for source in recipe.problems):
            wanted = f"{name}.validate_every = {stage.validate_every}"
            yield f"{wanted}, but no [[problems]] keeps a share for it: set problems.N.validation"
        if stage.keep == "best" and not stage.validate_every:
            yield f'{name}.keep = "best" needs {name}.validate_every: without validation no step is the best'


def _stored_conflicts(distill: DistillSection) -> Iterator[str]:
    """The likeliest tokens of the teacher at temperature 1 say nothing of other distances."""
    remedy = 'or distill.teacher_logits = "live"'
    if distill.divergence != "forward":
        wrong = f'distill.divergence = "{distill.divergence}" needs the teacher\'s whole distributions'
        yield f'{wrong}: write distill.divergence = "forward", {remedy}'
    if distill.temperature != 1.0:
        wrong = f"distill.temperature = {distill.temperature:g} needs the teacher's whole distributions"
        yield f"{wrong}: write distill.temperature = 1, {remedy}"


def _source_conflicts(recipe: Recipe) -> Iterator[str]:
    labels: dict[str, int] = {}
    for index, section in enumerate(recipe.problems):
        label = section.to_source().label
        if label in labels:
            where = f"problems.{index} has the same label `{label}` as problems.{labels[label]}"
            yield f"{where}: remove it, or give it another `source`"
        labels[label] = index


# --- overrides -------------------------------------------------------------------------------------


def _copy(value: Any) -> Any:
    """A copy that overrides may write into: tuples become lists, inner tables stay untouched."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: write it as section.key=value, as in generate.replicas=8")
    here: Any = values
    for at, part in enumerate(parts[:-1]):
        here = here.setdefault(part, {}) if isinstance(here, dict) else _item(here, parts, at, override)
    if isinstance(here, dict):
        here[parts[-1]] = _toml_value(text)
    else:
        _item(here, parts, len(parts) - 1, override)
        here[int(parts[-1])] = _toml_value(text)


def _item(values: Any, parts: Sequence[str], at: int, override: str) -> Any:
    """The item of a list that the key's part names; RecipeError with the nearest key that names one."""
    part, before = parts[at], ".".join(parts[:at])
    if not isinstance(values, list):
        raise RecipeError(f"--set {override}: there is no section before `{part}` to set it in")
    if part.isdigit() and int(part) < len(values):
        return values[int(part)]
    if not values:
        raise RecipeError(f"--set {override}: `{before}` is an empty list; set the whole of it: {before}=[…]")
    rest = parts[at + 1 :] if part.isdigit() else parts[at:]
    hint = f"did you mean `{'.'.join([before, '0', *rest])}`?"
    count = "one item, 0" if len(values) == 1 else f"the items 0 to {len(values) - 1}"
    raise RecipeError(f"--set {override}: `{before}` is a list of {count}; {hint}")


def _toml_value(text: str) -> Any:
    """`4`, `0.5`, `true`, `["a"]`, `{a = 1}` as in TOML; anything else is taken as text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


# --- errors ----------------------------------------------------------------------------------------


def _explain(error: ValidationError, values: Any, origin: str) -> str:
    found = error.errors(include_url=False)
    # pydantic drops wrong items before it counts the rest: a list that is said to be too short holds them all.
    wrong = [item["loc"] for item in found]
    found = [item for item in found if item["type"] != "too_short" or not _beneath(item["loc"], wrong)]
    lines = [_line(item, values) for item in found]
    return "\n".join([f"{origin}: {lines[0]}", *(f"  also: {line}" for line in lines[1:])])


def _beneath(list_at: tuple[int | str, ...], places: Sequence[tuple[int | str, ...]]) -> bool:
    """Whether one of the places is in the list."""
    return any(len(place) > len(list_at) and place[: len(list_at)] == list_at for place in places)


def _line(item: Any, values: Any) -> str:
    """One of pydantic's errors in our words, dotted key first."""
    path = _without_tags(item["loc"], values)
    dotted = ".".join(str(part) for part in path)
    match item["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"unknown key `{dotted}`{_nearest(path, values)}"
        case "missing":
            return f"`{dotted}` is missing"
        case "union_tag_not_found":
            return f"`{dotted}.type` is missing"
        case "union_tag_invalid":
            return f"{dotted}.type = {item['ctx']['tag']!r}: should be one of {item['ctx']['expected_tags']}"
        case "model_type" | "model_attributes_type" | "dict_type" | "dataclass_type":
            return f"{dotted} = {_shown(item['input'])}: should be a section with keys of its own"
    message = str(item["msg"]).removeprefix("Value error, ")
    message = (message[:1].lower() + message[1:]).replace("tuple", "list")
    if not dotted:
        return message
    if isinstance(item["input"], dict | list | tuple):
        return f"{dotted}: {message}"
    return f"{dotted} = {_shown(item['input'])}: {message}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _INPUT_CHARS else f"{text[:_INPUT_CHARS]}…"


def _without_tags(location: tuple[int | str, ...], values: Any) -> list[int | str]:
    """pydantic puts a union's chosen type into the path (`teacher.vllm.model`); people did not write that."""
    path: list[int | str] = []
    here = values
    for part in location:
        if isinstance(here, Mapping) and part not in here and part == here.get("type"):
            continue
        path.append(part)
        if isinstance(here, Mapping):
            here = here.get(part)
        elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
            here = here[part]
    return path


def _nearest(path: Sequence[int | str], values: Any) -> str:
    """A hint: the same key elsewhere in the recipe, else the most alike one of the same section."""
    wrong, parents = str(path[-1]), list(path[:-1])
    named = ".".join("0" if isinstance(part, int) else part for part in path)
    elsewhere = [dotted for dotted in _dotted_keys(Recipe) if dotted.rsplit(".", 1)[-1] == wrong]
    if named in elsewhere:
        return f"; it belongs to another `{'.'.join(map(str, parents))}.type`"
    if elsewhere:
        return f"; did you mean `{elsewhere[0]}`?"
    siblings = list(_annotations(_section_at(parents, values)))
    prefix = "".join(f"{part}." for part in parents)
    close = difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{prefix}{close[0]}`?"
    close = difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.0)
    return f"; the nearest is `{prefix}{close[0]}` (known there: {', '.join(siblings)})"


def _section_at(parents: Sequence[int | str], values: Any) -> type[Any]:
    section: type[Any] = Recipe
    here = values
    for part in parents:
        here = here[part]
        if isinstance(part, str):
            choices = _sections_of(_annotations(section)[part])
        tags = [choice for choice in choices if _tag(choice) == (here.get("type") if isinstance(here, dict) else None)]
        section = (tags or choices)[0]
    return section


def _annotations(section: type[Any]) -> dict[str, Any]:
    """The keys of a section, a pydantic model or a check's settings, and what each takes."""
    if issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    return get_type_hints(section)


def _sections_of(annotation: Any) -> list[type[Any]]:
    """All sections that appear in an annotation such as `tuple[A | B, ...]`."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_of(argument)]


def _tag(section: type[Any]) -> Any:
    field = section.model_fields.get("type") if issubclass(section, BaseModel) else None
    return field.default if field else None


def _dotted_keys(section: type[Any], prefix: str = "") -> Iterator[str]:
    """Every key as `--set` takes it, through the first item of each list: `problems.0.limit`."""
    for name, annotation in _annotations(section).items():
        yield f"{prefix}{name}"
        inside = f"{prefix}{name}.0." if get_origin(annotation) is tuple else f"{prefix}{name}."
        for child in _sections_of(annotation):
            yield from _dotted_keys(child, inside)
