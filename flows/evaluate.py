"""Evaluation: teacher, base student and every checkpoint on problems that no stage has trained on.

R1, section 3: pass@1 from several samples per question, and the majority's answer (cons@N). The teacher is shown
the worked turns, students are not, so the few-shot baseline stands beside the zero-shot figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from prefect import flow

from flows.artifacts import publish_curve, publish_evaluations
from flows.forms import RecipeParameter
from flows.recipe import Recipe
from flows.recipe_sections import OptimiserSection
from flows.shards import patient
from flows.stages import TRAINED, Stage
from flows.wiring import (
    evaluation_engine,
    opened,
    student_spec,
    teacher_spec,
    template_of,
    tokenizer_at,
    tokenizer_of,
    verifier_pool,
    weights_of,
)
from model.errors import ProblemsError
from model.pretrained import revision_of
from model.rewards.rule import checks_of, limited_to
from model.templates import ChatTokenizer
from tasks.evaluate import Contestant, Suite, evaluation_key
from tasks.evaluate import evaluate as evaluate_model
from tasks.inputs import problems_of_split
from tasks.problems import VALIDATION
from tasks.run import Run
from tasks.store import EVALUATIONS, STUDENTS
from tasks.summary import CURRENT


@flow(name="evaluate", flow_run_name="evaluate {recipe.name}")
def evaluate(recipe: RecipeParameter, model: str = "", name: str = "") -> list[str]:
    """Measures every model of the recipe that was not measured yet, or just `model` under `name`.

    Returns the keys of the evaluations. Raises ProblemsError when no problem is held out.
    """
    with opened(recipe) as run:
        contestants = [folder_of(recipe, model, name)] if model else list(contestants_of(recipe, run))
        keys = measure_all(recipe, run, contestants)
        if not model:
            run.dataset.write_text(CURRENT, json.dumps({"keys": keys, "require": list(recipe.accept.require)}))
            publish_validated(recipe, run)
        publish_evaluations(run.dataset)
    return keys


def publish_validated(recipe: Recipe, run: Run) -> None:
    """The curves of stages that validated once more, now that the teacher's value is there to compare with."""
    for stage in TRAINED:
        trained = run.dataset.file(f"{STUDENTS}/{stage}/manifest.json").exists()
        if trained and getattr(recipe, stage) in validating(recipe):
            publish_curve(run.dataset, stage)


def measure_teacher(recipe: Recipe, run: Run, stages: Iterable[Stage]) -> None:
    """The teacher on the validation problems, before a student is trained that is compared with it.

    Nothing where no stage validates that is still to be trained, or where the recipe evaluates no teacher.
    """
    waiting = [each for each in stages if not run.dataset.file(f"{STUDENTS}/{each}/manifest.json").exists()]
    compared = any(getattr(recipe, each) in validating(recipe) for each in waiting)
    if compared and "teacher" in recipe.evaluate.models and problems_of_split(run.dataset, "held_out"):
        measure_all(recipe, run, [_teacher(recipe)], suites=validated)


Suites = Callable[[Recipe, Run, Sequence[tuple[Contestant, Suite]]], list[tuple[Contestant, Suite]]]


def with_validation(
    recipe: Recipe, run: Run, planned: Sequence[tuple[Contestant, Suite]]
) -> list[tuple[Contestant, Suite]]:
    """What is planned, and the teacher on the validation problems before it."""
    return [*validated(recipe, run, planned), *planned]


def measure_all(
    recipe: Recipe, run: Run, contestants: Sequence[Contestant], suites: Suites = with_validation
) -> list[str]:
    """Runs the evaluations that are missing; one engine serves all models of one architecture."""
    measuring = patient(evaluate_model, recipe.generate)
    with verifier_pool(recipe, checks_of(recipe.accept.require)) as pool, evaluation_engine(recipe, run) as engine:
        suite = suite_of(recipe, run, [check.name for check in pool.checks])
        versions = {check.name: check.version for check in pool.checks}
        for contestant, wanted in suites(recipe, run, [(contestant, suite) for contestant in contestants]):
            key = evaluation_key(contestant, wanted, versions)
            if run.dataset.read_manifest(f"{EVALUATIONS}/{key}.parquet") is None:
                measuring.submit(run, engine, tokenizer_for(recipe, contestant), pool, contestant, wanted).result()
    return [evaluation_key(contestant, suite, versions) for contestant in contestants]


def validated(recipe: Recipe, run: Run, planned: Sequence[tuple[Contestant, Suite]]) -> list[tuple[Contestant, Suite]]:
    """The teacher on the validation problems, beside which the curves of students stand; nothing without any."""
    samples = [stage.validation_samples for stage in validating(recipe)]
    problems = [problem for problem in problems_of_split(run.dataset, VALIDATION) if problem.gold or problem.tests]
    if not samples or not problems:
        return []
    most, limit = max(samples), validating(recipe)[0].validation_limit  # a recipe has the same in all of them
    problems = problems[: limit or None]  # by id, as training takes them
    return [
        (who, replace(suite, problems=tuple(problems), replicas=most, k=tuple(sorted({1, most})), name=VALIDATION))
        for who, suite in planned
        if who.model == "teacher"
    ]


def validating(recipe: Recipe) -> list[OptimiserSection]:
    """The recipe's stages that validate."""
    stages: list[OptimiserSection] = [getattr(recipe, name) for name in TRAINED]
    return [stage for stage in stages if stage.enabled and stage.validate_every]


def contestants_of(recipe: Recipe, run: Run) -> Iterator[Contestant]:
    """Teacher with its worked turns, the base student, and each trained student at each kept step."""
    for name in recipe.evaluate.models:
        if name == "teacher":
            yield _teacher(recipe)
        elif name == "student":
            yield _student(recipe, name, 0, recipe.student.model)
        elif getattr(recipe, name).enabled:
            weights_of(recipe, run, name)
            for step, weights in checkpoints(run, name):
                yield _student(recipe, name, step, str(weights))


def checkpoints(run: Run, student: str) -> list[tuple[int, Path]]:
    """A student's finished model under the step that it is of, and the kept checkpoints of steps before, by step."""
    folder = run.dataset.file(f"{STUDENTS}/{student}")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    last = manifest.get("model_step", manifest["steps"])
    paths = {int(path.name.removeprefix("step-")): path for path in (folder / "checkpoints").glob("step-*")}
    found = {step: path / "model" for step, path in paths.items() if step < last}
    return sorted((found | {last: folder / "model"}).items())


def folder_of(recipe: Recipe, model: str, name: str) -> Contestant:
    """Any model folder, hub name or `builtin:` model, asked like a student."""
    return _student(recipe, name or Path(model).name, 0, model)


def tokenizer_for(recipe: Recipe, contestant: Contestant) -> ChatTokenizer:
    """The contestant's own tokenizer: another family's chat template would measure something else."""
    if not contestant.engine.managed:
        return tokenizer_of(recipe)
    return tokenizer_at(contestant.engine.model, contestant.engine.revision)


def _teacher(recipe: Recipe) -> Contestant:
    revision = revision_of(recipe.teacher.model, recipe.teacher.revision)
    return Contestant("teacher", 0, teacher_spec(recipe), revision, template_of(recipe))


def _student(recipe: Recipe, name: str, step: int, model: str) -> Contestant:
    spec = student_spec(recipe, model)
    return Contestant(name, step, spec, revision_of(model, spec.revision), template_of(recipe).without_shots())


def suite_of(recipe: Recipe, run: Run, checks: Sequence[str]) -> Suite:
    """The held-out problems (the first `limit` by id, so that a limit does not favour a source), judged by `checks`."""
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
        require=limited_to(recipe.accept.require, checks),
        confidence=settings.confidence,
        bootstrap=settings.bootstrap,
        seed=recipe.seed,
    )
