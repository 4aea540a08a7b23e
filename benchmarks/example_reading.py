"""Training examples from Parquet to tokens: memory and time, ours beside `datasets`, which TRL reads with.

    python -m benchmarks.example_reading          # about 5 minutes on two cores; writes example_reading.json

Each way reads the same file in a process of its own, tokenises it, and takes one step's rows, drawn at random; then a
second process does so again, as a resumed run does. `peak` is the process's highest resident memory less what it was
before the first example was read; pages of mapped files are among it as far as they were touched.

Peer: `datasets.load_dataset("parquet")`, `map` of a function that tokenises one example, as TRL's SFTTrainer prepares
prompts and completions, its cache kept between the two processes; packing, which comes after it there, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import describe
from benchmarks.training_data import PREFILL
from model.pretrained import resolve_model
from model.records import EXAMPLE_SCHEMA, TrainingExample, to_table

MODEL = "builtin:smollm2-135m-instruct"
WORDS = 1200  # of a completion
STEP = 64  # examples
SIZES = (1000, 8000)


def write(path: Path, count: int) -> None:
    """So many examples, in row groups as the factory writes them; completions of numbers and words, all different."""
    vocabulary = np.array(["so", "then", "therefore", "which", "gives", "x =", "y =", "+", "the", "sum", "is"])
    drawn = np.random.default_rng(0)
    with pq.ParquetWriter(path, EXAMPLE_SCHEMA, compression="zstd") as writer:
        for start in range(0, count, 500):
            rows = []
            for i in range(start, min(start + 500, count)):
                words = vocabulary[drawn.integers(len(vocabulary), size=WORDS)].tolist()
                words[::3] = map(str, drawn.integers(10_000, size=len(words[::3])))
                completion = f"{PREFILL}{' '.join(words)}</think>"
                rows.append(TrainingExample(f"s{i}", f"p{i}", f"Question {i}?\n", "", completion, None))
            writer.write_table(to_table(rows, EXAMPLE_SCHEMA))


def ours(examples: Path, folder: Path, tokenizer: Any) -> tuple[int, Callable[[list[int]], int]]:
    """Tokens of all, and what reads some rows."""
    import torch

    from model.training.job import SFTJob
    from model.training.parallel import World
    from model.training.sft import SFTStage

    job = SFTJob(init=folder, examples=examples, out=folder, prefill=PREFILL, max_length=100_000)
    stage = SFTStage(job, tokenizer, World(torch.device("cpu")), SimpleNamespace(received=False))
    return int(stage.lengths.sum()), lambda some: sum(stage.row(index).length for index in some)


def peer(examples: Path, folder: Path, tokenizer: Any) -> tuple[int, Callable[[list[int]], int]]:
    """The same by `datasets`."""
    import datasets

    datasets.disable_progress_bars()

    def tokenised(example: dict[str, str]) -> dict[str, list[int]]:
        context = tokenizer(example["prompt"] + PREFILL, add_special_tokens=False)["input_ids"]
        learned = tokenizer(example["completion"].removeprefix(PREFILL), add_special_tokens=False)["input_ids"]
        learned = [*learned, tokenizer.eos_token_id]
        return {"input_ids": context + learned, "completion_mask": [0] * len(context) + [1] * len(learned)}

    rows = datasets.load_dataset("parquet", data_files=str(examples), split="train", cache_dir=str(folder))
    rows = rows.map(tokenised, remove_columns=rows.column_names)
    lengths = pa.compute.list_value_length(rows.data["input_ids"])
    return pa.compute.sum(lengths).as_py(), lambda some: sum(map(len, rows[some]["input_ids"]))


WAYS = {"ours": ours, "datasets": peer}


def measure(way: str, examples: Path, folder: Path) -> dict[str, float]:
    """One reading, in this process."""
    import torch
    from transformers import AutoTokenizer

    from model.training.memory import peak_memory, used_memory

    cpu = torch.device("cpu")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MODEL), local_files_only=True)
    import datasets  # noqa: F401 - counted in neither

    import model.training.sft  # noqa: F401

    before, started = used_memory(cpu), time.perf_counter()
    tokens, read = WAYS[way](examples, folder, tokenizer)
    ready = time.perf_counter()
    count = pq.read_metadata(examples).num_rows
    step_tokens = read(np.random.default_rng(1).permutation(count)[:STEP].tolist())
    stepped = time.perf_counter()
    return {
        "tokens": tokens,
        "seconds": round(ready - started, 2),
        "step_milliseconds": round(1000 * (stepped - ready), 2),
        "step_tokens": step_tokens,
        "peak_mib": round((peak_memory(cpu) - before) / 2**20, 1),
    }


def main() -> None:
    """Measures all, or with --one a single way, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "FILE", "FOLDER"), help="what processes are started with")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    if arguments.one:
        way, examples, folder = arguments.one
        print(json.dumps(measure(way, Path(examples), Path(folder))))
        return
    found: dict[str, Any] = {}
    for count in SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            examples = Path(scratch) / "examples.parquet"
            write(examples, count)
            for way in WAYS:
                for turn in ("first", "again"):
                    figures = _in_a_process(way, examples, Path(scratch) / way)
                    found.setdefault(str(count), {}).setdefault(way, {})[turn] = figures
                    print(count, way, turn, figures, flush=True)
    result = {"examples": found, "machine": describe(["torch", "transformers", "datasets", "tokenizers"])}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _in_a_process(way: str, examples: Path, folder: Path) -> dict[str, float]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.example_reading", "--one", way, str(examples), str(folder)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
