"""One step of every stage comes to the same loss and gradient however its rows are ordered, packed, cut and shared.

The reference has each row alone in a micro-batch of one process. Beside it stand drawn orders, token budgets (from a
row alone to all rows in one pack), chunks of the head, and numbers of processes, whose shares are made as each process
makes its own and whose gradients are summed as FSDP2 sums them. That real processes do so: test_parallel.py.
Offline RFT is SFT on whichever rows were accepted, so `sft` on drawn rows is both. Not here: what PPO's value model
learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.losses import head
from model.losses.normalise import Normalise
from model.records import EXAMPLE_SCHEMA, PROBLEM_SCHEMA, FinishReason, Problem, TrainingExample, to_table
from model.training.cross_tokenizer import CrossTokenizerStage
from model.training.data import collate, lengths_of
from model.training.distill import DistillStage, StoredDistillStage
from model.training.forward import Model, completion_log_probs
from model.training.grpo import GRPOStage
from model.training.job import JOBS, job_from
from model.training.on_policy import OnPolicyStage
from model.training.optimizer import MasterAdamW
from model.training.parallel import World
from model.training.ppo import PPOStage
from model.training.rollouts import LocalRollouts, Rollout
from model.training.sft import ExampleStage, SFTStage
from model.training.step import MicroBatch, accumulate
from model.training.value_model import ValueModel
from tests.model.training.pair import RawJob
from tests.model.training.test_cross_tokenizer import word_tokenizer
from tests.model.training.tiny import (
    ALONE,
    PREFILL,
    Never,
    make_model,
    make_tokenizer,
    save_tiny,
    teacher_row,
    write_teacher_rows,
)

CPU = torch.device("cpu")
POOL, QUESTIONS = 12, 3  # rows to draw from, of 3 to 14 completion tokens, four to a question
OPENING = "say only the sum: "  # of all rows, long enough to be run once
TOLERANCE = 1e-5  # relative; float32's unit roundoff is 6e-8

# What is trained, by name; of GRPO's family as a second update of the step: ratios are not 1, and some are clipped.
POLICY: RawJob = {"stage": "grpo", "updates_per_step": 2, "kl_weight": 0.05, "max_tokens": 16}
ENGINE: RawJob = POLICY | {"rollouts": "vllm"}
LIVE: RawJob = {"stage": "distill", "teacher": "teacher", "max_length": 64}
KINDS: dict[str, RawJob] = {
    "sft": {"stage": "sft", "max_length": 64},
    "forward kl": LIVE,
    "reverse kl": LIVE | {"divergence": "reverse"},
    "jsd": LIVE | {"divergence": "jsd", "beta": 0.3, "temperature": 2.0},
    "uld": LIVE | {"divergence": "uld", "teacher": "words"},
    "stored top-k": {"stage": "distill", "stored": "places.parquet", "max_length": 64},
    "on policy": {"stage": "on_policy", "teacher": "teacher", "max_tokens": 16},
    "grpo": POLICY,
    "dapo, k1 in the reward": POLICY | {"clip_high": 0.28, "kl_estimator": "k1", "kl_in": "reward"},
    "gspo": POLICY | {"objective": "gspo", "clip_low": 0.02, "clip_high": 0.02},
    "cispo by an engine, tis": ENGINE | {"objective": "cispo", "mismatch": "tis"},
    "grpo by an engine, icepop": ENGINE | {"mismatch": "icepop"},
    "online rft": POLICY | {"advantage": "rft", "kl_weight": 0.0},
    "ppo": POLICY | {"stage": "ppo"},
}


@dataclass(frozen=True)
class Cut:
    """How a step is cut up."""

    budget: int  # tokens run at once
    processes: int
    chunk: int  # tokens whose logits are made at once


EACH_ALONE = Cut(budget=1, processes=1, chunk=256)


@dataclass(frozen=True)
class Step:
    """What a step is made of: some rows of the pool in an order, and an advantage or reward for each of the pool."""

    rows: list[int]
    worth: list[float]


steps = st.builds(
    Step,
    rows=st.lists(st.integers(0, POOL - 1), unique=True, min_size=2, max_size=5),
    worth=st.lists(st.sampled_from([1.0, -1.5, 0.5, 0.0]), min_size=POOL, max_size=POOL),
)
cuts = st.builds(Cut, budget=st.integers(1, 240), processes=st.integers(1, 3), chunk=st.integers(1, 40))


def loud_model(seed: int, vocabulary: int = 48) -> Model:
    """Whose attention and preferences are strong enough for a mistake in them to show."""
    model = make_model(seed, vocabulary)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(6.0)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, examples, problems and stored rows of a teacher."""
    folder = tmp_path_factory.mktemp("invariance")
    for name, seed in (("init", 1), ("teacher", 2)):
        loud_model(seed).save_pretrained(save_tiny(folder / name))
    loud_model(3, vocabulary=56).save_pretrained(folder / "words")
    word_tokenizer().save_pretrained(folder / "words")
    prompts = [f"{OPENING}q: {i} + 1{'0' * i}? " for i in range(QUESTIONS)]
    texts = [f"{PREFILL}{'so ' * (i // QUESTIONS)}{i}." for i in range(POOL)]
    examples = [
        TrainingExample(f"sample-{i}", "p", prompts[i % QUESTIONS], "q: 1 + 1? a: 2. " + prompts[i % 3], text, "1")
        for i, text in enumerate(texts)
    ]
    problems = [Problem(f"problem-{i}", "math", "tiny", prompt, "1") for i, prompt in enumerate(prompts)]
    pq.write_table(to_table(examples, EXAMPLE_SCHEMA), folder / "examples.parquet")
    pq.write_table(to_table(problems, PROBLEM_SCHEMA), folder / "problems.parquet")
    write_stored(folder)
    return folder


def write_stored(folder: Path) -> None:
    """Random log-probabilities of eight tokens at each of the examples' tokens, with mass left for the others."""
    stage = DistillStage(make_job(folder, LIVE, "writes"), make_tokenizer(), ALONE, Never())
    generator, stored = torch.Generator().manual_seed(0), []
    for i in range(POOL):
        row = stage.teacher_row(i)
        shares_TV = torch.randn(len(row.completion), stage.vocabulary, generator=generator).log_softmax(-1)
        log_probs_TK, ids_TK = shares_TV.topk(8)
        stored.append(teacher_row(f"sample-{i}", row, ids_TK, log_probs_TK))
    write_teacher_rows(folder, stored)


def make_job(folder: Path, raw: RawJob, out: str) -> Any:
    values = dict(raw)
    stage = JOBS[values.pop("stage")]
    data = "examples" if stage.stage in ("sft", "distill") else "problems"
    values |= {"init": "init", "out": out, data: f"{data}.parquet", "prefill": PREFILL, "dtype": "float32"}
    paths = ("init", "out", "examples", "problems", "teacher", "stored")
    return job_from(stage, {name: str(folder / value) if name in paths else value for name, value in values.items()})


class Trained:
    """A stage, and the weights before and after a step's first update."""

    def __init__(self, folder: Path, name: str) -> None:
        self.job = make_job(folder, KINDS[name], f"out/{name}")
        self.model = loud_model(1)
        self.before = {key: weight.clone() for key, weight in self.model.state_dict().items()}
        generator = torch.Generator().manual_seed(4)
        self.after = {
            key: weight + 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
            for key, weight in self.before.items()
        }
        examples = SFTStage(make_job(folder, KINDS["sft"], "out/pool"), make_tokenizer(), ALONE, Never())
        self.rollouts = [Rollout(examples.row(i), "", FinishReason.STOP) for i in range(POOL)]
        if KINDS[name].get("rollouts") == "vllm":
            self.rollouts = [replace(each, log_probs=self._told(each, generator)) for each in self.rollouts]
        self.stage: Any = self._stage()

    def _told(self, rollout: Rollout, generator: torch.Generator) -> list[float]:
        """Log-probabilities of an engine, so far from the trainer's that some ratios meet their bounds."""
        own_N = completion_log_probs(self.model, collate([rollout.row], [1.0], CPU), 1.0)
        found: list[float] = (own_N + 0.7 * torch.randn(len(own_N), generator=generator)).tolist()
        return found

    def _stage(self) -> Any:
        job, tokenizer = self.job, make_tokenizer()
        if job.stage == "sft":
            return SFTStage(job, tokenizer, ALONE, Never())
        if job.stage == "distill":
            kind = StoredDistillStage if job.stored else DistillStage
            return (CrossTokenizerStage if job.divergence == "uld" else kind)(job, tokenizer, ALONE, Never())
        sampler = LocalRollouts(self.model, tokenizer, ALONE, temperature=1.0, max_tokens=job.max_tokens, stop=())
        if job.stage == "on_policy":
            return OnPolicyStage(job, self.model, tokenizer, sampler, ALONE)
        if job.stage == "ppo":
            values = ValueModel(job, loud_model(5), ALONE)
            return PPOStage(job, self.model, loud_model(2), sampler, pays_nothing, values, ALONE)
        return GRPOStage(job, self.model, loud_model(2), sampler, pays_nothing, ALONE)

    def shares(self, step: Step, cut: Cut) -> list[list[MicroBatch]]:
        """The step's micro-batches of each process."""
        self.stage.tokens_at_once = cut.budget
        if isinstance(self.stage, PPOStage):
            return self._ppo_shares(step, cut)
        return [self._share(step) for _ in self._each_process(cut)]

    def _each_process(self, cut: Cut) -> Iterator[int]:
        """The stage stands in each process in turn."""
        for rank in range(cut.processes):
            self.stage.world = World(CPU, rank, cut.processes)
            yield rank

    def _share(self, step: Step) -> list[MicroBatch]:
        stage, rollouts = self.stage, [self.rollouts[i] for i in step.rows]
        if isinstance(stage, ExampleStage):
            stage.batches = [step.rows]  # type: ignore[assignment]
            return list(stage.prepare(1).micro_batches)
        if isinstance(stage, OnPolicyStage):
            return stage.micro_batches(rollouts, [stage.problems[i % QUESTIONS] for i in step.rows])
        worth = [step.worth[i] for i in step.rows]
        advantages = [float(w > 0) for w in worth] if self.job.advantage == "rft" else worth
        found: list[MicroBatch] = stage.micro_batches(rollouts, torch.tensor(advantages))
        return found

    def _ppo_shares(self, step: Step, cut: Cut) -> list[list[MicroBatch]]:
        """Advantages are whitened over what the processes have together."""
        rollouts, rewards_B = [self.rollouts[i] for i in step.rows], torch.tensor([step.worth[i] for i in step.rows])
        assessed = [self.stage.assess(rollouts, rewards_B) for _ in self._each_process(cut)]
        together_N = torch.cat([each.advantages_N for own in assessed for each in own])
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(World, "together", lambda _self, _own_N: together_N)
            return [self.stage.policy_batches(assessed[rank]) for rank in self._each_process(cut)]

    def outcome(self, step: Step, normalise: Normalise, cut: Cut) -> Outcome:
        """What the processes' loss, gradients and metrics sum to, as those of an update are summed."""
        self.stage.job = replace(self.job, normalise=normalise)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(head, "CPU_ROWS", cut.chunk)
            self.model.load_state_dict(self.before)
            shares = self.shares(step, cut)
            self.model.load_state_dict(self.after)
            self.model.zero_grad()
            optimizer = MasterAdamW(self.model, 0.0)
            lines = [accumulate(self.model, optimizer, share) for share in shares]
        sums: dict[str, float] = {}
        for line in lines:
            counts = {name: line.pop(name) for name in ("loss", "loss_tokens", "tokens")}
            own = counts | {name: mean * counts["loss_tokens"] for name, mean in line.items()}
            sums |= {name: sums.get(name, 0.0) + value for name, value in own.items()}
        none = torch.zeros(())  # where no process has a row that teaches
        gradients = {
            name: (weight.grad if weight.grad is not None else none).expand_as(weight).clone()
            for name, weight in self.model.named_parameters()
        }
        return Outcome(sums, gradients, max(len(share) for share in shares))


@dataclass(frozen=True)
class Outcome:
    """A whole step's loss and sums of its metrics, and every weight's gradient."""

    sums: dict[str, float]
    gradients: dict[str, Tensor]
    micro_batches: int  # of a process

    def differs(self, expected: Outcome) -> float:
        """The largest difference among loss, metrics and each weight's gradient, relative to what each should be.

        To at least 0.1 of a number and a thousandth of the whole gradient, where terms cancel.
        """
        assert self.sums.keys() == expected.sums.keys()
        numbers = [abs(self.sums[name] - value) / max(abs(value), 0.1) for name, value in expected.sums.items()]
        whole = torch.cat([gradient.flatten() for gradient in expected.gradients.values()]).norm().item()
        weights = [
            ((self.gradients[name] - gradient).norm() / max(gradient.norm().item(), 1e-3 * whole, 1e-9)).item()
            for name, gradient in expected.gradients.items()
        ]
        return max(*numbers, *weights)


def pays_nothing(rollouts: Sequence[Rollout], _problems: Sequence[Problem]) -> list[float]:
    """Rewards and advantages are drawn."""
    return [0.0] * len(rollouts)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Callable[[str], Trained]:
    """What is trained by a name, made once."""
    made: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in made:
            made[name] = Trained(folder, name)
        return made[name]

    return get


@pytest.mark.parametrize("normalise", list(Normalise))
@pytest.mark.parametrize("name", KINDS)
def test_neither_order_nor_packing_nor_cuts_nor_processes_change_a_step(
    name: str, normalise: Normalise, trained: Callable[[str], Trained]
) -> None:
    its = trained(name)

    # Not shrunk: a failing step is small as it is, and every try trains.
    @settings(max_examples=5, deadline=None, phases=[Phase.reuse, Phase.generate])
    @given(steps, cuts)
    def check(step: Step, cut: Cut) -> None:
        expected = its.outcome(replace(step, rows=sorted(step.rows)), normalise, EACH_ALONE)
        assert its.outcome(step, normalise, cut).differs(expected) < TOLERANCE

    check()


def test_the_reference_learns_and_has_every_row_alone(trained: Callable[[str], Trained]) -> None:
    for name in KINDS:
        found = trained(name).outcome(Step([0, 5, 10], [1.0, 0.5] * (POOL // 2)), Normalise.TOKEN, EACH_ALONE)
        assert found.micro_batches == 3
        assert all(gradient.norm() > 1e-6 for gradient in found.gradients.values()), name


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_a_mean_of_each_micro_batch_is_seen(
    name: str, trained: Callable[[str], Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake that the property is there for: every pack divides by its own tokens."""

    def by_pack(rows: Any, weights: Sequence[float], device: torch.device) -> Any:
        return collate(rows, [1 / lengths_of(rows).sum().item() for _ in weights], device)

    for module in ("sft", "grpo"):
        monkeypatch.setattr(f"model.training.{module}.collate", by_pack)
    its, step = trained(name), Step([0, 5, 10], [1.0, 0.5] * (POOL // 2))
    expected = its.outcome(step, Normalise.TOKEN, EACH_ALONE)
    assert its.outcome(step, Normalise.TOKEN, Cut(240, 1, 256)).differs(expected) > 0.1
