from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import StoreError
from tasks.attempts import attempt, read_attempts
from tasks.catalog import connect, run_sql
from tasks.store import Dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset.create(tmp_path / "data")


def test_a_start_is_on_disk_before_the_end(dataset: Dataset) -> None:
    with attempt(dataset, "generate", 3, "run-1") as mine:
        [running] = read_attempts(dataset)
        assert (running.stage, running.shard, running.attempt, running.state) == ("generate", 3, 1, "running")
        mine.rows = 7
    [done] = read_attempts(dataset)
    assert (done.state, done.rows, done.error) == ("completed", 7, None)
    assert done.seconds is not None
    assert done.ended_at is not None
    assert done.ended_at >= done.started_at


def test_every_try_is_kept_with_its_error(dataset: Dataset) -> None:
    for words in ("first\nwith more", "second"):
        with pytest.raises(StoreError), attempt(dataset, "generate", 0, "run"):
            raise StoreError(words)
    with attempt(dataset, "generate", 0, "run"), attempt(dataset, "evaluate/student", 0, "run"):
        pass

    found = read_attempts(dataset)
    assert [(a.stage, a.attempt, a.state, a.error) for a in found] == [
        ("evaluate/student", 1, "completed", None),
        ("generate", 1, "failed", "first"),
        ("generate", 2, "failed", "second"),
        ("generate", 3, "completed", None),
    ]
    assert found[1].error_type == "StoreError"
    assert "raise StoreError(words)" in (found[1].traceback or "")


def test_a_stop_by_hand_is_no_failure(dataset: Dataset) -> None:
    with pytest.raises(KeyboardInterrupt), attempt(dataset, "generate", 0, "run"):
        raise KeyboardInterrupt
    assert [a.state for a in read_attempts(dataset)] == ["interrupted"]


def test_when_the_record_cannot_be_written_the_first_error_is_the_one_raised(dataset: Dataset) -> None:
    def fail_beyond_recording() -> None:
        with attempt(dataset, "generate", 0, "run"):
            dataset.file("attempts/generate/000000-001.json").unlink()
            dataset.file("attempts/generate/000000-001.json").mkdir()  # a rename over a folder is refused
            raise KeyError("the real cause")

    with pytest.raises(KeyError, match="the real cause"):
        fail_beyond_recording()


def test_an_error_that_quotes_what_utf_8_cannot_hold_stops_no_query(dataset: Dataset) -> None:
    with pytest.raises(StoreError), attempt(dataset, "generate", 0, "run"):
        raise StoreError("no such file: caf\udce9")
    assert run_sql(connect(dataset), "select error from attempts").to_pylist() == [
        {"error": "no such file: caf\ufffd\ufffd\ufffd"}
    ]


def test_half_written_records_are_passed_over(dataset: Dataset) -> None:
    dataset.write_text("attempts/generate/000000-001.json", '{"stage": "gene')
    assert read_attempts(dataset) == []
