"""The whole recipe, stage after stage: problems, generation, verification, distillation, refinement, evaluation."""

from __future__ import annotations

from prefect import flow

from flows.artifacts import publish_evaluations, publish_funnel
from flows.distil import DISTILLING, distil
from flows.evaluate import evaluate
from flows.forms import RecipeParameter
from flows.generate import MAKING, generate
from flows.refine import refine
from flows.stages import ALL_STAGES, TRAINED, Stage
from flows.student_fit import require_fitting_student
from flows.wiring import opened
from tasks.progress import announce


@flow(name="factory", flow_run_name="{recipe.name}")
def factory(recipe: RecipeParameter, only: tuple[Stage, ...] = ALL_STAGES) -> None:
    """Runs the stages in `only`, each doing what is left to do; a second run of a finished recipe does nothing."""
    making = tuple(stage for stage in MAKING if stage in only)
    distilling = tuple(stage for stage in DISTILLING if stage in only and getattr(recipe, stage).enabled)
    if {Stage.GENERATE, *TRAINED} & set(only):
        require_fitting_student(recipe, fetch=True, say=announce)
    with opened(recipe) as run:
        if making:
            generate(recipe, making)
        if distilling:
            distil(recipe, distilling)
        if Stage.GRPO in only and recipe.grpo.enabled:
            refine(recipe)
        if Stage.EVALUATE in only:
            evaluate(recipe)
        # Artifacts belong to the sub-flow that made them; on this run's page they are looked for as well.
        publish_funnel(run.dataset)
        publish_evaluations(run.dataset)
