"""TRL's side of the training benchmark: its trainers on our rows, as token ids, at the same budgets.

SFT is `SFTTrainer.train` with its own packing, collator, loss kernel and optimizer; a clock is all that is added. GRPO
is `GRPOTrainer.train` with the one method replaced that samples and scores: it gives the fixed rollouts and their
advantages, and asks the reference as TRL's own does. Attention is TRL's choice on this device (on a CPU `sdpa`;
documents of a pack are kept apart by a mask made from their positions: both sides' losses on a pack agree).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.training_data import GROUP, Groups
from model.training.data import Row
from model.training.rollouts import pad_left

Step = dict[str, float]
COMMON = {
    "use_cpu": not torch.cuda.is_available(),
    "gradient_checkpointing": False,  # TRL's default is True, which costs a third more
    "weight_decay": 0.0,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "constant",
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "max_grad_norm": 1e9,
}


def clock() -> Any:
    """A callback that notes wall and processor seconds of every optimizer step, data loading included."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[tuple[float, float]] = []

        def note(self, *_: Any, **__: Any) -> None:
            self.times.append((time.perf_counter(), time.process_time()))

        on_train_begin = on_step_end = note

    return Clock()


def load(folder: Path, weights: str) -> Any:
    """The model with weights in a type, and TRL's attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, weights), local_files_only=True)


def sft_trainer(
    folder: Path, rows: Sequence[Row], *, weights: str, packing: bool, budget: int, rate: float, **settings: Any
) -> tuple[Any, Any]:
    """A trainer whose micro-batches hold `budget` tokens, and its clock."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    data = {
        "input_ids": [row.context + row.completion for row in rows],
        "labels": [[-100] * len(row.context) + row.completion for row in rows],
    }
    longest = max(row.length for row in rows)
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        bf16=weights == "autocast",
        packing=packing,
        max_length=budget if packing else longest,
        per_device_train_batch_size=1 if packing else round(budget * len(rows) / sum(row.length for row in rows)),
        learning_rate=rate,
        **COMMON,
        **settings,
    )
    its_clock = clock()
    model = load(folder, "float32" if weights == "autocast" else weights)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    trainer = SFTTrainer(
        model, args=config, train_dataset=Dataset.from_dict(data), processing_class=tokenizer, callbacks=[its_clock]
    )
    return trainer, its_clock


def sft_steps(
    folder: Path, rows: Sequence[Row], *, weights: str, packing: bool, budget: int, parts: int, steps: int, rate: float
) -> list[Step]:
    """Steps of `parts` micro-batches; tokens are those of TRL's own count, which is without padding."""
    trainer, its_clock = sft_trainer(
        folder,
        rows,
        weights=weights,
        packing=packing,
        budget=budget,
        rate=rate,
        gradient_accumulation_steps=parts,
        max_steps=steps,
    )
    trainer.train()
    seen = [int(line["num_tokens"]) for line in trainer.state.log_history if "num_tokens" in line][:steps]
    tokens = [after - before for before, after in zip([0, *seen[:-1]], seen, strict=True)]
    return _steps(trainer, its_clock, tokens)


def grpo_steps(
    folder: Path, groups: Groups, *, weights: str, parts: int, steps: int, rate: float, kl_weight: float
) -> list[Step]:
    """Updates on all groups at once, in `parts` micro-batches of as many rows each."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows = [rollout.row for group in groups.rollouts.values() for rollout in group]
    size = len(rows) // parts
    fixed = fixed_batch(rows, groups.advantages() * len(groups.rollouts))

    class FixedRollouts(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, _inputs: Any) -> dict[str, Any]:
            given: dict[str, Any] = dict(fixed)
            ids = torch.cat([given["prompt_ids"], given["completion_ids"]], 1)
            mask = torch.cat([given["prompt_mask"], given["completion_mask"]], 1)
            if self.beta:
                with torch.no_grad():
                    given["ref_per_token_logps"] = self._get_per_token_logps_and_entropies(
                        self.ref_model, ids, mask, given["completion_ids"].shape[1], batch_size=size
                    )[0]
            return given

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        bf16=weights == "autocast",
        loss_type="grpo",
        beta=kl_weight,
        num_generations=GROUP,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=parts,
        max_completion_length=64,
        max_steps=steps,
        learning_rate=rate,
        **COMMON,
    )
    its_clock = clock()
    trainer = FixedRollouts(
        load(folder, "float32" if weights == "autocast" else weights),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(groups.rollouts)}),
        processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        callbacks=[its_clock],
    )
    trainer.train()
    return _steps(trainer, its_clock, [sum(row.length for row in rows)] * steps)


def fixed_batch(rows: Sequence[Row], advantages: Sequence[float]) -> dict[str, Tensor]:
    """Prompts padded on the left, completions on the right, as TRL's trainer makes them."""
    cpu = torch.device("cpu")
    prompts, prompt_mask = pad_left([row.context for row in rows], 0, cpu)
    reverse, reverse_mask = pad_left([row.completion[::-1] for row in rows], 0, cpu)
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": reverse.flip(1),
        "completion_mask": reverse_mask.flip(1),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": reverse_mask.sum(),
    }


def _steps(trainer: Any, its_clock: Any, tokens: Sequence[int]) -> list[Step]:
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    found = []
    for line, count, before, after in zip(lines, tokens, its_clock.times, its_clock.times[1:], strict=False):
        seconds, processor = (b - a for a, b in zip(before, after, strict=True))
        found.append(
            {
                "tokens": float(count),
                "seconds": seconds,
                "cpu_seconds": processor,
                "loss": float(line["loss"]),
                "grad_norm": float(line["grad_norm"]),
            }
        )
    return found


def packed_loss(folder: Path, rows: Sequence[Row], budget: int) -> tuple[list[Row], float, float]:
    """One of its packs in float32: the documents in it, its loss, and its gradient's norm."""
    trainer, _ = sft_trainer(folder, rows, weights="float32", packing=True, budget=budget, rate=1e-5, max_steps=1)
    pack = trainer.train_dataset[0]
    batch = trainer.data_collator([pack])
    count = (batch["labels"] != -100).sum()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
    loss.backward()
    gradients = [weight.grad for weight in trainer.model.parameters() if weight.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return list(_documents(pack)), loss.item(), norm.item()


def _documents(pack: dict[str, Any]) -> Any:
    start = 0
    for length in pack["seq_lengths"]:
        ids, labels = (pack[name][start : start + length] for name in ("input_ids", "labels"))
        given = sum(label == -100 for label in labels)
        yield Row(ids[:given], ids[given:])
        start += length
