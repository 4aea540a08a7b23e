"""Jobs that are killed (kill -9) some moments after given steps, each time begun again, and in the end left to finish.

Each attempt is a process of its own, forked from one that has imported what they need: imports take longer than all the
training. Each writes down what it trains on, `seen.jsonl` in the job's folder. Rollouts are paid by length here: the
checks' processes take long to start, too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.model.training.pair import RawJob, written

if TYPE_CHECKING:
    from model.training.job import Job

SEEN = "seen.jsonl"
MOST_DELAY = 0.15  # seconds after a step was written down: some steps of a tiny model, and anywhere in one


def train_killed(jobs: Sequence[tuple[RawJob, Sequence[int]]]) -> None:
    """Trains each job, killed after each of its steps; fails with the processes' words where it does not end well."""
    words = [f"{written(job)}={','.join(map(str, steps))}" for job, steps in jobs]
    command = [sys.executable, "-m", "tests.model.training.killed", *words]
    environment = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, f"{words}: {done.stderr}"


def seen(out: Path) -> list[list[str]]:
    """What the model in `out` was trained on, step by step, those steps left out that a resumed run made again."""
    steps: list[list[str]] = []
    for line in map(json.loads, (out / SEEN).read_text().splitlines()):
        assert line["step"] <= len(steps) + 1, f"{out}: a step is missing before {line['step']}"
        steps[line["step"] - 1 :] = [line["samples"]]
    return steps


def counts(out: Path) -> Counter[str]:
    """How often each was trained on."""
    return Counter(sample for samples in seen(out) for sample in samples)


def write_seen(out: Path, step: int, samples: Sequence[str]) -> None:
    """One line, by one write: whole, or not there."""
    line = json.dumps({"step": step, "samples": list(samples)}) + "\n"
    descriptor = os.open(out / SEEN, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def prepare() -> None:
    """Imports what every attempt needs, has rollouts paid by length, and every stage write down a step's samples."""
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from model.training import runner
    from model.training.rollout_stage import RolloutStage
    from model.training.sft import ExampleStage

    def shortest(rollouts: Sequence[Any], _problems: Sequence[Any]) -> list[float]:
        return [1 / len(rollout.row.completion) for rollout in rollouts]

    runner.verifier_reward = lambda _job: nullcontext(shortest)  # type: ignore[assignment]

    rows, rollouts = ExampleStage.step_rows, RolloutStage.step_rollouts

    def step_rows(stage: ExampleStage, step: int) -> Any:
        packs = rows(stage, step)
        places = [int(stage.kept[index]) for indices, _ in packs for index in indices]
        write_seen(stage.job.out, step, [stage.examples.sample_ids[place].as_py() for place in places])
        return packs

    def step_rollouts(stage: RolloutStage, step: int) -> Any:
        found = rollouts(stage, step)
        write_seen(stage.job.out, step, [problem.problem_id for problem in found[0]])
        return found

    ExampleStage.step_rows, RolloutStage.step_rollouts = step_rows, step_rollouts  # type: ignore[method-assign]


def begun(job: Job) -> int:
    """The id of a process that carries out the job."""
    from model.training.process import die_with
    from model.training.runner import run_job
    from tests.model.training.tiny import Never

    parent = os.getpid()
    if child := os.fork():
        return child
    try:
        die_with(parent)
        run_job(job, Never())
    # It must not go on as its parent does, whatever it was.
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def kill_after(job: Job, step: int) -> None:
    """Begins the job and kills it once the step is written down; where an earlier process has done so, once this one
    has restored what that one left."""
    metrics = job.out / "metrics.jsonl"
    before = metrics.stat().st_ino if metrics.exists() else 0  # the file is written anew by who goes on
    child = begun(job)
    while not metrics.exists() or metrics.stat().st_ino == before or metrics.read_bytes().count(b"\n") < step:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), f"ended before step {step}"
        time.sleep(0.002)
    time.sleep(random.uniform(0, MOST_DELAY))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"ended before it was killed after step {step}"


def main() -> None:
    from model.training.job import read_job

    prepare()
    for word in sys.argv[1:]:
        path, steps = word.split("=")
        job = read_job(Path(path))
        for step in filter(None, steps.split(",")):
            kill_after(job, int(step))
        _, status = os.waitpid(begun(job), 0)
        assert status == 0, f"{path} did not come to its end"


if __name__ == "__main__":
    main()
