"""Trainers of several jobs, one after another, in two processes: most of a launch is imports, which are shared here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RawJob = dict[str, Any]  # a job's JSON, with its stage
KILLED_AT = "TESTS_KILLED_AT"  # environment
BROKEN, BROKEN_AT = "broken", 4  # name of a job's folder, and of the update that breaks its weights


def plain(job: RawJob) -> RawJob:
    return {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}


def written(job: RawJob) -> Path:
    """The job as a file beside its folder."""
    path = Path(job["out"]).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain(job)))
    return path


def train_in_two(jobs: list[RawJob], *, on_gpus: bool = False) -> None:
    """Every job in two processes that `torchrun` starts; fails with their words where one does."""
    done = in_two(jobs, {} if on_gpus else {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr


def kill_in_two(job: RawJob, step: int) -> None:
    """The same of one job, whose leading process is killed, as by `kill -9`, once a step is written down."""
    done = in_two([job], {"CUDA_VISIBLE_DEVICES": "", KILLED_AT: str(step)})
    assert "exitcode  : -9" in done.stderr, done.stderr
    assert not (Path(job["out"]) / "manifest.json").exists()


def in_two(jobs: list[RawJob], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    pairs = [f"{free_port()}={written(job)}" for job in jobs]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.model.training.pair", *pairs]
    environment = dict(os.environ) | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Killed:
    """A stop request that never comes: the process is gone before."""

    def __init__(self, out: Path) -> None:
        self.metrics, self.step = out / "metrics.jsonl", int(os.environ[KILLED_AT])

    @property
    def received(self) -> bool:
        if os.environ["RANK"] == "0" and self.metrics.exists() and self.metrics.read_text().count("\n") >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def share_a_gpu() -> None:
    """NCCL refuses two processes on one GPU, unless it takes them for two machines', which speak over a network."""
    os.environ |= {"NCCL_HOSTID": f"host-{os.environ['RANK']}", "NCCL_SOCKET_IFNAME": "lo", "LOCAL_RANK": "0"}


def break_update() -> None:
    """Has an update fill one process's part of a weight with what is no number; of the other's nothing is changed."""
    import torch
    from torch.distributed.tensor import DTensor

    from model.training.optimizer import MasterAdamW

    real, calls = MasterAdamW.step, [0]

    def step(optimizer: MasterAdamW, *given: float) -> float:
        norm = real(optimizer, *given)
        calls[0] += 1
        if calls[0] == BROKEN_AT and os.environ["RANK"] == "1":
            weight = optimizer.masters[0]
            assert isinstance(weight, DTensor)
            with torch.no_grad():
                weight.to_local().fill_(torch.nan)
        return norm

    MasterAdamW.step = step  # type: ignore[method-assign]


def main() -> None:
    import torch

    from model.training.job import read_job
    from model.training.runner import run_job
    from tests.model.training.tiny import Never
    from tests.model.training.tiny_engine import install_shared

    install_shared(pytest.MonkeyPatch())
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # which serves for one group of processes
    if torch.cuda.device_count() == 1:
        share_a_gpu()
    for pair in sys.argv[1:]:
        port, path = pair.split("=", 1)
        os.environ["MASTER_PORT"] = port
        job = read_job(Path(path))
        if job.out.name == BROKEN:
            break_update()
        run_job(job, Killed(job.out) if KILLED_AT in os.environ else Never())


if __name__ == "__main__":
    main()
