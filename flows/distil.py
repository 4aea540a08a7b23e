"""Distillation: the student learns from the accepted samples, by cross-entropy (SFT) or from the teacher's
token distributions on the same texts (KL, the stricter variant). R1, section 2.4.

Those distributions are a live teacher's, or its k likeliest tokens, captured from its engine and stored. On-policy
(GKD, arXiv:2306.13649), the texts are the student's own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from prefect import flow

from flows.artifacts import publish_curve
from flows.evaluate import measure_teacher
from flows.forms import RecipeParameter
from flows.recipe import Recipe
from flows.shards import patient
from flows.stages import Stage
from flows.wiring import (
    capture_engine,
    capture_questions,
    lent_engine,
    opened,
    student_tokenizer,
    template_of,
    training_job,
)
from tasks.capture import capture_shard, write_places
from tasks.engine import Engine
from tasks.progress import ticking
from tasks.run import Run, worth_retrying
from tasks.select import Rendering, select_examples, select_problems, select_validation
from tasks.train import train

DISTILLING = (Stage.SFT, Stage.DISTILL, Stage.ON_POLICY)


@flow(name="distil", flow_run_name="distil {recipe.name}")
def distil(recipe: RecipeParameter, only: tuple[Stage, ...] = DISTILLING) -> None:
    """Trains the students that the recipe enables; one that is done already is left as it is."""
    with opened(recipe) as run:
        measure_teacher(recipe, run, only)
        if Stage.SFT in only and recipe.sft.enabled:
            train_on_accepted(recipe, run, Stage.SFT)
        if Stage.DISTILL in only and recipe.distill.enabled:
            train_on_accepted(recipe, run, Stage.DISTILL)
        if Stage.ON_POLICY in only and recipe.on_policy.enabled:
            train_on_its_own(recipe, run)


def train_on_accepted(recipe: Recipe, run: Run, stage: Stage) -> Path:
    """Selects the accepted samples and trains one student on them; returns its model folder."""
    examples = select_examples(run, Rendering(student_tokenizer(recipe), template_of(recipe)), stage.value)
    if stage is Stage.DISTILL and recipe.distill.teacher_logits == "stored":
        return run_stage(recipe, run, stage, examples, capture(recipe, run, examples))
    return run_stage(recipe, run, stage, examples)


def train_on_its_own(recipe: Recipe, run: Run) -> Path:
    """Selects problems, rendered for student and teacher, and trains one student on what it writes itself."""
    rendering = Rendering(student_tokenizer(recipe), template_of(recipe))
    problems = select_problems(run, rendering, Stage.ON_POLICY.value, recipe.on_policy.pass_rate, taught=True)
    with lent_engine(recipe, run, Stage.ON_POLICY) as engine:
        return run_stage(recipe, run, Stage.ON_POLICY, problems, engine=engine)


def capture(recipe: Recipe, run: Run, examples: Path) -> Path:
    """Has the teacher say what it thinks of the examples, where that is not stored yet; the list of where it lies."""
    asking = patient(capture_shard, recipe.generate)
    with capture_engine(recipe, run) as engine:
        questions = capture_questions(recipe, engine, examples)
        questions.plan(run.dataset)
        if questions.shards:
            with ticking("capture", sum(map(len, questions.shards.values())), "examples") as ticker:
                for shard in questions.shards:
                    asking.submit(run, questions, shard, ticker).result()
    return write_places(run.dataset, questions, Stage.DISTILL.value)


def run_stage(
    recipe: Recipe, run: Run, stage: Stage, data: Path, stored: Path | None = None, engine: Engine | None = None
) -> Path:
    """One training process with the recipe's tries; each resumes from the last complete checkpoint.

    `engine`: what is lent to it for its rollouts.
    """
    attempts = getattr(recipe, stage).attempts
    training = train.with_options(retries=attempts - 1, retry_delay_seconds=2, retry_condition_fn=worth_retrying)
    validation = None
    if getattr(recipe, stage).validate_every:
        validation = select_validation(run, Rendering(student_tokenizer(recipe), template_of(recipe)))
    job = training_job(recipe, run, stage, data, stored, validation)
    folder = training(run, stage.value, job, engine, partial(publish_curve, run.dataset, stage))
    publish_curve(run.dataset, stage)
    return folder
