"""Whether the student fits its teacher, told before anything is generated instead of hours later, when it is trained.

Its positions must hold what the recipe has it read and write, its tokens be those of a teacher whose distributions it
learns. Asked by `stillhouse plan`, of files on this machine alone, and by a run, which asks a model hub too. What
cannot be read is not judged: training still refuses a teacher with other tokens, but goes beyond the positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from flows.recipe import Recipe
from flows.recipe_sections import OpenAITeacher, OptimiserSection
from flows.stages import TRAINED
from model.errors import RecipeError
from model.positions import positions_in
from model.pretrained import Say, folder_here, load_tokenizer, small_files
from model.same_tokens import token_difference

Find = Callable[[str, str], Path | None]  # a model's folder by name and revision

_QUESTION = "How many are 12 + 345?\n"


@dataclass(frozen=True, slots=True)
class _Model:
    """A model by its name on a hub, its folder or its `builtin:` name."""

    name: str
    revision: str


def require_fitting_student(recipe: Recipe, *, fetch: bool = False, say: Say | None = None) -> None:
    """Raises RecipeError, key and remedy in one line, where this student cannot be trained or measured as it is asked.

    `fetch`: also the small files that a run is going to need anyway (config, tokenizer) are downloaded or converted,
    of which `say` is told.
    """
    find: Find = partial(small_files, say=say) if fetch else folder_here
    for misfit in chain(_beyond_positions(recipe, find), _other_tokens(recipe, find)):
        raise RecipeError(misfit)


# --- positions -------------------------------------------------------------------------------------


def _beyond_positions(recipe: Recipe, find: Find) -> Iterator[str]:
    """One sentence for each length of the recipe that the student's config.json does not allow."""
    student = recipe.student
    folder = find(student.model, student.revision)
    positions = positions_in(folder) if folder else None
    if positions is None:
        return
    of = f"the {positions} positions of {student.model} (its config.json)"
    remedy = "lower it, or take a student with more"
    for key, length in _texts(recipe):
        if length > positions:
            yield f"{key} = {length} is more than {of}: {remedy}"
    for key, length in _completions(recipe):
        if length >= positions:
            yield f"{key} = {length} leaves no room for a prompt in {of}: {remedy}"
    room = recipe.student_room()
    if recipe.evaluates_students() and room > positions:
        stands = "" if student.max_model_len else f", which stands for {room},"
        wrong = f"student.max_model_len = {student.max_model_len}{stands} is more than {of}"
        yield f"{wrong}: write student.max_model_len = {positions}, or take another student"


def _texts(recipe: Recipe) -> Iterator[tuple[str, int]]:
    """Settings that bound prompt and completion together."""
    for name, section in (("sft", recipe.sft), ("distill", recipe.distill)):
        if section.enabled:
            yield f"{name}.max_length", section.max_length


def _completions(recipe: Recipe) -> Iterator[tuple[str, int]]:
    """Settings that bound a completion, beside which there must be room for a prompt."""
    for name, section in (("on_policy", recipe.on_policy), ("grpo", recipe.grpo)):
        if section.enabled:
            yield f"{name}.max_tokens", section.max_tokens
    stages: list[OptimiserSection] = [getattr(recipe, stage) for stage in TRAINED]
    if any(stage.enabled and stage.validate_every for stage in stages):
        yield "evaluate.max_tokens", recipe.evaluate.max_tokens


# --- tokens ----------------------------------------------------------------------------------------


def _other_tokens(recipe: Recipe, find: Find) -> Iterator[str]:
    """One sentence for each stage that compares distributions over tokens which the student does not have."""
    student, found = _Model(recipe.student.model, recipe.student.revision), dict[_Model, Any]()
    for stage, teacher in _token_teachers(recipe):
        if teacher is None or teacher == student:
            continue
        for model in (student, teacher):
            if model not in found:
                found[model] = _tokenizer(model, find)
        if found[student] is None or found[teacher] is None:
            continue
        if difference := token_difference(found[student], found[teacher], [_probe(recipe)]):
            yield f"{stage}: teacher {teacher.name} and student {student.name} {difference}{_remedy(recipe, stage)}"


def _token_teachers(recipe: Recipe) -> Iterator[tuple[str, _Model | None]]:
    """The stages that need one tokenizer, and the model whose distributions each learns from; None for an endpoint's
    unknown one."""
    distill, on_policy = recipe.distill, recipe.on_policy
    if distill.enabled and distill.divergence != "uld":
        yield "distill", _taught_by(recipe, distill.teacher)
    if on_policy.enabled:
        yield "on_policy", _taught_by(recipe, on_policy.teacher)


def _taught_by(recipe: Recipe, other: str) -> _Model | None:
    if other:
        return _Model(other, "main")
    teacher = recipe.teacher
    if isinstance(teacher, OpenAITeacher):
        return _Model(teacher.tokenizer, "main") if teacher.tokenizer else None
    return _Model(teacher.model, teacher.revision)


def _tokenizer(model: _Model, find: Find) -> Any:
    """A model's tokenizer, None where it cannot be read."""
    folder = find(model.name, model.revision)
    try:
        return load_tokenizer(folder) if folder else None
    # transformers and its parts raise errors of their own for broken files; the stage that needs the model tells them.
    except Exception:
        return None


def _probe(recipe: Recipe) -> str:
    """What the recipe writes around a question, with a question."""
    template = recipe.template
    return "\n".join([template.system, _QUESTION, template.prefill, *template.stop])


def _remedy(recipe: Recipe, stage: str) -> str:
    if stage == "on_policy":
        return ", and on_policy needs one tokenizer: write on_policy.enabled = false, or name such an on_policy.teacher"
    sure = f', and divergence = "{recipe.distill.divergence}" needs one tokenizer: write distill.enabled = false (sft '
    live = "" if recipe.distill.teacher_logits == "live" else ' and distill.teacher_logits = "live"'
    return f'{sure}alone), or distill.divergence = "uld"{live}'
