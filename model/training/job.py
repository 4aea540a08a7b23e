"""What one training process is told: a JSON file with every setting resolved, read into a dataclass.

The recipe has checked bounds already; here names, types and paths are checked, so that a hand-written job also
fails with one clear line. All paths are absolute. Nothing here imports torch models or reads weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar

from model.advantages import Advantage
from model.errors import TrainingError
from model.losses.grpo import Objective
from model.losses.kl import Divergence
from model.losses.kl_estimators import KLEstimator, KLPlace
from model.losses.mismatch import Mismatch
from model.losses.normalise import Normalise
from model.sampling.biased import biased_argument


class JobError(TrainingError):
    """The job itself is wrong: trying again gives the same error."""

    retryable = False


class Schedule(StrEnum):
    """Learning rate after the warm-up, down to `min_lr_share` of its peak."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


class Sampler(StrEnum):
    """What writes a step's rollouts: the trained model itself in this process, or a vLLM that is given its weights."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


class Keep(StrEnum):
    """Which weights become the job's model: the last step's, or the best validated step's."""

    LAST = "last"
    BEST = "best"


class Precision(StrEnum):
    """What the model computes in, or the optimizer's moments are kept in; its master weights are always float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


# What a run would not notice. A recipe has bounds of its own.
_LEAST = {"max_steps": 0, "epochs": 1, "steps": 1, "tokens_per_batch": 1, "tokens_per_micro_batch": 1, "max_length": 1}
_LEAST |= {"checkpoint_every": 1, "learning_rate": 0, "problems_per_step": 1, "group_size": 1, "max_tokens": 1}
_LEAST |= {"threads": 0, "warmup_share": 0, "min_lr_share": 0, "weight_decay": 0, "uld_weight": 0, "kl_weight": 0}
_LEAST |= {"clip_low": 0, "clip_high": 0, "overlong_tokens": 0, "max_refills": 0, "updates_per_step": 1}
_LEAST |= {"validate_every": 0, "validation_temperature": 0}  # more of these: validation.py
_LEAST |= {"value_learning_rate": 0}  # more of these: ppo.py
_MOST = {"warmup_share": 1, "min_lr_share": 1, "validation_top_p": 1}
_ABOVE_0 = ("grad_clip", "temperature", "validation_top_p", "check_timeout_seconds", "validation_check_timeout_seconds")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of every stage."""

    stage: ClassVar[str]

    init: Path  # model folder to start from
    out: Path  # folder of metrics.jsonl, checkpoints/, model/, manifest.json
    seed: int = 0
    prefill: str = ""  # assistant text that every completion starts with; given, so never learned
    learning_rate: float = 1e-4  # peak
    warmup_share: float = 0.03  # share of all steps with a rising learning rate
    schedule: Schedule = Schedule.COSINE
    min_lr_share: float = 0.1
    weight_decay: float = 0.0  # on matrices only
    grad_clip: float = 1.0  # largest global gradient norm
    spike_ratio: float = 0.0  # loss or gradient of so many times the usual make no update, > 1; 0: any does
    normalise: Normalise = Normalise.SEQUENCE
    tokens_per_micro_batch: int = 1024  # tokens run at once; bounds memory, does not change the loss
    tokens_that_fit: int = 0  # fewer, where that many did not fit in an earlier attempt; 0: not known
    checkpoint_every: int = 50  # steps
    keep_checkpoints: int = 2  # the newest ones; beside them the best validated weights
    threads: int = 0  # 0: torch's choice
    dtype: Precision = Precision.BFLOAT16
    optimizer_state: Precision = Precision.FLOAT32  # AdamW's two moments
    activation_checkpointing: bool = False  # layers are run again in the backward pass instead of being remembered
    processes: int = 1  # of this machine, that train together; under torchrun it is torchrun that says how many
    compile: bool = False  # on a GPU, layers are compiled: a minute or so at the start, and less for every step
    lora_rank: int = 0  # r of the adapters that are trained; 0: all weights are
    lora_alpha: float = 32.0  # what they add is multiplied by alpha / r
    lora_targets: tuple[str, ...] = ()  # last names of the linear layers that get one; none: all of the trunk
    validate_every: int = 0  # steps between validations, also before the first and after the last one; 0: none at all
    validation: Path | None = None  # Parquet of PROBLEM_SCHEMA, the prompt as the student sees it; never trained on
    validation_limit: int = 0  # problems asked each time, always those with the lowest ids; 0: all
    validation_samples: int = 4  # answers to a problem: k of pass@k, N of cons@N
    validation_temperature: float = 0.6
    validation_top_p: float = 0.95
    validation_max_tokens: int = 512
    validation_stop: tuple[str, ...] = ()  # texts that end an answer, kept in it
    validation_batch: int = 64  # answers that the trained model writes at once; bounds memory
    validation_checks: tuple[str, ...] = ("math",)
    validation_require: tuple[str, ...] = ("math",)  # checks that an answer must pass; "math|code" takes either
    validation_check_settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # as `check_settings` of grpo
    validation_check_timeout_seconds: float = 5.0
    keep: Keep = Keep.LAST
    trackers: tuple[str, ...] | None = None  # tensorboard, wandb, trackio; None: tensorboard where it is installed
    peak_tflops: float = 0.0  # of one device, 10^12 operations a second, for the metric mfu; 0: known from its name

    def __post_init__(self) -> None:
        require_bounds(self)
        if self.lora_rank < 0 or self.lora_alpha <= 0:
            raise JobError(f"lora_rank = {self.lora_rank} must not be negative, lora_alpha = {self.lora_alpha} not 0")
        if self.processes < 1:
            raise JobError(f"processes = {self.processes}: at least one must train")
        if self.keep_checkpoints < 1:
            raise JobError(f"keep_checkpoints = {self.keep_checkpoints}: at least one must stay to go on from")
        if self.spike_ratio and self.spike_ratio <= 1:
            raise JobError(f"spike_ratio = {self.spike_ratio:g} would skip usual steps: more than 1, or 0 for none")

    @property
    def tokens_at_once(self) -> int:
        """Tokens to run at once, where a row is not longer."""
        return min(self.tokens_per_micro_batch, self.tokens_that_fit or self.tokens_per_micro_batch)

    def step_seed(self, step: int) -> int:
        """What a step's random numbers start from."""
        return self.seed * 1_000_003 + step


def require_bounds(job: Job) -> None:
    """Raises JobError for a number out of its bounds."""
    for name, least in _LEAST.items():
        if (value := getattr(job, name, least)) < least:
            raise JobError(f"{name} = {value}: at least {least}")
    for name, most in _MOST.items():
        if (value := getattr(job, name, most)) > most:
            raise JobError(f"{name} = {value}: at most {most}")
    for name in _ABOVE_0:
        if (value := getattr(job, name, 1)) <= 0:
            raise JobError(f"{name} = {value}: more than 0")


@dataclass(frozen=True, kw_only=True)
class SFTJob(Job):
    """Cross-entropy on accepted completions."""

    stage = "sft"

    examples: Path  # Parquet of TrainingExample
    epochs: int = 3
    max_steps: int = 0  # 0: all epochs
    tokens_per_batch: int = 2048  # prompt and completion tokens per optimizer step, without padding
    max_length: int = 512  # tokens; longer examples are left out and counted


@dataclass(frozen=True, kw_only=True)
class DistillJob(SFTJob):
    """Distance to a teacher's token distributions on the same completions: a live teacher's, or stored ones."""

    stage = "distill"

    teacher: Path | None = None  # model folder; with the student's tokenizer, unless the divergence is uld
    stored: Path | None = None  # Parquet of TeacherPlace, instead of a teacher
    divergence: Divergence = Divergence.FORWARD
    beta: float = 0.5  # jsd only: the teacher's share in the mixture
    temperature: float = 1.0
    uld_weight: float = 1.5  # uld only: λ of its distance beside cross-entropy; arXiv:2402.12030's experiments

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.teacher is None) == (self.stored is None):
            raise JobError("a distill job needs either the field 'teacher' or the field 'stored'")
        if self.stored and (self.divergence, self.temperature) != (Divergence.FORWARD, 1.0):
            raise JobError("stored log-probabilities allow divergence = 'forward' and temperature = 1 only")
        if self.divergence is Divergence.ULD and self.temperature != 1.0:
            raise JobError("divergence = 'uld' allows temperature = 1 only")
        if not 0 < self.beta < 1:
            raise JobError(f"beta = {self.beta}: it must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class RolloutJob(Job):
    """What stages share whose model writes what it learns from."""

    problems: Path  # Parquet of PROBLEM_SCHEMA, the prompt as the student sees it
    steps: int = 12
    problems_per_step: int = 8
    group_size: int = 8
    max_tokens: int = 48  # completion tokens of a rollout; also the length of normalise = "constant"
    temperature: float = 1.0
    stop: tuple[str, ...] = ()  # texts that end a rollout, kept in it
    format_weight: float = 0.2  # λ of the reward
    checks: tuple[str, ...] = ("format", "math")
    check_settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # of model.rewards.settings.CheckSettings
    check_timeout_seconds: float = 5.0
    rollouts: Sampler = Sampler.TRANSFORMERS
    rollout_python: str = ""  # vllm: interpreter that has it; empty: this one
    rollout_urls: tuple[str, ...] = ()  # vllm: engines of yours that read this machine's folders; empty: one of ours
    rollout_lent: str = ""  # vllm: engine that the starter of this process runs on the CPU and lends, instead of both
    rollout_gpu_memory: float = 0.4  # vllm: share of the trainer's GPU that its engine may fill
    rollout_args: tuple[str, ...] = ()  # vllm: further command-line arguments of its engine
    rollouts_ahead: int = 0  # vllm: 1: a step's rollouts are sampled during the update before, by its older weights
    degenerate_window: int = 20  # steps that must all have gone wrong before the run is stopped; 0: never
    degenerate_truncated_share: float = 0.95  # at least so many completions cut at max_tokens
    degenerate_entropy: float = 0.001  # −Σ π log π, nats a token, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollouts is not Sampler.VLLM and (self.rollout_urls or self.rollouts_ahead):
            raise JobError("rollout_urls and rollouts_ahead are for rollouts = 'vllm'")
        if self.rollouts_ahead not in (0, 1):
            raise JobError(f"rollouts_ahead must be 0 or 1, got {self.rollouts_ahead}")
        if biased := biased_argument(self.rollout_args):
            raise JobError(
                f"rollout_args: {biased} would tell log-probabilities of another distribution than the trainer's"
            )


@dataclass(frozen=True, kw_only=True)
class GRPOJob(RolloutJob):
    """Group-relative policy optimisation with verifiers as rewards."""

    stage = "grpo"

    updates_per_step: int = 1  # optimizer updates on one set of rollouts
    advantage: Advantage = Advantage.GRPO
    objective: Objective = Objective.GRPO
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_weight: float = 0.02
    kl_estimator: KLEstimator = KLEstimator.K3
    kl_in: KLPlace = KLPlace.LOSS
    overlong_tokens: int = 0  # last tokens of max_tokens in which the reward falls by up to 1
    mismatch: Mismatch = Mismatch.NONE
    mismatch_low: float = 0.5  # icepop: lower bound of ρ
    mismatch_high: float = 2.0  # tis, icepop: upper bound of ρ
    max_refills: int = 0  # rounds in which groups without advantage are dropped and others sampled; 0: they stay
    degenerate_silent_share: float = 0.99  # at least so many groups without advantage
    degenerate_clip_share: float = 0.9  # at least so many tokens clipped, or at a bound of `mismatch`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage == "grpo" and self.group_size < 2 and self.advantage is not Advantage.RFT:
            raise JobError("group_size = 1 leaves nothing to compare a rollout with: at least 2")
        if self.rollouts is not Sampler.VLLM and self.mismatch is not Mismatch.NONE:
            raise JobError("mismatch is for rollouts = 'vllm'")
        if self.advantage is Advantage.RFT and (self.format_weight >= 1 or self.overlong_tokens):
            raise JobError(
                "advantage = 'rft' takes a reward of 1 and more for right: set format_weight, which is "
                f"{self.format_weight:g}, below 1 and overlong_tokens, which is {self.overlong_tokens}, to 0"
            )
        if not self.mismatch_low < 1 < self.mismatch_high:
            raise JobError(f"1 must lie between mismatch_low = {self.mismatch_low} and {self.mismatch_high}")
        if self.rollouts_ahead and self.mismatch is Mismatch.NONE:
            raise JobError("rollouts_ahead = 1 samples with older weights: set mismatch = 'tis' or 'icepop'")
        if self.rollouts_ahead and self.max_refills:
            raise JobError("rollouts_ahead = 1 and max_refills exclude each other: set one of them to 0")


@dataclass(frozen=True, kw_only=True)
class OnPolicyJob(RolloutJob):
    """Distance to a teacher's token distributions on what the student itself writes."""

    stage = "on_policy"

    teacher: Path  # model folder with the student's tokenizer
    # `problems` may have a column teacher_prompt, the prompt as the teacher sees it; else it sees the student's.
    group_size: int = 1
    divergence: Divergence = Divergence.REVERSE
    beta: float = 0.5  # jsd only: the teacher's share in the mixture
    divergence_temperature: float = 1.0  # softens both distributions; `temperature` is the sampler's
    checks: tuple[str, ...] = ()  # their reward is only measured; none: it is not

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence is Divergence.ULD:
            raise JobError("divergence = 'uld' is for distill: an on_policy teacher has the student's tokenizer")
        if not (0 < self.beta < 1 and self.divergence_temperature > 0):
            raise JobError("beta must lie in (0, 1), and divergence_temperature above 0")


@dataclass(frozen=True, kw_only=True)
class PPOJob(GRPOJob):
    """GRPO's rollouts and objective with a value model's advantages; `advantage` has no meaning here."""

    stage = "ppo"

    kl_estimator: KLEstimator = KLEstimator.K1
    kl_in: KLPlace = KLPlace.REWARD
    discount: float = 1.0  # γ
    gae_lambda: float = 1.0  # λ; long chains want it near 1 (docs/math.md)
    whiten: bool = True  # advantages of a step's tokens to mean 0 and std 1
    value_learning_rate: float = 1e-4  # peak; the job's schedule
    value_clip: float = 0.2  # largest step of a value that the loss rewards, in units of reward; 0: no clip

    def __post_init__(self) -> None:
        if self.rollouts_ahead:
            raise JobError("ppo takes no rollouts_ahead: its rollouts are sampled by the policy that it updates")
        super().__post_init__()


JOBS: dict[str, type[Job]] = {job.stage: job for job in (SFTJob, DistillJob, OnPolicyJob, GRPOJob, PPOJob)}


def read_job(path: Path) -> Job:
    """The job in a JSON file. Raises JobError for anything that does not fit, naming the field."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"cannot read the job {path}: {error}") from error
    if not isinstance(raw, dict):
        raise JobError(f"{path}: a job is a JSON object")
    stage = raw.pop("stage", None)
    if stage not in JOBS:
        raise JobError(f"{path}: stage is {stage!r}, expected one of {', '.join(JOBS)}")
    return job_from(JOBS[stage], raw)


def job_from(kind: type[Job], raw: dict[str, Any]) -> Job:
    """A job of the given kind from plain JSON values. Raises JobError, naming the field."""
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in raw.keys() - known.keys():
        nearest = get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise JobError(f"a {kind.stage} job has no field {name!r}; the nearest is {nearest!r}")
    for name in _required(kind) - raw.keys():
        raise JobError(f"a {kind.stage} job needs the field {name!r}")
    values = {name: _value(name, hints[name], value) for name, value in raw.items()}
    for name, value in values.items():
        if isinstance(value, Path) and name != "out" and not value.exists():
            raise JobError(f"{name}: there is no {value}")
    return kind(**values)


def as_json(job: Job) -> dict[str, Any]:
    """The job as plain JSON values; `job_from` reads them back."""
    values = {name: _plain(value) for name, value in dataclasses.asdict(job).items()}
    return {"stage": job.stage, **values}


def _required(kind: type[Job]) -> set[str]:
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return {field.name for field in fields if field.default is missing and field.default_factory is missing}


def _value(name: str, hint: Any, raw: Any) -> Any:
    """`raw` as the type of its field."""
    if raw is None and type(None) in typing.get_args(hint):
        return None
    origin = _origin(hint)
    try:
        if origin is tuple and isinstance(raw, list):
            if other := [each for each in raw if not isinstance(each, str)]:
                raise JobError(f"{name}: {other[0]!r} is not a text")
            return tuple(raw)
        if issubclass(origin, StrEnum) and raw not in list(origin):
            raise JobError(f"{name}: {raw!r} is none of {', '.join(origin)}")
        if issubclass(origin, (Path, StrEnum)):
            return origin(raw)
    except (TypeError, ValueError) as error:
        raise JobError(f"{name}: {error}") from error
    if origin is float and type(raw) is int:
        return float(raw)
    if type(raw) is not origin:
        raise JobError(f"{name}: {raw!r} is not {_KINDS.get(origin, origin.__name__)}")
    if origin is float and not math.isfinite(raw):  # Python's JSON has NaN and Infinity
        raise JobError(f"{name}: {raw} is no finite number")
    return raw


_KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false", tuple: "a list"}


def _origin(hint: Any) -> Any:
    """The class that a field's values are of, apart from None."""
    if isinstance(hint, UnionType):
        hint = typing.get_args(hint)[0]
    return typing.get_origin(hint) or hint


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
