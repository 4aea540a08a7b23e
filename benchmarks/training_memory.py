"""How far is the memory that a training expects before its first step from what its process then needs?

Whole processes on a CPU with one thread, one for each job, full fine-tuning of the demo's student (SmolLM2-135M) in
bfloat16 on the demo's accepted samples and problems (`make demo` first). Expected and measured are what the process
writes into `manifest.json`; measured is its own peak of resident memory. Some four minutes.
Not measured: a GPU (there the caching allocator's peak is what counts: `python -m benchmarks.gpu_training`).

    python -m benchmarks.training_memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.training_data import PREFILL, newest
from model.pretrained import resolve_model

ROLLOUTS = {"problems_per_step": 4, "group_size": 8, "max_tokens": 40, "steps": 2}
JOBS: dict[str, dict[str, Any]] = {
    "sft": {"stage": "sft", "tokens_per_micro_batch": 1024, "max_steps": 3},
    "sft, a checkpoint in the middle": {
        "stage": "sft",
        "tokens_per_micro_batch": 1024,
        "max_steps": 3,
        "checkpoint_every": 1,
    },
    "sft, moments in bfloat16": {
        "stage": "sft",
        "tokens_per_micro_batch": 1024,
        "max_steps": 3,
        "optimizer_state": "bfloat16",
    },
    "distill, a live teacher": {"stage": "distill", "tokens_per_micro_batch": 190, "max_steps": 2, "max_length": 190},
    "grpo, its own rollouts, with a reference": {"stage": "grpo", "tokens_per_micro_batch": 2048, **ROLLOUTS},
}


def measure(settings: dict[str, Any], dataset: Path) -> dict[str, float]:
    """One job in a process of its own."""
    student = str(resolve_model("builtin:smollm2-135m-instruct"))
    with tempfile.TemporaryDirectory() as folder:
        job = {"init": student, "out": f"{folder}/out", "prefill": PREFILL, "threads": 1, **settings}
        if settings["stage"] == "grpo":
            job |= {"problems": str(newest(dataset, "grpo").resolve()), "stop": ["</answer>"]}
        else:
            job["examples"] = str(newest(dataset, "sft").resolve())
        if settings["stage"] == "distill":
            job["teacher"] = student
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "model.training", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{settings} failed:\n{done.stderr[-3000:]}")
        told = json.loads((Path(folder) / "out/manifest.json").read_text(encoding="utf-8"))["memory"]
    expected, peak = told["expected_bytes"] / 2**30, told["peak_bytes"] / 2**30
    return {
        "expected_gib": round(expected, 2),
        "measured_gib": round(peak, 2),
        "error": round(expected / peak - 1, 3),
        "tokens_at_once": told["tokens_per_micro_batch"],
    }


def main() -> None:
    """Measures every job and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=Path("data/demo"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    jobs = {}
    for name, settings in JOBS.items():
        jobs[name] = measure(settings, arguments.dataset)
        print(name, jobs[name], flush=True)
    result = {"jobs": jobs, "machine": describe(["torch", "transformers"])}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
