"""Whether the student fits its teacher, told before anything is generated instead of hours later, when it is trained.

Asked by `stillhouse plan`, of files on this machine alone, and by a run, which asks a model hub too. What cannot be
read is not judged: training still refuses a teacher with other tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from flows.recipe import Recipe
from flows.recipe_sections import OpenAITeacher
from model.errors import RecipeError
from model.pretrained import Say, folder_here, load_tokenizer, small_files
from model.same_tokens import token_difference

_QUESTION = "How many are 12 + 345?\n"


@dataclass(frozen=True, slots=True)
class _Model:
    """A model by its name on a hub, its folder or its `builtin:` name."""

    name: str
    revision: str


def require_fitting_student(recipe: Recipe, *, fetch: bool = False, say: Say | None = None) -> None:
    """Raises RecipeError, key and remedy in one line, where training is bound to fail with this student.

    `fetch`: also the small files that a run is going to need anyway (config, tokenizer) are downloaded or converted,
    of which `say` is told.
    """
    find = partial(small_files, say=say) if fetch else folder_here
    for misfit in _other_tokens(recipe, find):
        raise RecipeError(misfit)


# --- tokens ----------------------------------------------------------------------------------------


def _other_tokens(recipe: Recipe, find: Any) -> Iterator[str]:
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


def _tokenizer(model: _Model, find: Any) -> Any:
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
