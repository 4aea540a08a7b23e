"""How fast is a training step beside TRL's, in tokens without padding a second?

One Llama of 135M parameters (builtin:smollm2-135m-instruct), the same rows and token budgets, full fine-tuning, no
recomputation of activations. Each way runs in a process of its own, ways take turns, the first step of a process is not
counted, and the best step of all rounds counts.
  sft    the samples that the demo accepted (`make demo` first; or `--examples FILE`, of a run's selections/), in
         global batches of 2048 tokens, micro-batches of 1024. Ours: `run_step` of an SFT job with its packing. TRL:
         `SFTTrainer.train` with packing (its default strategy, bfd) and without.
  grpo   one update on fixed rollouts (4 problems, 8 answers each), all at once, with the KL term: the reference scores
         them, then loss, gradients, optimizer. `grpo_no_kl`: without. TRL: `GRPOTrainer.train`, loss_type "grpo".
Ours runs what the rows of a micro-batch open with once (`model/training/shared_prefixes.py`); `ours, nothing shared` is
the same without that, to tell it from the rest. Tokens count as if nothing were shared.
Precision. Ours computes in bfloat16 and keeps float32 master weights. TRL has two ways: `bf16 weights`, all of it in
bfloat16 (as fast as it gets; updates are rounded away, so nobody should train so at small rates), and `autocast`, its
default, float32 weights that are cast on the fly: the same guarantee as ours. To keep all of it within nine minutes on
two quiet cores, some ways run in the first round only, and autocast for grpo with `--all` alone.
`agreement`: loss and gradient norm of one of TRL's packs in float32, by both. For grpo the losses and norms of the
steps stand beside the times: all ways update on the same rollouts from the same weights.
Not measured: generation, and anything on a GPU unless there is one.

    python -m benchmarks.training_speed --trl FOLDER     (FOLDER: TRL's wheel unpacked; it needs accelerate, datasets)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks.machine import describe, unpacked_version
from benchmarks.training_data import PREFILL, Groups, newest, write_groups
from model.losses.normalise import Normalise
from model.pretrained import resolve_model
from model.records import Problem
from model.training import shared_prefixes
from model.training.data import Row, collate
from model.training.grpo import GRPOStage
from model.training.job import GRPOJob, Job, Precision, Schedule, SFTJob
from model.training.load import load_model
from model.training.optimizer import MasterAdamW
from model.training.parallel import World
from model.training.rollouts import Rollout
from model.training.sft import SFTStage, sft_kernel
from model.training.step import MicroBatch, Stage, accumulate, run_step

MODEL, RATE, KL_WEIGHT, PROBLEMS = "builtin:smollm2-135m-instruct", 1e-5, 0.02, 4
BATCH, MICRO_BATCH = 2048, 1024  # tokens
DEMO = Path("data/demo")
UNSHARED = "ours, nothing shared"
OURS = ("ours", UNSHARED)
WAYS = {
    "sft": ("ours", UNSHARED, "trl, bf16 weights", "trl, bf16 weights, unpacked", "trl, autocast"),
    "grpo": ("ours", UNSHARED, "trl, bf16 weights", "trl, autocast"),
    "grpo_no_kl": ("ours", "trl, bf16 weights"),
}
SLOW = (("grpo", "trl, autocast"),)
FIRST_ROUND_ONLY = (
    ("grpo", UNSHARED),
    ("sft", "trl, bf16 weights, unpacked"),
    ("sft", "trl, autocast"),
    ("grpo_no_kl", "ours"),
    ("grpo_no_kl", "trl, bf16 weights"),
)
Step = dict[str, float]


# --- ours -----------------------------------------------------------------------------------------------------------


def our_sft(folder: Path, examples: Path, scratch: Path, steps: int) -> list[Step]:
    """Steps of an SFT job."""
    world = _world()
    model, tokenizer = load_model(folder, Precision.BFLOAT16, world.device)
    job = SFTJob(
        init=folder,
        out=scratch,
        examples=examples,
        tokens_per_batch=BATCH,
        tokens_per_micro_batch=MICRO_BATCH,
        normalise=Normalise.TOKEN,
        **_same(),
    )
    stage = SFTStage(job, tokenizer, world, SimpleNamespace(received=False))
    tokens = [int(stage.lengths[stage.batches[step]].sum()) for step in range(steps)]
    return _timed(job, stage, model, world, tokens)


class Fixed:
    """A sampler that answers from a list."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    def current(self) -> Any:
        """See `Rollouts`."""
        return nullcontext({})

    def sample(self, contexts: Sequence[str]) -> list[Rollout]:
        """See `Rollouts`."""
        return [rollout for context in dict.fromkeys(contexts) for rollout in self.groups.rollouts[context]]

    def reward(self, _rollouts: Sequence[Rollout], chosen: Sequence[Problem]) -> list[float]:
        """See `Reward`."""
        return self.groups.rewards * (len(chosen) // len(self.groups.rewards))


def our_grpo(folder: Path, scratch: Path, steps: int, kl_weight: float) -> list[Step]:
    """Steps of a GRPO job whose rollouts are given."""
    world = _world()
    model, tokenizer = load_model(folder, Precision.BFLOAT16, world.device)
    reference = load_model(folder, Precision.BFLOAT16, world.device)[0] if kl_weight else None
    groups = write_groups(scratch / "problems.parquet", tokenizer, PROBLEMS)
    rows = [rollout.row for group in groups.rollouts.values() for rollout in group]
    job = GRPOJob(
        init=folder,
        out=scratch,
        problems=scratch / "problems.parquet",
        steps=steps,
        problems_per_step=PROBLEMS,
        group_size=len(rows) // PROBLEMS,
        kl_weight=kl_weight,
        tokens_per_micro_batch=sum(row.length for row in rows),
        **_same(),
    )
    fixed = Fixed(groups)
    stage = GRPOStage(job, model, reference, fixed, fixed.reward, _world())
    return _timed(job, stage, model, world, [sum(row.length for row in rows)] * steps)


def _same() -> dict[str, Any]:
    """Settings of every job here, as TRL's are set."""
    return {
        "prefill": PREFILL,
        "learning_rate": RATE,
        "schedule": Schedule.CONSTANT,
        "warmup_share": 0.0,
        "grad_clip": 1e9,
    }


def _world() -> World:
    return World(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _timed(job: Job, stage: Stage, model: Any, world: World, tokens: Sequence[int]) -> list[Step]:
    optimizer = MasterAdamW(model, job.weight_decay, job.dtype, world)
    found = []
    for step, count in enumerate(tokens, start=1):
        started, spent = time.perf_counter(), time.process_time()
        line = run_step(job, stage, model, optimizer, step)
        seconds, processor = time.perf_counter() - started, time.process_time() - spent
        kept = {"loss": line["loss"], "grad_norm": line["grad_norm"]}
        found.append({"tokens": float(count), "seconds": seconds, "cpu_seconds": processor, **kept})
    return found


# --- one process ----------------------------------------------------------------------------------------------------


def measure(part: str, way: str, examples: Path, steps: int) -> list[Step]:
    """The steps of one way, in this process."""
    folder = Path(resolve_model(MODEL))
    kl_weight = KL_WEIGHT if part == "grpo" else 0.0
    with tempfile.TemporaryDirectory() as scratch:
        if way == UNSHARED:
            shared_prefixes.LEAST_SAVED = sys.maxsize
        if way in OURS and part == "sft":
            return our_sft(folder, examples, Path(scratch), steps)
        if way in OURS:
            return our_grpo(folder, Path(scratch), steps, kl_weight)
        from benchmarks import training_speed_trl as trl

        weights = "autocast" if "autocast" in way else "bfloat16"
        given: dict[str, Any] = {"weights": weights, "steps": steps, "rate": RATE}
        if part == "sft":
            rows, parts = our_rows(folder, examples, Path(scratch)), BATCH // MICRO_BATCH
            return trl.sft_steps(folder, rows, packing="unpacked" not in way, budget=MICRO_BATCH, parts=parts, **given)
        groups = write_groups(Path(scratch) / "problems.parquet", _tokenizer(folder), PROBLEMS)
        return trl.grpo_steps(folder, groups, parts=1, kl_weight=kl_weight, **given)


def our_rows(folder: Path, examples: Path, scratch: Path) -> list[Row]:
    """The examples as token ids."""
    stage = SFTStage(
        SFTJob(init=folder, out=scratch, examples=examples, **_same()),
        _tokenizer(folder),
        _world(),
        SimpleNamespace(received=False),
    )
    return [stage.row(index) for index in range(len(stage.lengths))]


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def agreement(examples: Path) -> dict[str, dict[str, float]]:
    """Loss and gradient norm of one of TRL's packs, in float32, by both sides."""
    from benchmarks.training_speed_trl import packed_loss

    folder = Path(resolve_model(MODEL))
    with tempfile.TemporaryDirectory() as scratch:
        rows, loss, norm = packed_loss(folder, our_rows(folder, examples, Path(scratch)), budget=MICRO_BATCH // 4)
    model, _ = load_model(folder, Precision.FLOAT32, _world().device)
    optimizer = MasterAdamW(model, 0.0)
    count = sum(len(row.completion) for row in rows)
    batch = collate(rows, [1 / count] * len(rows), _world().device)
    ours = accumulate(model, optimizer, [MicroBatch(batch, sft_kernel(batch))])["loss"]
    our_norm = torch.nn.utils.get_total_norm([m.grad for m in optimizer.masters if m.grad is not None]).item()
    return {"ours": {"loss": ours, "grad_norm": our_norm}, "trl": {"loss": loss, "grad_norm": norm}}


# --- all of them ----------------------------------------------------------------------------------------------------


def main() -> None:
    arguments = _arguments()
    if arguments.trl:
        sys.path.append(str(arguments.trl))
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        part, way = arguments.one
        given = arguments.examples
        print(json.dumps(agreement(given) if part == "agreement" else measure(part, way, given, arguments.steps)))
        return
    figures = {part: _rounds(part, arguments) for part in WAYS}
    result = {
        "ratios": {part: _ratios(ways) for part, ways in figures.items()},
        "ways": figures,
        "agreement": _in_a_process("agreement", "both", arguments) if arguments.trl else None,
        "shape": {
            "model": MODEL,
            "examples": pq.read_metadata(arguments.examples).num_rows,
            "selection": arguments.examples.stem,  # its content's hash
            "tokens_per_batch": BATCH,
            "tokens_per_micro_batch": MICRO_BATCH,
            "rollouts": PROBLEMS * 8,
        },
        "threads": arguments.threads,
        "peers": {"trl": unpacked_version(arguments.trl, "trl")},
        "machine": describe(["torch", "transformers", "accelerate"]),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["ratios"], indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every way in every round")
    parser.add_argument("--steps", type=int, default=3, help="of a process, the first of which is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl", type=Path, help="folder that TRL's wheel was unpacked to; left out without it")
    parser.add_argument("--examples", type=Path, help="Parquet of TrainingExample; the demo's newest where not given")
    parser.add_argument("--one", nargs=2, metavar=("PART", "WAY"), help="what the other processes are started with")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    arguments.examples = arguments.examples or newest(DEMO, SFTJob.stage)
    return arguments


def _rounds(part: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By way: the best step."""
    best: dict[str, dict[str, Any]] = {}
    for turn in range(arguments.rounds):
        for way in WAYS[part]:
            left_out = (part, way) in SLOW or (turn and (part, way) in FIRST_ROUND_ONLY)
            if (way not in OURS and not arguments.trl) or (left_out and not arguments.all):
                continue
            best[way] = _better(best.get(way), _in_a_process(part, way, arguments))
            print(part, way, best[way], flush=True)
    return best


def _better(before: Mapping[str, Any] | None, steps: Sequence[Step]) -> dict[str, Any]:
    """The best rates so far, and what the steps came to."""
    counted = steps[1:]
    wall = max(step["tokens"] / step["seconds"] for step in counted)
    processor = max(step["tokens"] / step["cpu_seconds"] for step in counted)
    return {
        "tokens_per_second": round(max(wall, before["tokens_per_second"] if before else 0.0), 1),
        "tokens_per_cpu_second": round(max(processor, before["tokens_per_cpu_second"] if before else 0.0), 1),
        "losses": [round(step["loss"], 5) for step in steps],
        "grad_norms": [round(step["grad_norm"], 4) for step in steps],
        "tokens": [step["tokens"] for step in steps],
    }


def _in_a_process(part: str, way: str, arguments: argparse.Namespace) -> Any:
    command = [sys.executable, "-m", "benchmarks.training_speed", "--one", part, way]
    command += ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    command += ["--examples", str(arguments.examples)]
    command += ["--trl", str(arguments.trl)] if arguments.trl else []
    # As tasks/train.py starts a trainer: threads that wait do not spin.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{part}, {way} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _ratios(ways: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Ours by each other way: above 1 is faster."""
    keys = ("tokens_per_second", "tokens_per_cpu_second")
    others = {name: theirs for name, theirs in ways.items() if name != "ours"}
    return {name: {key: round(ways["ours"][key] / theirs[key], 2) for key in keys} for name, theirs in others.items()}


if __name__ == "__main__":
    main()
