"""Query results for people and for pipes: an aligned table, CSV, JSON or Parquet, as bytes on a stream."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("table", "csv", "json", "parquet")
CELL_WIDTH = 60  # characters of a cell in a table; the other formats cut nothing


def write_result(table: pa.Table, result_format: str, stream: BinaryIO) -> None:
    """Writes `table` to `stream` in one of FORMATS: UTF-8 with a line feed at the end, except Parquet.

    JSON is one array of objects, with null for NaN and infinity; times are ISO 8601; bytes are hexadecimal.
    ValueError for another format.
    """
    if result_format not in FORMATS:
        raise ValueError(f"unknown format `{result_format}`; there are {', '.join(FORMATS)}")
    writers = {"table": _write_table, "csv": _write_csv, "json": _write_json, "parquet": _write_parquet}
    writers[result_format](table, stream)


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Rows by position: a query may give two columns one name."""
    for batch in table.to_batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _write_table(table: pa.Table, stream: BinaryIO) -> None:
    """Columns side by side, numbers to the right, one line per row, then the count of rows."""
    rows = [[_cell(value) for value in row] for row in _rows(table)]
    names = table.column_names
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    right = [pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t) for t in table.schema.types]
    lines = [_line(row, widths, right) for row in [names, ["-" * w for w in widths], *rows]]
    lines.append(f"({table.num_rows} row{'' if table.num_rows == 1 else 's'})")
    stream.write(("\n".join(lines) + "\n").encode())


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
    return "  ".join(padded).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(_plain(value))
    text = "".join(map(_visible, text[: CELL_WIDTH + 1]))
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + "…"


def _visible(character: str) -> str:
    """Escapes line feeds and control characters: what a model wrote must not steer a terminal."""
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _write_csv(table: pa.Table, stream: BinaryIO) -> None:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows([_plain(value) for value in row] for row in _rows(table))
    text.detach()


def _write_json(table: pa.Table, stream: BinaryIO) -> None:
    stream.write(b"[")
    between = b"\n"
    for row in _rows(table):
        named = dict(zip(table.column_names, map(_finite, row), strict=True))
        stream.write(between + json.dumps(named, default=_plain, ensure_ascii=False).encode())
        between = b",\n"
    stream.write(b"\n]\n")


def _write_parquet(table: pa.Table, stream: BinaryIO) -> None:
    pq.write_table(table, stream, compression="zstd")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """What JSON and CSV can hold: times as ISO 8601, bytes as hexadecimal, the rest as it prints."""
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value if isinstance(value, (str, int, float, list, dict, type(None))) else str(value)
