"""Benchmark files in all their names and formats, and what is refused with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import CheckError
from model.rewards.texts.benchmark_files import BenchmarkItem, files_digest, read_benchmark


@pytest.mark.parametrize(
    ("question", "solution"), [("question", "answer"), ("problem", "solution"), ("prompt", "gold")]
)
def test_rows_are_read_from_json_lines_gz_and_parquet(tmp_path: Path, question: str, solution: str) -> None:
    row = {question: "How many?", solution: "7", "level": 3}
    line = json.dumps(row) + "\n"
    (tmp_path / "a.jsonl").write_text(line + "\n" + line)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert list(read_benchmark(tmp_path / "a.jsonl"))[1] == BenchmarkItem("a.jsonl:3", "How many?", "7")
    assert list(read_benchmark(tmp_path / "a.jsonl.gz")) == [BenchmarkItem("a.jsonl.gz:1", "How many?", "7")]
    assert list(read_benchmark(tmp_path / "a.parquet")) == [BenchmarkItem("a.parquet:1", "How many?", "7")]


def test_several_solutions_count_and_numbers_do_not(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"question": "q", "answer": 7, "solution": "We add.", "gold": "seven"}))
    assert [item.solution for item in read_benchmark(file)] == ["We add.\nseven"]


@pytest.mark.parametrize(("content", "said"), [
    (b"", "is empty"), (b"\n\n", "is empty"), (b'{"question": "a"}\n{"question": ', "line 2"),
    (b"[1]\n", "line 1: a JSON object"),
    (b'{"text": "a"}\n', "row 1, has no text in any of the columns question.*it has text"),
    (b'{"question": "a"}\n{"question": null}\n', "row 2"), (b'{"question": "\xff"}', "cannot be used"),
])  # fmt: skip
def test_an_unusable_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "bench.jsonl").write_bytes(content)
    with pytest.raises(CheckError, match=rf"bench\.jsonl.*{said}"):
        list(read_benchmark(tmp_path / "bench.jsonl"))


@pytest.mark.parametrize("name", ["bad.parquet", "bad.jsonl.gz"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"neither\n")
    with pytest.raises(CheckError, match="cannot be used"):
        list(read_benchmark(tmp_path / name))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="does not exist"):
        list(read_benchmark(tmp_path / "none.jsonl"))
    with pytest.raises(CheckError, match="cannot be read"):
        files_digest([tmp_path / "none.jsonl"])


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("1")
    before = files_digest([file])
    file.write_text("2")
    assert files_digest([file]) != before
