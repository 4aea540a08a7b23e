"""What a training process will need at its highest, told before the first step; fewer tokens at once where it must.

    peak = what is loaded now
         + float32 masters, gradients, moments, and a micro-batch's gradients in the model's own type
         + the larger of: activations of `tokens_per_micro_batch` tokens with one chunk's logits; a table of scored
           logits; the keys and values of rollouts
         + a checkpoint's copy, where one is due before the end (on a CPU; on CUDA it is the host's)

Weights are counted, tables and caches computed, activations measured: a forward pass of one row, and of half of it,
with autograd's own list of what it keeps for the backward pass, so any architecture counts, and attention that grows
with the square of a document too; of a model that is cut over processes, two layers of it. Not counted: the allocator's
fragmentation, what libraries keep, an engine's memory.
How far off it was: docs/training.md.

Axes: T tokens, V vocabulary.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.losses.head import chunk_rows
from model.training.adapters import has_adapters
from model.training.data import Row, Tokenizer, collate, tokenize
from model.training.forward import SCORED_ROWS, Model, completion_hidden
from model.training.job import DistillJob, Job, JobError, OnPolicyJob, PPOJob, RolloutJob, Sampler
from model.training.load import checkpoint_activations, dropout_of
from model.training.parallel import World
from model.training.ppo import PPOStage
from model.training.rollout_stage import RolloutStage
from model.training.sft import ExampleStage
from model.training.step import Stage

_TABLES = 1.5  # of float32 and V per token of a chunk: the product, and what it is widened into
_DISTILL_TABLES = 4.0  # the teacher's, and what a divergence keeps beside both
_SCORED_BYTES = 10  # per logit of a scored token: the product, widened, by temperature
_SAMPLED_TABLES = 5.0  # of float32 and V per rollout: logits, probabilities, their sums, what is left of them
_KEPT_FREE = 0.05  # of what is free, for what is not counted
PROBE = 512  # tokens, at most, of the measuring pass


class NoRoomError(JobError):
    """Not even weights, gradients and moments fit: fewer tokens at once would not help."""


@dataclass(frozen=True)
class Activations:
    """What a forward pass keeps for its backward pass: bytes of a document of L tokens are a·L + b·L²."""

    linear: float  # a
    square: float  # b

    def bytes(self, tokens: int, longest: int) -> int:
        """Of packed documents of the length `longest`, so many tokens together."""
        return round(tokens * (self.linear + self.square * longest))


@dataclass(frozen=True)
class Packing:
    """How a run cuts its steps into passes; in another way its sums would round differently."""

    budget: int  # tokens at once
    again: bool  # are layers run again in the backward pass?


@dataclass(frozen=True)
class Plan:
    """The parts of a peak, in bytes; `tokens` are those run at once."""

    loaded: int  # by this process, before the first step
    trained: int  # masters, gradients, moments
    per_token: float  # activations
    tokens: int
    tables: int  # the head's
    sampled: int  # scoring and rollouts, which need no gradients beside them
    saved: int  # a checkpoint's copy

    @property
    def fixed(self) -> int:
        """What is needed whatever runs at once."""
        return self.trained + self.saved

    @property
    def growth(self) -> int:
        """From what is loaded to the peak."""
        return self.fixed + max(round(self.per_token * self.tokens) + self.tables, self.sampled)

    @property
    def peak(self) -> int:
        """The highest that is expected."""
        return self.loaded + self.growth

    def fitted(self, free: int, longest: int) -> Plan:
        """As many tokens at once as fit, not below the longest row. Raises NoRoomError where nothing helps."""
        room = round(free * (1 - _KEPT_FREE)) - self.fixed
        if room < 0:
            raise NoRoomError(
                f"training needs {_gib(self.fixed)} beside the {_gib(self.loaded)} loaded, and {_gib(free)} are free: "
                "train fewer weights (lora_rank), cut them over more processes, or take a smaller model"
            )
        affordable = int((room - self.tables) / self.per_token) if self.per_token else self.tokens
        return replace(self, tokens=max(min(self.tokens, affordable), min(self.tokens, longest)))

    def missing(self, free: int, reserve: float = _KEPT_FREE) -> int:
        """Bytes by which a step's passes are too large; 0 where they fit."""
        return max(0, self.fixed + round(self.per_token * self.tokens) + self.tables - round(free * (1 - reserve)))

    def told(self, free: int) -> str:
        """One line for a log."""
        running = f"{self.per_token / 2**20:.2f} MiB a token x {self.tokens} at once + {_gib(self.tables)} of logits"
        return (
            f"memory: {_gib(self.peak)} expected at the peak: {_gib(self.loaded)} loaded, {_gib(self.trained)} for "
            f"masters, gradients and moments, {_gib(self.saved)} for a checkpoint's copy, {running}; "
            f"{_gib(free)} are free"
        )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def plan_memory(
    job: Job,
    stage: Stage,
    model: Model,
    tokenizer: Tokenizer,
    world: World,
    outlined: Mapping[bool, Activations] | None = None,
    before: Packing | None = None,
) -> Plan:
    """Expects a peak, says it on stderr, and makes room where it is too high: by fewer tokens at once, and where even
    the longest row does not fit, or did not in an earlier attempt, by running layers again in the backward pass.

    To be called when everything is loaded and nothing was trained. `outlined`: what the model's outline keeps, by
    whether layers are run again; None: measured here, on rows as long as the job's. `before`: of a run that goes on,
    kept as long as it fits at all. Raises NoRoomError, and JobError for a row longer than the job's token budget.
    """
    longest = longest_row(stage, tokenizer)
    require_budget(job, longest, longest_read(stage))
    if before:
        stage.tokens_at_once = before.budget
        if before.again and may_run_again(model):
            run_again(model, stage)
    most = min(stage.tokens_at_once, most_tokens(stage, longest))
    free = free_memory(world.device)
    if world.device.type == "cpu":  # every process on this machine takes its share
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # An engine on the same device gives its memory back before the update: what is free now says nothing.
    shared = world.device.type == "cuda" and isinstance(job, RolloutJob) and shares_device(job)

    def fitted() -> Plan:
        again = runs_again(model)
        kept = outlined[again] if outlined else measure_activations(model, min(longest, PROBE), world.device)
        plan = expected(job, stage, model, world, kept, most, longest)
        fits = shared or (before and not plan.missing(free, reserve=0.0))
        return plan if fits else plan.fitted(free, longest)

    def missing(plan: Plan) -> int:
        lacks: list[int] = world.gather(0 if shared else plan.missing(free, reserve=0.0 if before else _KEPT_FREE))
        return max(lacks)

    plan, told = fitted(), []
    did_not_fit = 0 < job.tokens_that_fit < (job.tokens_per_micro_batch if shared else longest)
    if (missing(plan) or did_not_fit) and may_run_again(model):
        run_again(model, stage)
        plan = fitted()
        told.append("layers are run again in the backward pass, without which the longest row does not fit")
    plan = replace(plan, tokens=min(world.gather(plan.tokens)))
    if plan.tokens < most:
        stage.tokens_at_once = plan.tokens
        told.append(f"{plan.tokens} tokens at once instead of {most}")
    told = [f"{line}; the result is the same" for line in told]
    if lacks := missing(plan):
        told.append(
            f"the longest row, {longest} tokens, may need {_gib(lacks)} more than there are: train fewer weights "
            "(lora_rank), cut them over more processes, or leave such rows out (max_length)"
        )
    for line in (plan.told(free), *(f"memory: {line}" for line in told)) if world.leads else ():
        print(line, file=sys.stderr, flush=True)
    return plan


def shares_device(job: RolloutJob) -> bool:
    """Does the job start an engine that sleeps on the trainer's device while it trains?"""
    return job.rollouts is Sampler.VLLM and not (job.rollout_urls or job.rollout_lent)


def require_budget(job: Job, longest: int, read: int) -> None:
    """Raises JobError for a row that is longer than what is to run at once: the memory's bound would not hold."""
    if longest > job.tokens_per_micro_batch:
        limit = "max_tokens" if isinstance(job, RolloutJob) else "max_length"
        raise JobError(
            f"a row may have {longest} tokens, and tokens_per_micro_batch = {job.tokens_per_micro_batch}: raise it to "
            f"{longest} at least, or lower {limit} = {getattr(job, limit)}"
        )
    if read > job.tokens_per_micro_batch:
        raise JobError(
            f"the teacher may read {read} tokens of a row, and tokens_per_micro_batch = {job.tokens_per_micro_batch}: "
            f"raise it to {read} at least, or shorten the teacher's prompts"
        )


# --- the parts ------------------------------------------------------------------------------------------------------


def expected(job: Job, stage: Stage, model: Model, world: World, kept: Activations, tokens: int, longest: int) -> Plan:
    """The parts of the peak with so many tokens at once."""
    trained, saved = trained_bytes(model, job)
    due = stage.total_steps > job.checkpoint_every and model.device.type == "cpu"
    head_VH, distils = model.get_output_embeddings().weight, isinstance(job, DistillJob | OnPolicyJob)
    rows, tables = chunk_rows(head_VH, precise=distils), _DISTILL_TABLES if distils else _TABLES
    return Plan(
        loaded=used_memory(model.device),
        trained=trained,
        per_token=kept.bytes(tokens, longest) / tokens,
        tokens=tokens,
        tables=round(4 * tables * len(head_VH) * min(rows, tokens)),
        sampled=max(sampled_bytes(job, model, world, longest), validated_bytes(job, model, longest)),
        saved=saved if due else 0,
    )


def trained_bytes(model: Model, job: Job) -> tuple[int, int]:
    """What an optimizer adds to a loaded model, and what a checkpoint copies of both."""
    weights = [_local(weight) for weight in model.parameters() if weight.requires_grad]
    count = sum(weight.numel() for weight in weights)
    narrow = sum(weight.numel() * (4 + weight.element_size()) for weight in weights if weight.dtype != torch.float32)
    head = model.get_output_embeddings().weight
    gathered = 0
    if _local(head) is not head:  # cut over processes: whole once a step, with its gradient
        gathered = head.numel() * (4 + getattr(torch, job.dtype).itemsize)
    own = sum(weight.numel() * weight.element_size() for weight in map(_local, model.parameters()))
    merged = own if has_adapters(model) else 0
    moments = 2 * int(getattr(torch, job.optimizer_state).itemsize) * count
    kept = 4 * count + moments  # with gradients while it trains, with masters in a checkpoint
    trained, saved = kept + narrow + gathered, kept + own + merged
    if isinstance(job, PPOJob):  # its value model, of the same size, has masters already, and its gradients come later
        return trained + moments, saved + kept
    return trained, saved


def _local(weight: Tensor) -> Tensor:
    """This process's part of a weight that is cut over several."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def sampled_bytes(job: Job, model: Model, world: World, longest: int) -> int:
    """Scoring completions, or writing them here: the larger one. Neither has activations beside it."""
    if not isinstance(job, RolloutJob):
        return 0
    vocabulary = len(model.get_output_embeddings().weight)
    rollouts = -(-job.problems_per_step * job.group_size // world.size)
    scored = _SCORED_BYTES * vocabulary * min(SCORED_ROWS, rollouts * job.max_tokens)
    if job.rollouts is not Sampler.TRANSFORMERS:
        return scored
    return max(scored, written_bytes(job, model, rollouts, longest))


def validated_bytes(job: Job, model: Model, longest: int) -> int:
    """Writing validation answers here; their prompts are taken to be as long as the longest row."""
    if not job.validate_every or (isinstance(job, RolloutJob) and job.rollouts is not Sampler.TRANSFORMERS):
        return 0
    return written_bytes(job, model, job.validation_batch, longest + job.validation_max_tokens)


def written_bytes(job: Job, model: Model, completions: int, longest: int) -> int:
    """Keys, values and logits of so many completions at once; the whole weights too, of a model that is cut."""
    tables = round(4 * _SAMPLED_TABLES * len(model.get_output_embeddings().weight) * completions)
    cut = sum(weight.numel() for weight in model.parameters() if _local(weight) is not weight)
    whole: int = cut * getattr(torch, job.dtype).itemsize
    return completions * longest * cache_bytes(job, model) + tables + whole


def cache_bytes(job: Job, model: Model) -> int:
    """Keys and values of one token in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * getattr(torch, job.dtype).itemsize)


def measure_activations(model: Model, length: int, device: torch.device) -> Activations:
    """Two forward passes, of a row of `length` tokens and of half of it."""

    def kept(tokens: int) -> float:
        found = kept_bytes(model, tokens, device)
        if runs_again(model):
            with remembering(model):
                found += kept_bytes(model, tokens, device) // model.config.get_text_config().num_hidden_layers
        return found

    return curve(kept, length)


def measure_outline(model: Model, device: torch.device) -> Activations:
    """As `measure_activations`, of a model without weights, from two layers that get any: the first, and one of the
    middle, as which all others count.

    The model is of no use afterwards.
    """
    trunk, count = model.base_model, len(model.base_model.layers)
    layers = torch.nn.ModuleList(trunk.layers[i] for i in sorted({0, count // 2}))
    trunk.layers = layers
    trunk.to_empty(device=device)
    for weight in trunk.parameters():
        torch.nn.init.constant_(weight, 0.01)  # no random number is drawn that a run without processes does not draw

    def kept_by(first: int, tokens: int) -> int:
        trunk.layers = layers[:first]
        return kept_bytes(model, tokens, device)

    def kept(tokens: int) -> float:
        one, two = (kept_by(n, tokens) for n in (1, len(layers)))
        found = one + (count - 1) * (two - one)
        if runs_again(model):
            with remembering(model):
                one, two = (kept_by(n, tokens) for n in (1, len(layers)))
            found += two - one if count > 1 else one
        return found

    config = model.config.get_text_config()
    limits = (getattr(config, name, None) or PROBE for name in ("max_position_embeddings", "sliding_window"))
    return curve(kept, min(PROBE, *limits))


def runs_again(model: Model) -> bool:
    """Are layers run again in the backward pass, instead of being remembered?"""
    return bool(getattr(model, "is_gradient_checkpointing", False))


def run_again(model: Model, stage: Stage) -> None:
    """Has layers run again in the backward pass, of the value model beside the policy too."""
    checkpoint_activations(model)
    if isinstance(stage, PPOStage):
        checkpoint_activations(stage.value_model.trunk)


def may_run_again(model: Model) -> bool:
    """Are layers remembered that could be run again instead?"""
    return not runs_again(model) and not dropout_of(model)


@contextmanager
def remembering(model: Model) -> Iterator[None]:
    """A block in which they are remembered: so much comes back of one layer in the backward pass."""
    model.gradient_checkpointing_disable()
    try:
        yield
    finally:
        checkpoint_activations(model)


def curve(kept: Callable[[int], float], length: int) -> Activations:
    """Through what is kept of a row of `length` tokens, and of half of it."""
    other = max(1, length // 2)
    whole, half = kept(length), kept(other)
    if other == length:
        return Activations(float(whole), 0.0)
    square = max(0.0, (whole / length - half / other) / (length - other))
    return Activations(whole / length - square * length, square)


def kept_bytes(model: Model, length: int, device: torch.device) -> int:
    """What autograd keeps of one row's forward pass: distinct storages, weights not among them."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Any] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor.detach()  # itself, it would keep its own graph alive for ever

    batch = collate([Row([0] * max(1, length - 1), [0])], [1.0], device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden_NH = completion_hidden(model, batch)
    assert hidden_NH.requires_grad, "what is kept lives as long as this does"
    return int(sum(storage.nbytes() for storage in kept.values()))


def longest_row(stage: Stage, tokenizer: Tokenizer) -> int:
    """Tokens of the longest row that a step may have."""
    if isinstance(stage, ExampleStage):
        return int(stage.lengths.max())
    assert isinstance(stage, RolloutStage), "there is no other kind"
    contexts = [problem.prompt + stage.job.prefill for problem in stage.problems]
    return max(len(tokenize(tokenizer, context)) for context in contexts) + stage.job.max_tokens


def longest_read(stage: Stage) -> int:
    """Tokens of the longest row that a live teacher may read, beyond what all its rows open with; 0 without one."""
    if isinstance(stage, ExampleStage):
        return int(stage.run_lengths.max())
    assert isinstance(stage, RolloutStage), "there is no other kind"
    return max((length + stage.job.max_tokens for length in stage.teacher_lengths()), default=0)


def most_tokens(stage: Stage, longest: int) -> int:
    """Tokens of the largest step."""
    if isinstance(stage, ExampleStage):
        return stage.batches.most_tokens
    assert isinstance(stage, RolloutStage), "there is no other kind"
    return stage.job.problems_per_step * stage.job.group_size * longest


# --- what the machine has -------------------------------------------------------------------------------------------


def used_memory(device: torch.device) -> int:
    """By this process, on the device that it trains on."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _status("VmRSS")


def peak_memory(device: torch.device) -> int:
    """The highest so far, on the device that it trains on."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM")


def free_memory(device: torch.device) -> int:
    """What may still be taken: the device's, or the machine's within the limits of this process's control group."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + held)
    available = _kib(Path("/proc/meminfo"), "MemAvailable")
    return min([available, *_control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _control_groups(membership: Path, root: Path) -> list[int]:
    """What the limits of this process's group and of those above it leave (version 2 of control groups)."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return []
    group = root / own
    return [left for folder in (group, *group.parents) if folder.is_relative_to(root) for left in _left(folder)]


def _left(group: Path) -> list[int]:
    """Limit less use, the page cache that can be dropped not counted as use; nothing where there is no limit."""
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return []
        used = int((group / "memory.current").read_text())
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        cache = sum(int(count) for name, count in lines if name in ("inactive_file", "active_file"))
    except OSError:
        return []
    return [int(limit) - used + cache]


def _status(field: str) -> int:
    return _kib(Path("/proc/self/status"), field)


def _kib(path: Path, field: str) -> int:
    """A line `field: N kB`, in bytes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024
