"""Benchmarks as files: JSON Lines (also .gz) or Parquet, one question per row, read as they come.

A row needs a question (`question`, `problem`, `prompt` or `input`); it may have solutions (`solution`, `gold`,
`answer`, `target`), of which all that are text are used. A file without a question column, an empty one, and a line
that is not a JSON object are refused with file and line: a benchmark that is silently not compared with would be
worse than none. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import CheckError

QUESTIONS = ("question", "problem", "prompt", "input")
SOLUTIONS = ("solution", "gold", "answer", "target")


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """One row. `name` says where it stands, as a verdict shows it: `gsm8k.jsonl:17`."""

    name: str
    question: str
    solution: str = ""


def read_benchmark(path: Path) -> Iterator[BenchmarkItem]:
    """The file's items in order. CheckError where it cannot be used."""
    if not path.is_file():
        raise CheckError(f"the benchmark file {path} does not exist; name it relative to the working directory")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    number = 0
    for number, row in rows:
        yield BenchmarkItem(f"{path.name}:{number}", _question(row, path, number), _solution(row))
    if not number:
        raise CheckError(f"the benchmark file {path} is empty; leave it out or fill it")


def files_digest(paths: Sequence[Path]) -> str:
    """Twelve hex digits of the files' contents; CheckError for one that is missing."""
    digest = hashlib.blake2b(digest_size=6)
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise CheckError(f"the benchmark file {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.isspace():
                    yield number, _object(json.loads(line))
    except (ValueError, OSError, EOFError, RecursionError) as error:
        # Decoders stop before the line that they could not give, parsers at it.
        at = number + 1 if isinstance(error, UnicodeDecodeError | OSError | EOFError) else number
        raise CheckError(f"the benchmark file {path} cannot be used, line {at}: {error}") from error


def _object(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is wanted, not {type(row).__name__}")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in (*QUESTIONS, *SOLUTIONS)]
            number = 0
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise CheckError(f"the benchmark file {path} cannot be used: {error}") from error


def _question(row: Mapping[str, Any], path: Path, number: int) -> str:
    for name in QUESTIONS:
        if isinstance(row.get(name), str) and row[name].strip():
            return str(row[name])
    raise CheckError(
        f"the benchmark file {path}, row {number}, has no text in any of the columns {', '.join(QUESTIONS)}; "
        f"it has {', '.join(sorted(map(str, row))) or 'none'}: rename the one with the question"
    )


def _solution(row: Mapping[str, Any]) -> str:
    return "\n".join(row[name] for name in SOLUTIONS if isinstance(row.get(name), str))
