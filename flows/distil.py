"""Distillation: the student learns from the accepted samples, by cross-entropy (SFT) or from the teacher's
token distributions on the same texts (KL, the stricter variant). R1, section 2.4.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.artifacts import publish_curve
from flows.recipe import Recipe
from flows.stages import Stage
from flows.wiring import opened, student_tokenizer, template_of, training_job
from tasks.run import Run, worth_retrying
from tasks.select import Rendering, select_examples
from tasks.train import train

DISTILLING = (Stage.SFT, Stage.DISTILL)


@flow(name="distil", flow_run_name="distil {recipe.name}")
def distil(recipe: Recipe, only: tuple[Stage, ...] = DISTILLING) -> None:
    """Trains the students that the recipe enables; one that is done already is left as it is."""
    with opened(recipe) as run:
        if Stage.SFT in only and recipe.sft.enabled:
            train_on_accepted(recipe, run, Stage.SFT)
        if Stage.DISTILL in only and recipe.distill.enabled:
            train_on_accepted(recipe, run, Stage.DISTILL)


def train_on_accepted(recipe: Recipe, run: Run, stage: Stage) -> Path:
    """Selects the accepted samples and trains one student on them; returns its model folder."""
    examples = select_examples(run, Rendering(student_tokenizer(recipe), template_of(recipe)), stage.value)
    return run_stage(recipe, run, stage, examples)


def run_stage(recipe: Recipe, run: Run, stage: Stage, data: Path) -> Path:
    """One training process with the recipe's tries; each resumes from the last complete checkpoint."""
    attempts = getattr(recipe, stage).attempts
    training = train.with_options(retries=attempts - 1, retry_delay_seconds=2, retry_condition_fn=worth_retrying)
    folder = training(run, stage.value, training_job(recipe, run, stage, data))
    publish_curve(run.dataset, stage)
    return folder
