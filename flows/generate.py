"""Rejection sampling: the teacher answers every problem several times, and rules decide what is kept.

R1, section 2.3.3: several outputs per prompt, the correct ones retained. Here every output is retained with its
verdicts; which are correct is a query. A shard is verified while the next ones are being generated.
"""

from __future__ import annotations

from collections.abc import Collection

from prefect import flow

from flows.artifacts import progress_in_ui, publish_funnel
from flows.audit import audit
from flows.forms import RecipeParameter
from flows.recipe import Recipe
from flows.recipe_sections import OpenAITeacher
from flows.shards import Window, patient, raise_for_failures, shard_threads
from flows.stages import Stage
from flows.wiring import opened, provenance_of, teacher_engine, template_of, tokenizer_of, verifier
from model.errors import ProblemsError, RecipeError
from model.records import content_hash
from model.rewards.rule import checks_of
from model.sampling.client import require_answer
from tasks.engine import Engine
from tasks.generate import Generation, generate_shard
from tasks.load import load
from tasks.problem_checks import check_problems
from tasks.progress import ticking
from tasks.run import Run
from tasks.store import PROBLEMS, Dataset
from tasks.verify import Verifier, pending_after_all, pending_before, verify_after_all, verify_shard
from tasks.work import (
    pending_generate,
    plan_generate,
    plan_verify,
    planned_shards,
    train_problem_ids,
    wanted_samples,
)

MAKING = (Stage.PROBLEMS, Stage.AUDIT, Stage.GENERATE, Stage.VERIFY)


@flow(name="generate", flow_run_name="generate {recipe.name}", task_runner=shard_threads())
def generate(recipe: RecipeParameter, only: tuple[Stage, ...] = MAKING) -> None:
    """Makes what the recipe asks for and the dataset lacks.

    Raises ShardsFailedError when some shards stay failed after all their attempts; the others are kept.
    """
    with opened(recipe) as run:
        if Stage.GENERATE in only and _is_unfinished(run.dataset):
            _require_teacher(recipe)
        if Stage.PROBLEMS in only:
            load(run.dataset, [section.to_source() for section in recipe.problems])
            check_problems(run, recipe.accept.problems, recipe.verify.duplicate, recipe.verify.contamination)
        if Stage.AUDIT in only and recipe.has_audit():
            audit(recipe, load_problems=False)
        if Stage.GENERATE in only:
            plan(recipe, run)
        make_shards(recipe, run, only)
        publish_funnel(run.dataset)


def _is_unfinished(dataset: Dataset) -> bool:
    """Whether the teacher is sure to be asked: nothing is planned yet, or not all of it is made."""
    return not planned_shards(dataset) or bool(pending_generate(dataset))


def _require_teacher(recipe: Recipe) -> None:
    """An endpoint that is not there is told at once, and not after problems, audit and every shard's tries."""
    if isinstance(recipe.teacher, OpenAITeacher):
        require_answer(recipe.teacher.urls)


def plan(recipe: Recipe, run: Run) -> list[int]:
    """Adds shards for whatever the recipe wants beyond what was planned before.

    Raises ProblemsError when no problems were ever loaded; that all are held out is no error.
    """
    if not run.dataset.manifests(PROBLEMS):
        raise ProblemsError(f"{run.dataset.path} holds no problems yet; run that stage first (`--only problems`)")
    wanted = wanted_samples(
        train_problem_ids(run.dataset, recipe.accept.problems),
        provenance_of(recipe),
        recipe.generate.replicas,
        recipe.generate.max_tokens,
    )
    fingerprint = content_hash("recipe", recipe.fingerprint_fields(), digits=12)
    return plan_generate(run.dataset, wanted, shard_size=recipe.generate.shard_size, fingerprint=fingerprint)


def make_shards(
    recipe: Recipe, run: Run, only: Collection[Stage] = MAKING, shards: Collection[int] | None = None
) -> None:
    """Generates and verifies what is pending (among `shards`, where given), several shards in flight.

    Checks that need every shard come when all are there.
    """
    with teacher_engine(recipe, run) as engine, verifier(recipe, run, engine) as judges:
        _refuse_unknown(checks_of(recipe.accept.require), judges.versions)
        plan_verify(run.dataset, judges.versions)
        _make_and_check(recipe, run, engine, judges, only, shards)
        if Stage.VERIFY in only:
            _check_after_all(recipe, run, judges)


def _make_and_check(
    recipe: Recipe,
    run: Run,
    engine: Engine,
    judges: Verifier,
    only: Collection[Stage],
    shards: Collection[int] | None,
) -> None:
    """A shard is verified while the next ones are generated."""
    to_make, to_check = _todo(run.dataset, judges, only, shards)
    if not to_make and not to_check:
        return
    if to_make:
        _require_teacher(recipe)
        engine.ready()  # an engine that cannot start is one clear error, not one for every shard
    generation = Generation(engine, tokenizer_of(recipe), template_of(recipe), provenance_of(recipe))
    generating, verifying = (
        patient(generate_shard, recipe.generate),
        patient(verify_shard, recipe.generate),
    )
    window = Window(recipe.generate.shards_in_flight)
    samples = _rows(run.dataset, to_make)
    with (
        ticking("generate", samples, "samples") as making,
        ticking("verify", samples + _rows(run.dataset, to_check), "samples") as checking,
        progress_in_ui(run.dataset, making if to_make else checking),
    ):
        futures = [window.submit(verifying, run, judges, shard, checking) for shard in to_check]
        for shard in to_make:
            made = window.submit(generating, run, generation, shard, making)
            futures.append(made)
            if Stage.VERIFY in only:
                futures.append(verifying.submit(run, judges, made, checking))
        raise_for_failures(run.dataset, futures)


def _check_after_all(recipe: Recipe, run: Run, judges: Verifier) -> None:
    """Every shard that lacks verdicts of such checks, also one of an earlier run."""
    shards = pending_after_all(run.dataset, judges)
    if not shards:
        return
    checking, window = patient(verify_after_all, recipe.generate), Window(recipe.generate.shards_in_flight)
    with ticking("verify after all", _rows(run.dataset, shards), "samples") as ticker:
        futures = [window.submit(checking, run, judges, shard, ticker) for shard in shards]
        raise_for_failures(run.dataset, futures)


def _refuse_unknown(required: Collection[str], checks: Collection[str]) -> None:
    """A check of one's own says its name only now; one that never gives a verdict would reject every sample."""
    for name in required:
        if name not in checks:
            raise RecipeError(f"accept.require names `{name}`, but the checks are called {', '.join(checks)}")


def _todo(
    dataset: Dataset, judges: Verifier, only: Collection[Stage], shards: Collection[int] | None
) -> tuple[list[int], list[int]]:
    """Shards to generate, and shards to verify whose samples are there already."""
    to_make = pending_generate(dataset) if Stage.GENERATE in only else []
    to_check = pending_before(dataset, judges) if Stage.VERIFY in only else []
    if shards is None:
        return to_make, to_check
    return [n for n in to_make if n in shards], [n for n in to_check if n in shards]


def _rows(dataset: Dataset, shards: Collection[int]) -> int:
    plans = planned_shards(dataset)
    return sum(plans[shard].rows for shard in shards if shard in plans)
