from __future__ import annotations

import csv
import io
import json
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.results import write_result

TABLE = pa.table(
    {
        "name": ["a", 'say "b",\nc'],
        "count": [1, 20],
        "rate": [0.5, float("nan")],
        "at": [datetime(2026, 1, 2), None],
    }
)


def written(table: pa.Table, result_format: str) -> bytes:
    stream = io.BytesIO()
    write_result(table, result_format, stream)
    return stream.getvalue()


def test_table_is_aligned_and_counts_its_rows() -> None:
    assert written(TABLE, "table").decode() == (
        "name         count  rate  at\n"
        "-----------  -----  ----  -------------------\n"
        "a                1   0.5  2026-01-02T00:00:00\n"
        'say "b",\\nc     20   nan\n'
        "(2 rows)\n"
    )


def test_table_shows_what_would_steer_a_terminal_and_cuts_long_cells() -> None:
    shown = written(pa.table({"text": ["\x1b[2J" + "x" * 100]}), "table").decode()
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown
    assert max(map(len, shown.splitlines())) == 60


def test_csv_and_json_and_parquet_read_back() -> None:
    rows = list(csv.reader(io.StringIO(written(TABLE, "csv").decode())))
    assert rows == [
        ["name", "count", "rate", "at"],
        ["a", "1", "0.5", "2026-01-02T00:00:00"],
        ['say "b",\nc', "20", "nan", ""],
    ]
    assert json.loads(written(TABLE, "json")) == [
        {"name": "a", "count": 1, "rate": 0.5, "at": "2026-01-02T00:00:00"},
        {"name": 'say "b",\nc', "count": 20, "rate": None, "at": None},
    ]
    assert pq.read_table(io.BytesIO(written(TABLE, "parquet"))).num_rows == 2


def test_no_rows_and_twice_the_same_name() -> None:
    assert written(TABLE.slice(0, 0), "table").decode().endswith("(0 rows)\n")
    assert json.loads(written(TABLE.slice(0, 0), "json")) == []
    twins = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert written(twins, "csv") == b"a,a\n1,2\n"


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown format `xml`; there are table, csv, json, parquet"):
        written(TABLE, "xml")
