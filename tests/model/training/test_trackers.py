"""Trackers: what TensorBoard shows after a resume, and that none of them ever ends a training."""

from __future__ import annotations

import json
import sqlite3
import struct
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from model.training import trackers
from model.training.job import Job, JobError, SFTJob
from model.training.trackers import TRACKERS, TensorBoard, Told, Trackers, chosen, open_trackers, run_id, run_name
from tests.model.training.tiny import ALONE


def make_job(folder: Path, **settings: Any) -> SFTJob:
    folder.mkdir(parents=True, exist_ok=True)
    return SFTJob(init=folder, out=folder, examples=folder, **settings)


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(folder)).Reload()
    return {tag: [(each.step, round(each.value, 4)) for each in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}


def test_tensorboard_shows_each_step_once_after_a_kill_and_a_resume(tmp_path: Path) -> None:
    """A process tells steps 1 to 5 and is gone without a word; the next goes on from the checkpoint of step 3."""
    job = make_job(tmp_path / "data/students/sft")
    killed = TensorBoard(job)
    killed.open(0)
    killed.tell("validation", 0, {"pass@1": 0.25})
    for step in range(1, 6):
        killed.tell("train", step, {"loss": step / 10})
    time.sleep(1 - time.time() % 1)  # files are read by the second in which they were begun
    resumed = TensorBoard(job)  # the first one's writer is never closed
    resumed.open(3)
    for step in range(4, 7):
        resumed.tell("train", step, {"loss": step / 5})
    resumed.close()
    seen = points(job.out / "tensorboard")
    assert seen["train/loss"] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.8), (5, 1.0), (6, 1.2)]
    assert seen["validation/pass@1"] == [(0, 0.25)]
    killed.close()


def test_tensorboard_shows_each_step_once_after_a_kill_before_the_first_checkpoint(tmp_path: Path) -> None:
    """The next process begins anew; the validation of step 0 is written down already, and not told again."""
    job = make_job(tmp_path / "data/students/sft")
    killed = TensorBoard(job)
    killed.open(0)
    killed.tell("validation", 0, {"pass@1": 0.25})
    for step in range(1, 4):
        killed.tell("train", step, {"loss": step / 10})
    time.sleep(1 - time.time() % 1)  # files are read by the second in which they were begun
    again = TensorBoard(job)
    again.open(0)
    for step in range(1, 4):
        again.tell("train", step, {"loss": step / 5})
    again.close()
    seen = points(job.out / "tensorboard")
    assert seen["train/loss"] == [(1, 0.2), (2, 0.4), (3, 0.6)]
    assert seen["validation/pass@1"] == [(0, 0.25)]
    killed.close()


class Remote(Told):
    """A tracker over the network, written down."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.points: list[tuple[int, str]] = []

    def start(self) -> Any:
        return self

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.points += [(step, name) for name in values]

    def finish(self) -> None:
        self.points.append((-1, "finished"))


def test_what_an_earlier_process_told_is_not_told_again(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    (tmp_path / "validation.jsonl").write_text('{"step": 0}\n')
    remote = Remote(job)
    told = Trackers({"remote": remote})
    told.open(2)
    for kind, step in [("validation", 0), ("validation", 2), ("train", 3), ("train", 4), ("train", 4), ("train", 5)]:
        told.tell(kind, {"step": step, "total_steps": 9, "loss": 0.5})
    told.close()
    assert remote.points == [(2, "validation/loss"), (4, "train/loss"), (5, "train/loss"), (-1, "finished")]
    assert run_id(job) == run_id(job)
    assert run_id(job) != run_id(make_job(tmp_path / "other"))


def tell_in_two_attempts(job: Job) -> None:
    """A run of four steps that goes on from the second one after it had come to the third."""
    for begun, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with open_trackers(job, ALONE) as told:
            told.open(begun)
            for step in steps:
                told.tell("train", {"step": step, "total_steps": 4, "loss": step / 10})
            assert told.trackers, "it failed"
        (job.out / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)))


TOLD = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]


def test_wandb_itself_has_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    job = make_job(tmp_path / "demo/students/sft", trackers=("wandb",))
    tell_in_two_attempts(job)
    records = [record for file in sorted(job.out.glob("wandb/offline-*/*.wandb")) for record in records_of(file)]
    names = {(each.run.run_id, each.run.project, each.run.display_name) for each in records if each.HasField("run")}
    assert names == {(run_id(job), "stillhouse", "demo-sft")}
    histories = [each.history for each in records if each.HasField("history")]
    values = [{".".join(item.nested_key): item.value_json for item in each.item} for each in histories]
    assert [(int(each["_step"]), float(each["train/loss"])) for each in values] == TOLD


def records_of(file: Path) -> list[Any]:
    """What wandb keeps of a run: after seven bytes blocks of 32 KiB with records, cut where a block ends."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, record, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", raw, at)
        record += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or a last part
            found.append(Record.FromString(record))
            record = b""
    return found


def test_trackio_itself_has_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported, which only this test does
    job = make_job(tmp_path / "demo/students/sft", trackers=("trackio",))
    tell_in_two_attempts(job)
    with closing(sqlite3.connect(tmp_path / "trackio/stillhouse.db")) as kept:
        rows = kept.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {name for name, _, _ in rows} == {f"demo-sft-{run_id(job)}"}
    assert [(step, json.loads(metrics)["train/loss"]) for _, step, metrics in rows] == TOLD


class Broken(Told):
    def __init__(self, job: Job, when: str) -> None:
        super().__init__(job)
        self.when = when

    def start(self) -> Any:
        if self.when == "start":
            raise OSError("no network\nand more")
        return self

    def log(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("gone")

    def finish(self) -> None:
        raise RuntimeError("gone")


def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path)
    fine = Remote(job)
    told = Trackers({"wandb": Broken(job, "start"), "trackio": Broken(job, "log"), "fine": fine})
    told.open(0)
    for step in (1, 2, 3):
        told.tell("train", {"step": step, "loss": 0.5})
    told.close()
    assert [step for step, _ in fine.points] == [1, 2, 3, -1]
    said = Counter(capsys.readouterr().err.splitlines())
    assert said == {
        "tracker wandb is told nothing more: OSError: no network": 1,
        "tracker trackio is told nothing more: RuntimeError: gone": 1,
    }


def test_what_is_named_must_be_there_and_the_default_need_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(make_job(tmp_path)) == ["tensorboard"]
    assert chosen(make_job(tmp_path, trackers=())) == []
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    assert chosen(make_job(tmp_path)) == []
    for name in TRACKERS:
        with (
            pytest.raises(JobError, match=f"tracker '{name}' is not installed: pip install {name}"),
            open_trackers(make_job(tmp_path, trackers=(name,)), ALONE),
        ):
            pass
    with pytest.raises(JobError, match="no tracker 'mlflow': `trackers` takes tensorboard, wandb, trackio"):
        chosen(make_job(tmp_path, trackers=("mlflow",)))
    assert run_name(make_job(tmp_path / "demo/students/sft")) == "demo-sft"
