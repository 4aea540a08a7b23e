"""Training steps of real shapes on one GPU: tokens a second, MFU, peak memory.

    python -m benchmarks.gpu_training            # minutes on an H100; writes gpu_training.json
    python -m benchmarks.gpu_training --small    # the same on toy shapes, on a CPU too: only shows that it runs

  sft   a Qwen3-0.6B (arXiv:2505.09388; its config, weights drawn at random: no download), cross-entropy on all tokens
        of documents of up to 8,192, 65,536 tokens a step, packed into micro-batches of 32,768 or what fits
  kd    a Llama-3.2-1B from another, forward KL to the live teacher, 32 rows of 1,024 tokens a step
`planned_gib` is the peak that a job's plan expects (model/training/memory.py).
Each with `compile = true` and without. Steps are `run_step` of a job, with its optimizer, as training makes them:
float32 masters, gradients clipped. The first two steps, in which what the plan's probe left is compiled, are told but
not counted, the median of the others counts. Where so many tokens at once do not fit, half as many are tried. Rows are
drawn at random, so nothing is learned, and nothing of the rows is shared.
Not measured: reading data, several GPUs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe
from model.losses.kl import Divergence
from model.training.data import Row, collate, micro_batches
from model.training.distill import PrefixedModel, divergence_kernel
from model.training.documents import attend_by_document, compile_layers
from model.training.flops import Meter
from model.training.job import DistillJob, SFTJob
from model.training.memory import PROBE, expected, measure_activations, peak_memory
from model.training.optimizer import MasterAdamW
from model.training.out_of_memory import is_out_of_memory
from model.training.parallel import World
from model.training.sft import sft_kernel
from model.training.step import Line, MicroBatch, StepWork, run_step

STEPS, WARM = 8, 2
SETTINGS: dict[str, Any] = {"init": Path(), "out": Path(), "examples": Path(), "learning_rate": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-1B": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
    },
}
SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


class Fixed:
    """A stage whose every step is the same work."""

    beside = None
    left_out = 0
    total_steps = STEPS

    def __init__(self, work: Callable[[int], StepWork], tokens_at_once: int) -> None:
        self.work, self.tokens_at_once = work, tokens_at_once

    def prepare(self, _step: int) -> StepWork:
        """See `Stage`."""
        return self.work(self.tokens_at_once)


def make(name: str, device: torch.device, *, small: bool, compiled: bool, seed: int = 0) -> Any:
    """A model of that shape with random weights, in bfloat16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {**SHAPES[name], **(SMALL if small else {})}
    torch.manual_seed(seed)
    with device:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.bfloat16)
    attend_by_document(model)
    if compiled:
        compile_layers(model)
    return model.eval()


def rows_of(lengths: Sequence[int], vocabulary: int) -> list[Row]:
    """Rows of random tokens, all but the first of which are learned; the first ones differ, so nothing is shared."""
    drawn = np.random.default_rng(0)
    return [Row([i], drawn.integers(1, vocabulary, length - 1).tolist()) for i, length in enumerate(lengths)]


def mixed_lengths(total: int, longest: int) -> list[int]:
    """Lengths from a sixteenth of the longest up to it, evenly on a logarithmic scale, `total` together."""
    lengths: list[int] = []
    for share in np.tile(np.geomspace(1 / 16, 1, 9), total):
        left = total - sum(lengths)
        lengths.append(min(left, int(longest * share)))
        if sum(lengths) >= total:
            return [length for length in lengths if length > 1]
    raise AssertionError("there are more lengths than tokens")


def sft(device: torch.device, *, small: bool, compiled: bool) -> dict[str, Any]:
    """Cross-entropy on packed documents."""
    model = make("Qwen3-0.6B", device, small=small, compiled=compiled)
    total, at_once = (size // (64 if small else 1) for size in (65_536, 8_192))
    rows = rows_of(mixed_lengths(total, at_once), model.config.vocab_size)
    weight = 1 / sum(len(row.completion) for row in rows)

    def work(tokens: int) -> StepWork:
        packs = micro_batches([row.length for row in rows], tokens)
        batches = [collate([rows[i] for i in pack], [weight] * len(pack), device) for pack in packs]
        return StepWork([MicroBatch(batch, sft_kernel(batch)) for batch in batches])

    return fitted(SFTJob(**SETTINGS), model, work, 4 * at_once, at_once, device)


def kd(device: torch.device, *, small: bool, compiled: bool) -> dict[str, Any]:
    """Forward KL to a live teacher."""
    student, teacher = (make("Llama-3.2-1B", device, small=small, compiled=compiled, seed=seed) for seed in range(2))
    frozen = PrefixedModel(teacher.requires_grad_(requires_grad=False), [], device)
    rows = rows_of([1024 // (16 if small else 1)] * 32, student.config.vocab_size)
    weight = 1 / sum(len(row.completion) for row in rows)

    def micro(pack: Sequence[int]) -> MicroBatch:
        chosen = [rows[i] for i in pack]
        batch = collate(chosen, [weight] * len(chosen), device)
        given = batch, frozen.completion_hidden(chosen), frozen.head_VH, student.config.vocab_size
        kernel = divergence_kernel(*given, Divergence.FORWARD, beta=0.5, temperature=1.0)
        return MicroBatch(batch, kernel)

    def work(tokens: int) -> StepWork:
        return StepWork([micro(pack) for pack in micro_batches([row.length for row in rows], tokens)])

    job = DistillJob(**SETTINGS, teacher=Path())
    return fitted(job, student, work, sum(row.length for row in rows), rows[0].length, device)


def fitted(
    job: SFTJob, model: Any, work: Callable[[int], StepWork], most: int, least: int, device: torch.device
) -> dict[str, Any]:
    """The figures with as many tokens at once as fit."""
    tokens = most
    while True:
        try:
            return measured(job, model, Fixed(work, tokens), device) | {"tokens_at_once": tokens}
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or tokens // 2 < least:
                raise
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        tokens //= 2


def planned_peak(job: SFTJob, stage: Fixed, model: Any, world: World) -> int:
    """Bytes that a job's plan expects at the peak, which it tells before the first step."""
    documents = [micro.tokens.documents for micro in stage.prepare(0).micro_batches]
    most, longest = max(each.total for each in documents), max(each.longest for each in documents)
    kept = measure_activations(model, min(longest, PROBE), world.device)
    return expected(job, stage, model, world, kept, most, longest).peak


def measured(job: SFTJob, model: Any, stage: Fixed, device: torch.device) -> dict[str, Any]:
    """Median rate of the steps after the first."""
    world = World(device)
    planned = planned_peak(job, stage, model, world)
    optimizer = MasterAdamW(model, job.weight_decay, job.dtype, world)
    meter = Meter(job, model, world)
    lines: list[Line] = []
    for step in range(1, STEPS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        lines.append(run_step(job, stage, model, optimizer, step, measure=meter.measured))
    counted = lines[WARM:]
    found = {"tokens_per_second": round(median(line["tokens_per_second"] for line in counted), 1)}
    if "mfu" in counted[0]:
        found["mfu"] = round(median(line["mfu"] for line in counted), 4)
    return found | {
        "tokens": counted[0]["tokens"],
        "seconds": [round(line["seconds"], 4) for line in lines],
        "losses": [round(line["loss"], 4) for line in lines],
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "peak_gib": round(peak_memory(device) / 2**30, 2),
        "planned_gib": round(planned / 2**30, 2),
    }


def main() -> None:
    """Measures both and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="toy shapes; nothing is written")
    parser.add_argument("--only", choices=("sft", "kd"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    if not arguments.small and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --small shows that it runs")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {}
    for compiled in (True, False):
        for name, part in {"sft": sft, "kd": kd}.items():
            if arguments.only not in (None, name):
                continue
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            key = name if compiled else f"{name}, not compiled"
            result[key] = part(device, small=arguments.small, compiled=compiled)
            print(key, json.dumps(result[key]), flush=True)
            if not arguments.small:
                result["device"] = torch.cuda.get_device_name(device)
                result["machine"] = describe(["torch", "transformers"])
                arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
