"""Loading problems into a dataset: once, only what is new, and never from one split into the other."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import RecipeError
from model.records import content_hash
from tasks.inputs import problems_of_split
from tasks.load import LOADED, Loaded, known_splits, load
from tasks.sources import ProblemSource
from tasks.store import Dataset


def rows(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{i} + 1?", "gold": str(i + 1)} for i in range(start, stop)]


def append(file: Path, found: list[dict[str, Any]]) -> None:
    with file.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in found)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset.create(tmp_path / "data")


@pytest.fixture
def source(tmp_path: Path) -> ProblemSource:
    """Three sums in `sums.jsonl`, all for training."""
    file = tmp_path / "sums.jsonl"
    append(file, rows(0, 3))
    return ProblemSource("jsonl", str(file))


def files(dataset: Dataset) -> dict[str, int]:
    return {m.relative: m.rows for m in dataset.manifests("problems")}


def test_problems_are_loaded_once(dataset: Dataset, source: ProblemSource) -> None:
    assert load.fn(dataset, [source]) == Loaded(written=3, train=3, held_out=0, rejected={})
    assert {p.prompt: p.gold for p in problems_of_split(dataset, "train")} == {
        "0 + 1?": "1", "1 + 1?": "2", "2 + 1?": "3",
    }  # fmt: skip
    changed = dataset.file("problems/000000.parquet").stat().st_mtime_ns
    assert load.fn(dataset, [source]) == Loaded(written=0, train=3, held_out=0, rejected={})
    assert files(dataset) == {"problems/000000.parquet": 3}
    assert dataset.file("problems/000000.parquet").stat().st_mtime_ns == changed


def test_a_share_that_holds_nothing_out_is_warned_of(
    dataset: Dataset, source: ProblemSource, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="stillhouse"):
        load.fn(dataset, [source])
        assert "warning" not in caplog.text
        load.fn(dataset, [replace(source, held_out=0.001)])
    assert "warning: sums: held_out = 0.001 holds out none of its 3 problems" in caplog.text


def test_an_unchanged_source_is_not_even_opened(dataset: Dataset, source: ProblemSource) -> None:
    first = load.fn(dataset, [source])
    file = Path(source.path)
    stat = file.stat()
    file.write_text("x" * stat.st_size)  # would be refused as holding no problems
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load.fn(dataset, [source]) == replace(first, written=0)


def test_a_file_that_grew_adds_what_is_new(dataset: Dataset, source: ProblemSource) -> None:
    load.fn(dataset, [source])
    append(Path(source.path), rows(2, 5))
    assert load.fn(dataset, [source]) == Loaded(written=2, train=5, held_out=0, rejected={})
    assert files(dataset) == {"problems/000000.parquet": 3, "problems/000001.parquet": 2}


def test_a_problem_does_not_change_its_split(dataset: Dataset, source: ProblemSource) -> None:
    load.fn(dataset, [source])
    with pytest.raises(RecipeError, match=r"is train in .* and held_out in the recipe: `held_out` must not change"):
        load.fn(dataset, [replace(source, held_out=1.0)])
    assert set(known_splits(dataset).values()) == {"train"}
    assert load.fn(dataset, [source]).train == 3


def test_validation_off_leaves_a_loaded_dataset_alone_and_on_is_another_split(
    dataset: Dataset, source: ProblemSource
) -> None:
    """Without the setting the record of a load is that of the version before it: the source is not opened."""
    settings = {name: value for name, value in asdict(source).items() if name != "validation"}
    stat = Path(source.path).stat()
    load.fn(dataset, [source])
    before = content_hash("sources", [settings], [[[Path(source.path).name, stat.st_size, stat.st_mtime_ns]]])
    assert (dataset.read_json(LOADED) or {})["fingerprint"] == before
    with pytest.raises(RecipeError, match=r"is train in .* and validation in the recipe: .* nor `validation`"):
        load.fn(dataset, [replace(source, validation=1.0)])
    other = Dataset.create(dataset.path.parent / "other")
    assert load.fn(other, [replace(source, validation=1.0)]) == Loaded(3, 0, 0, {}, validation=3)
    assert len(problems_of_split(other, "validation")) == 3


def test_held_out_problems_are_counted_apart(dataset: Dataset, source: ProblemSource) -> None:
    assert load.fn(dataset, [replace(source, held_out=1.0)]) == Loaded(written=3, train=0, held_out=3, rejected={})
    assert problems_of_split(dataset, "train") == []


def test_rows_that_do_not_fit_are_kept_with_line_and_reason(dataset: Dataset, source: ProblemSource) -> None:
    with Path(source.path).open("a") as stream:
        stream.write('{"prompt": \n{"question": "2 + 2?"}\n')
    loaded = load.fn(dataset, [source])
    assert (loaded.written, loaded.rejected) == (3, {"malformed_json": 1, "missing_prompt": 1})
    rejects = [json.loads(line) for line in dataset.file("rejects/sums.jsonl").read_text().splitlines()]
    assert [(r["source"], r["line"], r["reason"]) for r in rejects] == [
        ("sums", 4, "malformed_json"),
        ("sums", 5, "missing_prompt"),
    ]
