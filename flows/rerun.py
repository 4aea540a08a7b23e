"""Making chosen rows again, and exactly those: failed shards by name, or samples by an SQL predicate.

A failed shard gets new attempts. Chosen samples are planned into a new shard that supersedes their old rows once
it is done; nothing on disk is changed or deleted.
"""

from __future__ import annotations

from prefect import flow

from flows.artifacts import publish_funnel
from flows.generate import make_shards
from flows.recipe import Recipe
from flows.shards import shard_threads
from flows.wiring import opened
from model.errors import RecipeError
from model.records import content_hash
from tasks.catalog import connect, sample_ids
from tasks.work import failed_shards, plan_rerun


@flow(name="rerun", flow_run_name="rerun {recipe.name}", task_runner=shard_threads())
def rerun(recipe: Recipe, failed: bool = False, where: str = "") -> list[int]:
    """Makes new attempts for the failed shards, or for the samples for which `where` holds; returns the shards.

    Raises RecipeError when both or neither are asked for, or the predicate does not parse.
    """
    if failed == bool(where.strip()):
        raise RecipeError("say which rows: either the failed shards, or a predicate over the samples")
    with opened(recipe) as run:
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
