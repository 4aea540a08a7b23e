"""Making chosen rows again, and exactly those: failed shards by name, samples by an SQL predicate, errors of checks.

A failed shard gets new attempts. Chosen samples are planned into a new shard that supersedes their old rows once
it is done; nothing on disk is changed or deleted. Verdicts that are errors are had again in their places.
"""

from __future__ import annotations

from prefect import flow

from flows.artifacts import publish_funnel
from flows.forms import RecipeParameter
from flows.generate import make_shards
from flows.recipe import Recipe
from flows.shards import Window, patient, raise_for_failures, shard_threads
from flows.wiring import opened, teacher_engine, verifier
from model.errors import RecipeError
from model.records import content_hash
from tasks.catalog import connect, sample_ids
from tasks.progress import announce, ticking
from tasks.redo_errors import redo_errors, shards_with_errors
from tasks.run import Run
from tasks.work import failed_shards, plan_rerun


@flow(name="rerun", flow_run_name="rerun {recipe.name}", task_runner=shard_threads())
def rerun(recipe: RecipeParameter, failed: bool = False, where: str = "", errors: bool = False) -> list[int]:
    """Makes new attempts for the failed shards, for the samples for which `where` holds, or for verdicts that are
    errors; returns the shards.

    Raises RecipeError unless one of the three is asked for, or when the predicate does not parse.
    """
    if failed + bool(where.strip()) + errors != 1:
        raise RecipeError("say which rows: the failed shards, a predicate over the samples, or errors of checks")
    with opened(recipe) as run:
        if errors:
            shards = _verify_errors_again(recipe, run)
            publish_funnel(run.dataset)
            return shards
        if failed:
            shards = sorted({*failed_shards(run.dataset, "generate"), *failed_shards(run.dataset, "verify")})
        else:
            shards = plan_rerun(
                run.dataset,
                sample_ids(connect(run.dataset), where),
                shard_size=recipe.generate.shard_size,
                fingerprint=content_hash("recipe", recipe.fingerprint_fields(), digits=12),
                max_tokens=recipe.generate.max_tokens,
            )
        make_shards(recipe, run, shards=set(shards))
        publish_funnel(run.dataset)
    return shards


def _verify_errors_again(recipe: Recipe, run: Run) -> list[int]:
    """Shards that had verdicts which were errors; says how many there were and how many are left."""
    with teacher_engine(recipe, run) as engine, verifier(recipe, run, engine) as judges:
        before = shards_with_errors(run.dataset, judges)
        again, window = patient(redo_errors, recipe.generate), Window(recipe.generate.shards_in_flight)
        with ticking("verify errors", sum(before.values()), "verdicts") as ticker:
            futures = [window.submit(again, run, judges, shard, ticker) for shard in before]
            raise_for_failures(run.dataset, futures)
        left = sum(shards_with_errors(run.dataset, judges).values())
    announce(f"verdicts that were errors: {sum(before.values())} verified again, {left} are errors still")
    return list(before)
