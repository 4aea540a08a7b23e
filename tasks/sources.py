"""Where problems are read from: JSONL, CSV, Parquet, a Hugging Face dataset or a built-in set, row by row.

A reader yields `RawRow`s in file order and never more than a small buffer ahead, so that a file of any
size is read in flat memory. A row that cannot be read becomes a `RawRow` with a reason and reading goes
on; only what spoils the whole source (no such file, not Parquet, no such column) raises ProblemsError.
What a row means is the business of `tasks/problems.py`.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from model.errors import ProblemsError
from tasks.builtin_problems import BUILTIN_SETS, builtin_rows

MAX_LINE_BYTES = 16 * 1024 * 1024
_COUNTED_WHOLE_BYTES = 64 * 1024 * 1024
_QUICK_BYTES = 8 * 1024 * 1024
_WORTH_SAYING = 0.01  # chance that a share keeps none of the problems
SHARES = ("held_out", "validation")  # of a source, kept out of training
_PROBE_BYTES = 4 * 1024 * 1024
_PARQUET_ROWS = 512
_UTF8_BOM = b"\xef\xbb\xbf"


class RejectReason(StrEnum):
    """Why a row is not a problem."""

    MALFORMED_JSON = "malformed_json"
    MALFORMED_CSV = "malformed_csv"
    NOT_AN_OBJECT = "not_an_object"
    WRONG_COLUMN_COUNT = "wrong_column_count"
    LINE_TOO_LONG = "line_too_long"
    NOT_UTF8 = "not_utf8"
    CONTAINS_NUL = "contains_nul"
    MISSING_PROMPT = "missing_prompt"
    WRONG_TYPE = "wrong_type"
    EMPTY_PROMPT = "empty_prompt"
    PROMPT_TOO_LONG = "prompt_too_long"


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a source holds what. A dotted name reaches into nested values: `messages.0.content`."""

    prompt: str = "prompt"
    gold: str = "gold"
    tests: str = "tests"
    metadata: tuple[str, ...] = ()

    def required(self) -> list[str]:
        """Columns that a table must have: the prompt's, and every other one that was named on purpose."""
        named = [self.gold] * (self.gold != "gold") + [self.tests] * (self.tests != "tests")
        return [self.prompt, *named, *self.metadata]


@dataclass(frozen=True, slots=True)
class ProblemSource:
    """One source of problems, as `[[problems]]` of a recipe describes it (the same names there and here)."""

    type: str
    path: str = ""
    name: str = ""
    config: str = ""
    split: str = "train"
    revision: str = "main"
    columns: Columns = field(default_factory=Columns)
    gold_pattern: str = ""
    source: str = ""
    domain: str = "math"
    limit: int = 0
    held_out: float = 0.0
    validation: float = 0.0
    max_prompt_chars: int = 32_000
    expected_rows: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ProblemSource:
        """From a recipe section's dump. Raises ValueError for a key that no source has."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"no such setting of a problem source: {', '.join(sorted(unknown))}")
        kwargs = dict(values)
        columns = kwargs.get("columns", Columns())
        if not isinstance(columns, Columns):
            kwargs["columns"] = Columns(**{**columns, "metadata": tuple(columns.get("metadata", ()))})
        return cls(**kwargs)

    def __post_init__(self) -> None:
        if self.type == "builtin" and self.name in BUILTIN_SETS and self.domain == "math":
            # The default of other sources; a built-in set knows its own.
            object.__setattr__(self, "domain", BUILTIN_SETS[self.name].domain)

    @property
    def label(self) -> str:
        """What the `source` column and the rejects file are called."""
        return self.source or default_label(self.type, self.name or self.path)


def default_label(kind: str, location: str) -> str:
    """`org/GSM8K` -> `GSM8K`, `data/train.jsonl.gz` -> `train`, anything unfit for a file name -> `-`."""
    last = Path(location.rstrip("/")).name
    stem = last if kind in ("hf", "builtin") else last.split(".")[0]
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in stem) or "problems"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it was read: `values`, or else the `reason` why there are none.

    `line` counts from 1: the (first) line in a JSONL or CSV file, the row in anything else.
    """

    line: int
    values: Mapping[str, Any] | None
    reason: RejectReason | None = None
    detail: str = ""
    excerpt: str = ""


def read_rows(source: ProblemSource) -> Iterator[RawRow]:
    """All rows of a source, streaming. Raises ProblemsError when the source as a whole cannot be read."""
    readers: dict[str, Callable[[ProblemSource], Iterator[RawRow]]] = {
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "parquet": _read_parquet,
        "hf": _read_hf,
        "builtin": _read_builtin,
    }
    if source.type not in readers:
        raise ValueError(f"source type {source.type!r} is not one of {', '.join(readers)}")
    return readers[source.type](source)


def count_rows(source: ProblemSource) -> tuple[int | None, str]:
    """Rows of a source where that is cheap to tell (else None), and how the number came about."""
    if source.type == "builtin":
        return BUILTIN_SETS[source.name].size, "size of the built-in set"
    if source.type == "parquet":
        return _parquet_file(source).metadata.num_rows, "rows in the Parquet footer"
    if source.type in ("jsonl", "csv"):
        lines, origin = _count_lines(_existing_file(source))
        return (max(lines - 1, 0), origin) if source.type == "csv" else (lines, origin)
    if source.expected_rows:
        return source.expected_rows, "expected_rows"
    return None, "not known before the download"


def quick_to_read(source: ProblemSource) -> bool:
    """Whether all problems of a source are read in well under a second: a small file."""
    return source.type in ("jsonl", "csv", "parquet") and _existing_file(source).stat().st_size <= _QUICK_BYTES


def nothing_held_out(source: ProblemSource, problems: int) -> str:
    """What a user is told whose share of held-out questions comes to none."""
    return (
        f"{source.label}: held_out = {source.held_out:g} holds out none of its {problems} problems, for a question's "
        "hash decides: raise it, or add problems"
    )


def nothing_to_validate(source: ProblemSource, problems: int) -> str:
    """What a user is told whose share of questions for validation comes to none."""
    return (
        f"{source.label}: validation = {source.validation:g} keeps none of its {problems} problems for validation, for "
        "a question's hash decides: raise it, or add problems"
    )


def perhaps_nothing(source: ProblemSource, key: str, problems: int) -> str | None:
    """What a user is told whose `held_out` or `validation` may well come to none of problems that were not read yet."""
    share: float = getattr(source, key)
    chance = (1 - share) ** problems
    if not share or not problems or chance < _WORTH_SAYING:
        return None
    return (
        f"{source.label}: {key} = {share:g} of {problems} problems keeps none with a chance of {chance:.0%}, for a "
        "question's hash decides: raise it, or add problems"
    )


def _count_lines(path: Path) -> tuple[int, str]:
    if path.suffix == ".gz" or path.stat().st_size <= _COUNTED_WHOLE_BYTES:
        with _open_binary(path) as stream:
            return sum(1 for line in stream if not line.isspace()), "lines of the file"
    with path.open("rb") as stream:
        probe = stream.read(_PROBE_BYTES)
    share = len(probe) / path.stat().st_size
    return round(probe.count(b"\n") / share), "estimated from the file's size"


# --- files ----------------------------------------------------------------------------------------


def _existing_file(source: ProblemSource) -> Path:
    path = Path(source.path).expanduser()
    if path.is_dir():
        raise ProblemsError(f"{path} is a folder; problems of type {source.type} are read from one file")
    if not path.is_file():
        raise ProblemsError(f"no such problems file: {path} (paths are relative to the working directory)")
    return path


def _open_binary(path: Path) -> IO[bytes]:
    try:
        # gzip's stream is an IO[bytes] in all but its declared type.
        return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise ProblemsError(f"cannot read {path}: {error.strerror or error}") from error


def _bounded_lines(stream: IO[bytes], path: Path) -> Iterator[tuple[bytes, bool]]:
    """(line, whole) of a binary stream: a line over MAX_LINE_BYTES is cut short, its rest skipped."""
    try:
        while line := stream.readline(MAX_LINE_BYTES):
            whole = line.endswith(b"\n") or len(line) < MAX_LINE_BYTES
            rest = line
            while not whole and rest and not rest.endswith(b"\n"):
                rest = stream.readline(MAX_LINE_BYTES)
            yield line, whole
    except (OSError, EOFError) as error:
        raise ProblemsError(f"cannot read on in {path}: {error} (is the file damaged?)") from error


def _read_jsonl(source: ProblemSource) -> Iterator[RawRow]:
    path = _existing_file(source)
    with _open_binary(path) as stream:
        for number, (line, whole) in enumerate(_bounded_lines(stream, path), start=1):
            content = line.removeprefix(_UTF8_BOM) if number == 1 else line
            if not whole:
                yield _bad(number, RejectReason.LINE_TOO_LONG, f"over {MAX_LINE_BYTES} bytes", content)
            elif content.strip():
                yield _json_row(number, content)


def _json_row(number: int, line: bytes) -> RawRow:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _bad(number, RejectReason.NOT_UTF8, f"byte {error.start} is not UTF-8", line)
    # ValueError also covers numbers of more than 4,300 digits; RecursionError brackets nested thousands deep.
    except (ValueError, RecursionError) as error:
        return _bad(number, RejectReason.MALFORMED_JSON, str(error), line)
    if not isinstance(values, dict):
        return _bad(number, RejectReason.NOT_AN_OBJECT, f"a {type(values).__name__}, not an object", line)
    return RawRow(number, values)


def _bad(line: int, reason: RejectReason, detail: str, content: bytes | str) -> RawRow:
    excerpt = content[:500]
    text = excerpt.decode("utf-8", errors="replace") if isinstance(excerpt, bytes) else excerpt
    return RawRow(line, None, reason, detail, text.rstrip("\r\n"))


def _read_csv(source: ProblemSource) -> Iterator[RawRow]:
    path = _existing_file(source)
    # The module's own limit, 131,072 characters per field (set per process), refuses long test suites.
    csv.field_size_limit(MAX_LINE_BYTES)
    with _open_binary(path) as stream:
        reader = csv.reader(_csv_lines(stream, path), strict=True)
        header = _csv_header(reader, path)
        _check_columns(header, source)
        yield from _csv_rows(reader, header)


def _csv_lines(stream: IO[bytes], path: Path) -> Iterator[str]:
    """Undecodable bytes become lone surrogates, which tasks/problems.py reports as not_utf8 for that row."""
    for number, (line, _) in enumerate(_bounded_lines(stream, path), start=1):
        content = line.removeprefix(_UTF8_BOM) if number == 1 else line
        yield content.decode("utf-8", errors="surrogateescape")


def _csv_header(reader: Any, path: Path) -> list[str]:
    try:
        return [str(name).strip() for name in next(reader)]
    except StopIteration:
        raise ProblemsError(f"{path} is empty: a CSV file begins with a line of column names") from None
    except csv.Error as error:
        raise ProblemsError(f"{path} does not begin with a line of CSV column names: {error}") from error


def _csv_rows(reader: Any, header: list[str]) -> Iterator[RawRow]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _bad(line, RejectReason.MALFORMED_CSV, str(error), "")
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            detail = f"{len(cells)} cells under {len(header)} columns"
            yield _bad(line, RejectReason.WRONG_COLUMN_COUNT, detail, ",".join(cells))
        else:
            yield RawRow(line, dict(zip(header, cells, strict=True)))


def _check_columns(present: Iterable[str], source: ProblemSource) -> None:
    """A table without the prompt's column, or without one that the recipe names, is the wrong table."""
    names = list(present)
    for wanted in source.columns.required():
        if wanted in names or wanted.split(".")[0] in names:
            continue
        nearest = difflib.get_close_matches(wanted, names, n=1)
        hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
        where = source.path or source.name
        raise ProblemsError(f"{where} has no column `{wanted}`{hint} (columns: {', '.join(names)})")


# --- Parquet --------------------------------------------------------------------------------------


def _parquet_file(source: ProblemSource) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _existing_file(source)
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ProblemsError(f"{path} is not a Parquet file that can be read: {error}") from error


def _read_parquet(source: ProblemSource) -> Iterator[RawRow]:
    import pyarrow as pa

    parquet = _parquet_file(source)
    names = parquet.schema_arrow.names
    _check_columns(names, source)
    wanted = [name for name in names if name in _top_columns(source.columns)]
    line = 0
    with parquet:
        try:
            for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                for values in _batch_rows(batch):
                    line += 1
                    yield RawRow(line, values)
        except (pa.ArrowException, OSError) as error:
            raise ProblemsError(f"cannot read on in {source.path} after row {line}: {error}") from error


def _top_columns(columns: Columns) -> set[str]:
    """Columns to read: each mapped name, and what stands before its first dot."""
    mapped = (columns.prompt, columns.gold, columns.tests, *columns.metadata)
    return {*mapped, *(name.split(".")[0] for name in mapped)}


def _batch_rows(batch: Any) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        # Parquet does not force strings to be UTF-8. Value by value, so that one bad cell costs one row.
        names = batch.schema.names
        return [{name: _cell(batch[name][row]) for name in names} for row in range(batch.num_rows)]


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", errors="surrogateescape")


# --- Hugging Face, built-in -----------------------------------------------------------------------


def _read_hf(source: ProblemSource) -> Iterator[RawRow]:
    dataset = _hf_dataset(source)
    columns = getattr(dataset, "column_names", None)
    if columns:
        _check_columns(columns, source)
    try:
        for number, values in enumerate(dataset, start=1):
            if number == 1 and not columns:
                _check_columns(values, source)
            yield RawRow(number, values)
    except ProblemsError:
        raise
    # `datasets` lets anything through from its readers, decoders and HTTP clients; all of it ends the source.
    except Exception as error:
        raise ProblemsError(f"cannot read on in dataset {source.name}: {_first_line(error)}") from error


def _hf_dataset(source: ProblemSource) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ProblemsError("sources of type hf need the `datasets` package: pip install datasets") from error
    folder = Path(source.name).expanduser()
    try:
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            return _saved_split(datasets.load_from_disk(str(folder)), source)
        name, revision = (str(folder), None) if folder.is_dir() else (source.name, source.revision)
        config = source.config or None
        return datasets.load_dataset(name, config, split=source.split, revision=revision, streaming=True)
    except ProblemsError:
        raise
    # See above: no common ancestor among what load_dataset raises.
    except Exception as error:
        remedy = "check name, config and split, and that the hub or folder can be reached"
        raise ProblemsError(f"cannot open dataset {source.name}: {_first_line(error)}; {remedy}") from error


def _saved_split(dataset: Any, source: ProblemSource) -> Any:
    """`save_to_disk` leaves either one split or a dictionary of them."""
    if not isinstance(dataset, dict):
        return dataset
    if source.split not in dataset:
        raise ProblemsError(f"{source.name} has no split `{source.split}`; there are: {', '.join(dataset)}")
    return dataset[source.split]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_builtin(source: ProblemSource) -> Iterator[RawRow]:
    for number, values in enumerate(builtin_rows(source.name), start=1):
        yield RawRow(number, values)
