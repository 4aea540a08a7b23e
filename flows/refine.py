"""Reasoning RL: GRPO on the distilled student, with the same verifiers that filtered its data as rewards.

R1, section 2.2 and 2.3.2: sample a group per problem, reward by rules, advantage = reward against its group.
"""

from __future__ import annotations

from prefect import flow

from flows.distil import run_stage
from flows.evaluate import measure_teacher
from flows.forms import RecipeParameter
from flows.stages import Stage
from flows.wiring import lent_engine, opened, student_tokenizer, template_of
from tasks.select import Rendering, select_problems


@flow(name="refine", flow_run_name="refine {recipe.name}")
def refine(recipe: RecipeParameter) -> None:
    """Refines the student on the training problems, if the recipe enables it."""
    if not recipe.grpo.enabled:
        return
    with opened(recipe) as run:
        measure_teacher(recipe, run, (Stage.GRPO,))
        rendering = Rendering(student_tokenizer(recipe), template_of(recipe))
        problems = select_problems(run, rendering, Stage.GRPO.value, recipe.grpo.pass_rate)
        with lent_engine(recipe, run, Stage.GRPO) as engine:
            run_stage(recipe, run, Stage.GRPO, problems, engine=engine)
