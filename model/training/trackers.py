"""Shows the metrics of steps and validations in TensorBoard, Weights & Biases or trackio.

Only the leading process tells. `metrics.jsonl` and `validation.jsonl` are the record, a tracker is a picture of it: so
one that fails never ends a training. Its error is said once on stderr, it is told nothing more in this process, and the
others go on; the next attempt tries it again. A package that is missing although the job names it is an error before
the first step. A run that goes on from a checkpoint leaves no point twice: TensorBoard hides what the earlier process
wrote beyond it (purge_step); the others are not told again what an earlier process told them, and know the run by an
id that lies in its folder.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

from model.training.checkpoint import write_file
from model.training.job import Job, JobError, as_json
from model.training.lines import read_lines
from model.training.parallel import World

PROJECT = "stillhouse"  # where neither WANDB_PROJECT nor TRACKIO_PROJECT names another
_NO_METRICS = {"step", "total_steps"}


class Tracker(Protocol):
    """One place that is told."""

    def open(self, step: int) -> None:
        """The run goes on from this step's checkpoint (0: from the beginning). May be called again."""
        ...

    def tell(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """A step's numbers; `kind` is `train` or `validation`."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the job's folder, written through at every step."""

    def __init__(self, job: Job) -> None:
        self.folder = job.out / "tensorboard"
        self.writer: Any = None

    def open(self, step: int) -> None:
        """See `Tracker`."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        # Also from the beginning on, where an earlier process may have come some steps without a checkpoint.
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def tell(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        self.writer.flush()  # a process that is killed has then told what it has done

    def close(self) -> None:
        """See `Tracker`."""
        if self.writer is not None:
            self.writer.close()


class Told:
    """A tracker that counts no step twice: what an earlier process of the run told is not told again."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.run: Any = None
        files = {"train": "metrics.jsonl", "validation": "validation.jsonl"}
        self.told = {(kind, int(line["step"])) for kind, name in files.items() for line in read_lines(job.out / name)}

    def start(self) -> Any:
        """The run, as the tracker's package has it."""
        raise NotImplementedError

    def open(self, _step: int) -> None:
        """See `Tracker`."""
        self.run = self.run or self.start()

    def tell(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if (kind, step) not in self.told:
            self.told.add((kind, step))
            self.run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        if self.run is not None:
            self.run.finish()


class WandB(Told):
    """Weights & Biases; account, server and offline mode as its own environment variables say."""

    def start(self) -> Any:
        """See `Told`."""
        import wandb

        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id(self.job),
            name=run_name(self.job),
            dir=str(self.job.out),
            resume="allow",
            config=as_json(self.job),
            settings=wandb.Settings(silent=True, console="off"),
        )


class Trackio(Told):
    """trackio, a local dashboard; where it keeps its data, its own environment variables say."""

    def start(self) -> Any:
        """See `Told`."""
        import trackio

        return trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run_name(self.job)}-{run_id(self.job)}",
            resume="allow",
            config=as_json(self.job),
            embed=False,
        )


TRACKERS: dict[str, Callable[[Job], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


class Trackers:
    """All that a run tells. No method raises for what a tracker does."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self.trackers = dict(trackers)

    def open(self, step: int) -> None:
        """See `Tracker`."""
        self._all(lambda tracker: tracker.open(step))

    def tell(self, kind: str, line: Mapping[str, float]) -> None:
        """One line of metrics."""
        values = {name: value for name, value in line.items() if name not in _NO_METRICS}
        self._all(lambda tracker: tracker.tell(kind, int(line["step"]), values))

    def close(self) -> None:
        """See `Tracker`."""
        self._all(lambda tracker: tracker.close())

    def _all(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                do(tracker)
            # Whatever a picture of the run raises (a full disk, a lost server, a package that does not fit): see above.
            except Exception as error:
                del self.trackers[name]
                cause = (str(error).splitlines() or [""])[0]
                print(f"tracker {name} is told nothing more: {type(error).__name__}: {cause}", file=sys.stderr)


@contextmanager
def open_trackers(job: Job, world: World) -> Iterator[Trackers]:
    """The job's trackers, closed with the block. JobError for an unknown one, or one whose package is missing."""
    names = chosen(job) if world.leads else []
    trackers = Trackers({name: TRACKERS[name](job) for name in names})
    try:
        yield trackers
    finally:
        trackers.close()


def chosen(job: Job) -> list[str]:
    """The trackers that a job names; TensorBoard, if it is installed, where it says nothing."""
    if job.trackers is None:
        return ["tensorboard"] if find_spec("tensorboard") else []
    for name in job.trackers:
        if name not in TRACKERS:
            raise JobError(f"there is no tracker {name!r}: `trackers` takes {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise JobError(f"tracker {name!r} is not installed: pip install {name}, or leave it out of `trackers`")
    return list(dict.fromkeys(job.trackers))


def run_id(job: Job) -> str:
    """What a run is known by for good: made once, kept in its folder, and moved with it."""
    path = job.out / "tracker-id"
    if not path.exists():
        write_file(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8")


def run_name(job: Job) -> str:
    """What people call it: the dataset's folder and the student's."""
    return f"{job.out.parent.parent.name}-{job.out.name}"
