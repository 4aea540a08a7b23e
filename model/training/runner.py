"""One job from its folder's lock to its manifest; the stage is chosen here and nowhere else."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from model.losses.kl import Divergence
from model.training.adapters import WithoutAdapters, add_adapters, has_adapters, save_adapter
from model.training.checkpoint import (
    complete_checkpoints,
    disk_errors,
    save_model,
    whole_weights,
    write_file,
    write_folder,
)
from model.training.cross_tokenizer import CrossTokenizerStage
from model.training.data import Tokenizer
from model.training.distill import DistillStage, StoredDistillStage
from model.training.forward import Model
from model.training.grpo import GRPOStage
from model.training.job import (
    DistillJob,
    GRPOJob,
    Job,
    JobError,
    OnPolicyJob,
    PPOJob,
    RolloutJob,
    Sampler,
    SFTJob,
)
from model.training.load import checkpoint_activations, dropout_of, load_cut, load_frozen, load_model, outline
from model.training.loop import train
from model.training.manifest import TOKENS, bind, identity, is_done, write_manifest
from model.training.memory import Activations, Packing, measure_outline, peak_memory, plan_memory, runs_again
from model.training.on_policy import OnPolicyStage
from model.training.out_of_memory import out_of_memory
from model.training.parallel import World, joined
from model.training.ppo import PPOStage
from model.training.problems import read_problems
from model.training.process import StopSignal, sole_owner
from model.training.rewards import verifier_reward
from model.training.rollout_stage import RolloutStage
from model.training.rollouts import LocalRollouts, Rollouts
from model.training.sft import SFTStage
from model.training.step import Stage
from model.training.validation import Answers, contexts_of
from model.training.value_model import ValueModel
from model.training.watch import open_watch

PLANNED = "planned.json"  # tokens that run at once, for whoever starts the next attempt


def run_job(job: Job, stop: StopSignal) -> None:
    """Trains to the end and writes `model/` and the manifest; returns at once where that was done before.

    Raises:
        JobError: the job does not fit its inputs, or the folder belongs to another job.
        Stopped: the process was asked to stop; the same job goes on from there.
        TrainingError: training failed, or another process holds the folder; not retryable where the loss
            diverged or the disk takes no more.
    """
    with ExitStack() as held:
        world = held.enter_context(joined())
        wanted = identity(job)

        def begin() -> bool:
            with disk_errors(job.out):
                held.enter_context(sole_owner(job.out))
            bind(job.out, wanted)
            return is_done(job.out)

        if not world.led(begin):
            held.enter_context(reproducible(world.device))
            train_to_manifest(job, wanted, stop, world)
        if world.leads:
            shutil.rmtree(job.out / TOKENS, ignore_errors=True)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """A block in which so many threads of a CPU always come to the same bits.

    Else float32 gradients of what is looked up more than once are added up in any order (index_put). A GPU has other
    such places, whose order would cost time.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


def train_to_manifest(job: Job, wanted: dict[str, Any], stop: StopSignal, world: World) -> None:
    """The work of `run_job`, for a folder that is ours and not done."""
    started = time.perf_counter()
    if job.threads:
        torch.set_num_threads(job.threads)
    disable_progress_bar()  # metrics.jsonl tells how far it is
    outlined = activations_of_cut(job, world)
    model, tokenizer = load_to_train(job, world)
    too_many = f"tokens_per_micro_batch = {job.tokens_per_micro_batch} does not fit: lower it"
    with out_of_memory(too_many), open_stage(job, model, tokenizer, world, stop) as stage:
        plan = plan_memory(job, stage, model, tokenizer, world, outlined, read_packing(job, world))
        if world.leads:
            planned = {"tokens_at_once": plan.tokens, "budget": stage.tokens_at_once, "again": runs_again(model)}
            write_file(job.out / PLANNED, json.dumps(planned | {"asked": job.tokens_at_once}))
        with open_watch(job, model, tokenizer, sampler_of(stage), world) as watch:
            last = train(job, stage, model, tokenizer, stop, world, watch)
        validation = watch.validation
    kept = validation.kept_step(stage.total_steps) if validation else stage.total_steps
    weights = whole_weights(model, job.dtype, world)
    if not world.leads:
        return
    if validation and kept != stage.total_steps:
        validation.best.write_model(kept)
    else:
        write_trained(job, model, tokenizer, weights)
    results = {
        "steps": stage.total_steps,
        "model_step": kept,
        "validation": validation.results() if validation else {},
        "seconds": time.perf_counter() - started,
        "left_out": stage.left_out,
        "last_step": last,
        "memory": {
            "loaded_bytes": plan.loaded,
            "expected_bytes": plan.peak,
            "peak_bytes": peak_memory(world.device),  # of the process that came to the end
            "tokens_per_micro_batch": plan.tokens,
        },
    }
    write_manifest(job.out, job, wanted, results)
    if validation:
        validation.best.prune(validation.lines, [])  # nobody resumes any more


def read_packing(job: Job, world: World) -> Packing | None:
    """What a run that goes on from a checkpoint ran before it; None for a new one, or where other tokens are asked for.

    Other packs would round differently, and the losses would not be the same to the bit.
    """

    def before() -> Packing | None:
        if not complete_checkpoints(job.out / "checkpoints"):
            return None
        try:
            planned = json.loads((job.out / PLANNED).read_text(encoding="utf-8"))
            return Packing(planned["budget"], planned["again"]) if planned["asked"] == job.tokens_at_once else None
        except (OSError, ValueError, KeyError):
            return None

    found: Packing | None = world.led(before)
    return found


def load_to_train(job: Job, world: World) -> tuple[Model, Tokenizer]:
    """The model as it is going to be trained, and its tokenizer."""
    if world.mesh is not None:
        return load_cut(job.init, job, world, partial(prepare, job=job))
    model, tokenizer = load_model(job.init, job.dtype, world.device, compiled=job.compile)
    prepare(model, job)
    return model, tokenizer


def prepare(model: Model, job: Job) -> None:
    """What a job changes in a model while it is whole."""
    add_adapters(model, job)
    if job.activation_checkpointing:
        checkpoint_activations(model)


def activations_of_cut(job: Job, world: World) -> dict[bool, Activations] | None:
    """What the job's model keeps for its backward pass, by whether layers are run again in it; where it is cut.

    A model that is cut is not to run without that pass, so that it cannot be measured itself.
    """
    if world.mesh is None:
        return None
    found = {}
    for again in (False, True):
        model, _ = outline(job.init, job.dtype, world.device, compiled=job.compile)
        add_adapters(model, job)
        if job.activation_checkpointing or (again and not dropout_of(model)):
            checkpoint_activations(model)
        found[again] = measure_outline(model, world.device)
        del model
        gc.collect()  # compiled layers refer to themselves, and are on the device
    return found


def write_trained(job: Job, model: Model, tokenizer: Tokenizer, weights: Mapping[str, torch.Tensor] | None) -> None:
    """`model/`, and `adapter/` where there are adapters."""
    assert weights is not None, "the leading process has them"
    if has_adapters(model):
        write_folder(job.out / "adapter", lambda scratch: save_adapter(scratch, model, weights))
    write_folder(job.out / "model", lambda scratch: save_model(scratch, model, tokenizer, weights))


def sampler_of(stage: Stage) -> Answers | None:
    """What answers validation problems in place of the model in this process: the engine of a stage's rollouts."""
    answering = getattr(stage.rollouts, "answering", None) if isinstance(stage, RolloutStage) else None
    return answering() if answering else None


@contextmanager
def open_stage(job: Job, model: Model, tokenizer: Tokenizer, world: World, stop: StopSignal) -> Iterator[Stage]:
    """The stage that a job asks for, with what it needs while it runs."""
    match job:
        case DistillJob(teacher=None):
            yield StoredDistillStage(job, tokenizer, world, stop)
        case DistillJob(divergence=Divergence.ULD):
            yield CrossTokenizerStage(job, tokenizer, world, stop)
        case DistillJob():
            yield DistillStage(job, tokenizer, world, stop)
        case SFTJob():
            yield SFTStage(job, tokenizer, world, stop)
        case OnPolicyJob():
            with ExitStack() as held:
                reward = held.enter_context(verifier_reward(job)) if job.checks else None
                rollouts = held.enter_context(open_rollouts(job, model, tokenizer, world))
                yield OnPolicyStage(job, model, tokenizer, rollouts, world, reward)
        case GRPOJob():
            reference = open_reference(job, model, world) if job.kl_weight else None
            with verifier_reward(job) as reward, open_rollouts(job, model, tokenizer, world) as rollouts:
                if isinstance(job, PPOJob):
                    value_model = ValueModel(job, load_to_train(job, world)[0], world)
                    yield PPOStage(job, model, reference, rollouts, reward, value_model, world)
                else:
                    yield GRPOStage(job, model, reference, rollouts, reward, world)
        case _:
            raise AssertionError(f"no stage for {job.stage}")


def open_reference(job: GRPOJob, model: Model, world: World) -> Model:
    """The frozen model of the KL term: a second one, cut as the first, or the policy with its adapters off."""
    if has_adapters(model):
        return WithoutAdapters(model)
    return load_frozen(job.init, job, world)[0]


@contextmanager
def open_rollouts(job: RolloutJob, model: Model, tokenizer: Tokenizer, world: World) -> Iterator[Rollouts]:
    """What samples the policy, while it is needed."""
    if job.rollouts is Sampler.TRANSFORMERS:
        yield LocalRollouts(
            model, tokenizer, world, temperature=job.temperature, max_tokens=job.max_tokens, stop=job.stop
        )
        return
    if job.rollouts_ahead and torch.cuda.is_available() and not (job.rollout_urls or job.rollout_lent):
        raise JobError("rollouts_ahead = 1 needs engines with GPUs of their own: name them in rollout_urls")
    # Needs httpx, which a machine that trains without an engine need not have.
    from model.training.vllm_rollouts import open_vllm_rollouts

    prompts = [problem.prompt + job.prefill for problem in read_problems(job.problems)] + contexts_of(job)
    with open_vllm_rollouts(job, model, tokenizer, world, prompts) as rollouts:
        yield rollouts
