"""Examples as tokens on disk: what is read, by whom, once, and what a kill leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.records import EXAMPLE_SCHEMA, TrainingExample, to_table
from model.training import examples as module
from model.training.examples import Columns, Examples, examples_at, open_examples, read_examples
from model.training.job import JobError, SFTJob
from model.training.parallel import World
from model.training.process import Stopped
from model.training.runner import run_job
from tests.model.training.tiny import ALONE, PREFILL, Never, write_examples

COUNT = 23


class Asked:
    received = True


class Counting:
    """The letters of each prompt as numbers, and how many were made."""

    made = 0

    def __call__(self, some: Sequence[TrainingExample]) -> list[list[int]]:
        self.made += len(some)
        return [[ord(letter) for letter in example.prompt] for example in some]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Examples in row groups of four; parts of at least six are of eight then, batches of three."""
    monkeypatch.setattr(module, "PART_EXAMPLES", 6)
    monkeypatch.setattr(module, "BATCH", 3)
    path = write_examples(tmp_path / "examples.parquet", COUNT)
    pq.write_table(pq.read_table(path), path, row_group_size=4)
    return path


def assert_same(found: Examples, written: Path) -> None:
    rows = pq.read_table(written).to_pylist()
    assert found.sample_ids.to_pylist() == [row["sample_id"] for row in rows]
    for place, row in enumerate(rows):
        assert found.list("letters", place) == [ord(letter) for letter in row["prompt"]]
        assert found.lengths["letters"][place] == len(row["prompt"])


def test_every_example_is_found_at_its_place(written: Path, tmp_path: Path) -> None:
    assert_same(open_examples(written, tmp_path / "tokens", {"letters": Counting()}, ALONE, Never()), written)
    assert len(list((tmp_path / "tokens").glob("part-*.arrow"))) == 3


def test_a_part_ends_where_it_has_enough_examples_or_bytes() -> None:
    def cut(*groups: tuple[int, int]) -> list[list[int]]:
        return [part.groups for part in module._parts(groups)]

    assert cut((10_000, 1), (10_000, 1), (10, 1)) == [[0, 1], [2]]
    assert cut((10, 60 << 20), (10, 60 << 20), (10, 60 << 20)) == [[0, 1], [2]]
    assert cut((0, 5), (10, 1)) == [[0, 1]]


def test_what_is_there_is_not_made_again(written: Path, tmp_path: Path) -> None:
    """Not but for a part that is gone, cut short, or of other columns."""
    folder, letters = tmp_path / "tokens", Counting()

    def made(columns: Columns) -> int:
        letters.made = 0
        assert_same(open_examples(written, folder, columns, ALONE, Never()), written)
        return letters.made

    assert made({"letters": letters}) == COUNT
    assert made({"letters": letters}) == 0
    (folder / "part-00001.arrow").unlink()
    assert made({"letters": letters}) == 8
    whole = (folder / "part-00002.arrow").read_bytes()
    (folder / "part-00002.arrow").write_bytes(whole[: len(whole) // 2])
    assert made({"letters": letters}) == 7
    assert made({"letters": letters, "again": Counting()}) == COUNT


def test_each_process_makes_its_share(written: Path, tmp_path: Path) -> None:
    def made(rank: int) -> int:
        letters, world = Counting(), World(torch.device("cpu"), rank, 2)
        object.__setattr__(world, "any", bool)  # nobody else is there to be asked
        with nullcontext() if rank else pytest.raises(JobError, match="all processes need the same folder"):
            assert_same(open_examples(written, tmp_path / "tokens", {"letters": letters}, world, Never()), written)
        return letters.made

    assert [made(0), made(1)] == [15, 8]


def test_a_stop_keeps_the_parts_that_are_whole(written: Path, tmp_path: Path) -> None:
    class Later:
        """Asked for once two parts are there."""

        @property
        def received(self) -> bool:
            return len(list((tmp_path / "tokens").glob("part-*.arrow"))) == 2

    first, second = Counting(), Counting()
    with pytest.raises(Stopped, match="start the same job to go on"):
        open_examples(written, tmp_path / "tokens", {"letters": first}, ALONE, Later())
    assert_same(open_examples(written, tmp_path / "tokens", {"letters": second}, ALONE, Never()), written)
    assert (first.made, second.made) == (16, 7)


def test_a_stop_while_a_job_reads_is_a_stop_of_the_job(tiny_folder: Path, examples_file: Path, tmp_path: Path) -> None:
    job = SFTJob(init=tiny_folder, examples=examples_file, out=tmp_path / "out", prefill=PREFILL, threads=1)
    with pytest.raises(Stopped):
        run_job(job, Asked())
    run_job(job, Never())
    assert not (job.out / "tokens").exists()


def test_examples_are_found_by_their_places(written: Path) -> None:
    every = [example for some in read_examples(written) for example in some]
    assert [example.sample_id for example in every] == [f"sample-{i}" for i in range(COUNT)]
    for places in ([0], [3, 4], [2, 9, 10, 22], range(COUNT)):
        assert examples_at(written, places) == [every[place] for place in places]


def test_files_that_hold_no_examples_are_named(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(JobError) as caught:
            open_examples(path, tmp_path / "tokens", {}, ALONE, Never())
        return str(caught.value)

    empty, other, text = (tmp_path / name for name in ("empty.parquet", "other.parquet", "text.parquet"))
    pq.write_table(EXAMPLE_SCHEMA.empty_table(), empty)
    pq.write_table(pa.table({"x": [1]}), other)
    text.write_text("no Parquet at all")
    assert "empty.parquet holds no training examples: loosen the recipe's [accept] rule" in said(empty)
    assert "other.parquet does not hold training examples: it has no column sample_id" in said(other)
    assert "text.parquet does not hold training examples" in said(text)
    assert "gone.parquet does not hold training examples" in said(tmp_path / "gone.parquet")


def test_a_damaged_file_is_a_job_error(written: Path, tmp_path: Path) -> None:
    content = bytearray(written.read_bytes())
    content[200:900] = bytes(700)
    written.write_bytes(content)
    with pytest.raises(JobError, match="does not hold training examples"):
        open_examples(written, tmp_path / "tokens", {"letters": Counting()}, ALONE, Never())


MEASURE = """
import json, sys
from pathlib import Path
from model.training.examples import open_examples
from model.training.memory import peak_memory
from tests.model.training.tiny import ALONE, Never
columns = {"letters": lambda some: [list(example.completion.encode()[::10]) for example in some]}
found = open_examples(Path(sys.argv[1]), Path(sys.argv[2]), columns, ALONE, Never())
count = len(found.sample_ids)
assert all(len(found.list("letters", place)) == 3000 for place in range(0, count, count // 9))
print(json.dumps([peak_memory(ALONE.device), int(found.lengths["letters"].sum())]))
"""


def test_memory_grows_neither_with_the_text_nor_with_its_tokens(tmp_path: Path) -> None:
    """Seven times the text, ten bytes a token: the peak grows by less than three bytes a token (lists take eight)."""
    words, found = "so it is. " * 3000, []
    for count in (500, 3500):
        path = tmp_path / f"{count}.parquet"
        example = TrainingExample("s", "p", "q? ", "q? ", words, None)
        rows = [replace(example, sample_id=f"s{i}") for i in range(count)]
        pq.write_table(to_table(rows, EXAMPLE_SCHEMA), path, row_group_size=64)
        command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / str(count))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
        assert found[-1][1] == count * len(words) // 10
    (few, few_tokens), (many, many_tokens) = found
    assert many - few < 3 * (many_tokens - few_tokens)
