"""Evaluation: teacher, base student and every checkpoint on problems that no stage has trained on.

R1, section 3: pass@1 from several samples per question, and the majority's answer (cons@N). The teacher is shown
the worked turns, students are not, so the few-shot baseline stands beside the zero-shot figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prefect import flow

from flows.artifacts import publish_evaluations
from flows.recipe import Recipe
from flows.recipe_sections import VLLMTeacher
from flows.wiring import (
    evaluation_engine,
    opened,
    student_tokenizer,
    template_of,
    tokenizer_of,
    verifier_pool,
    weights_of,
)
from model.errors import ProblemsError
from model.pretrained import resolve_model, revision_of
from tasks.evaluate import Contestant, Suite, evaluation_key
from tasks.evaluate import evaluate as evaluate_model
from tasks.inputs import problems_of_split
from tasks.progress import announce
from tasks.run import Run
from tasks.store import EVALUATIONS, STUDENTS

TRAINED = ("sft", "distill", "grpo")


@flow(name="evaluate", flow_run_name="evaluate {recipe.name}")
def evaluate(recipe: Recipe, model: str = "", name: str = "") -> list[str]:
    """Measures every model of the recipe that was not measured yet, or just `model` under `name`.

    Returns the keys of the evaluations. Raises ProblemsError when no problem is held out.
    """
    with opened(recipe) as run:
        contestants = [_folder(recipe, model, name)] if model else list(contestants_of(recipe, run))
        keys = measure_all(recipe, run, contestants)
        publish_evaluations(run.dataset)
    return keys


def measure_all(recipe: Recipe, run: Run, contestants: Sequence[Contestant]) -> list[str]:
    """Runs the evaluations that are missing; one engine serves all models of one architecture."""
    suite = suite_of(recipe, run)
    remote = not isinstance(recipe.teacher, VLLMTeacher)
    with verifier_pool(recipe) as pool:
        versions = {check.name: check.version for check in pool.checks}
        keys = [evaluation_key(contestant, suite, versions) for contestant in contestants]
        missing = [
            contestant
            for contestant, key in zip(contestants, keys, strict=True)
            if run.dataset.read_manifest(f"{EVALUATIONS}/{key}.parquet") is None
        ]
        for of_teacher in (True, False):
            theirs = [c for c in missing if (remote and c.model == "teacher") == of_teacher]
            if not theirs:
                continue
            tokenizer = tokenizer_of(recipe) if of_teacher else student_tokenizer(recipe)
            with evaluation_engine(recipe, run, of_teacher=of_teacher) as engine:
                for contestant in theirs:
                    evaluate_model(run, engine, tokenizer, pool, contestant, suite)
    return keys


def contestants_of(recipe: Recipe, run: Run) -> Iterator[Contestant]:
    """Teacher with its worked turns, the base student, and each trained student at each kept step."""
    template = template_of(recipe)
    for name in recipe.evaluate.models:
        if name == "teacher":
            managed = isinstance(recipe.teacher, VLLMTeacher)
            revision = revision_of(recipe.teacher.model, recipe.teacher.revision)
            yield Contestant(name, 0, recipe.teacher.model if managed else None, revision, template)
        elif name == "student":
            folder = recipe.student.model
            yield Contestant(name, 0, folder, revision_of(folder, recipe.student.revision), template.without_shots())
        elif getattr(recipe, name).enabled:
            weights_of(recipe, run, name)
            for step, weights in checkpoints(run, name):
                yield Contestant(name, step, str(weights), revision_of(weights), template.without_shots())


def checkpoints(run: Run, student: str) -> list[tuple[int, Path]]:
    """The kept checkpoints of a student by step; the last one is the finished model."""
    found = run.dataset.file(f"{STUDENTS}/{student}/checkpoints").glob("step-*")
    steps = {int(folder.name.removeprefix("step-")): folder for folder in found}
    finished = run.dataset.file(f"{STUDENTS}/{student}/model")
    last = max(steps, default=0)
    return [*sorted((step, folder) for step, folder in steps.items() if step != last), (last, finished)]


def suite_of(recipe: Recipe, run: Run) -> Suite:
    """The held-out problems; the first `limit` by id, so that a limit does not favour a source."""
    problems = problems_of_split(run.dataset, "held_out")
    settings = recipe.evaluate
    if not problems:
        raise ProblemsError("no problem is held out, so nothing can be evaluated; set `held_out` on a [[problems]]")
    return Suite(
        problems=tuple(problems[: settings.limit or None]),
        replicas=settings.replicas,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        k=settings.k,
        require=recipe.accept.require,
        confidence=settings.confidence,
        bootstrap=settings.bootstrap,
        seed=recipe.seed,
    )


def _folder(recipe: Recipe, model: str, name: str) -> Contestant:
    resolved = resolve_model(model, say=announce)
    template = template_of(recipe).without_shots()
    return Contestant(name or Path(model).name, 0, str(resolved), revision_of(resolved), template)
