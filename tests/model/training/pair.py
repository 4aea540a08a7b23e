"""Trainers of several jobs, one after another, in two processes: most of a launch is imports, which are shared here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from model.training.job import Job

RawJob = dict[str, Any]  # a job's JSON, with its stage
BROKEN, BROKEN_AT = "broken", 4  # name of a job's folder, and of the update that breaks its weights


def plain(job: RawJob) -> RawJob:
    return {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}


def written(job: RawJob) -> Path:
    """The job as a file beside its folder."""
    path = Path(job["out"]).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain(job)))
    return path


def train_in_two(jobs: Sequence[RawJob], *, on_gpus: bool = False, killed: Sequence[tuple[RawJob, int]] = ()) -> None:
    """Every job in two processes that `torchrun` starts; fails with their words where one does. Each of `killed` comes
    before: its leading process is killed, as by `kill -9`, once that step is written down."""
    words = [f"{free_port()}={written(job)}={step}" for job, step in killed]
    words += [f"{free_port()}={written(job)}=" for job in jobs]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.model.training.pair", *words]
    environment = dict(os.environ) | ({} if on_gpus else {"CUDA_VISIBLE_DEVICES": ""})
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Killed:
    """A stop request that never comes: the process is gone before."""

    def __init__(self, out: Path, step: int) -> None:
        self.metrics, self.step = out / "metrics.jsonl", step

    @property
    def received(self) -> bool:
        if os.environ["RANK"] == "0" and self.metrics.exists() and self.metrics.read_text().count("\n") >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def run_killed(job: Job, step: int) -> None:
    """Carries out the job in a process that this one forks, until it ends: killed, or without the one that was."""
    from model.training.runner import run_job

    if not (child := os.fork()):
        try:
            run_job(job, Killed(job.out, step))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if os.environ["RANK"] == "0" else 1)
    assert not (job.out / "manifest.json").exists()


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
    for word in sys.argv[1:]:
        port, path, step = word.split("=")
        os.environ["MASTER_PORT"] = port
        job = read_job(Path(path))
        if step:
            run_killed(job, int(step))
            continue
        if job.out.name == BROKEN:
            break_update()
        run_job(job, Never())


if __name__ == "__main__":
    main()
