"""Stored rows as a trainer meets them: in order, missing, made for another text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from model.training.data import Row
from model.training.job import JobError
from model.training.teacher_rows import TeacherRows
from tests.model.training.tiny import ALONE, teacher_row, write_teacher_rows

ONE, TWO = Row([3, 4], [5]), Row([3, 4], [6, 7])
STORED = [
    teacher_row("one", ONE, [[5, 9]], [[-0.5, -1.0]]),
    teacher_row("two", TWO, [[6, 9], [7, 8]], [[-0.25, -2.0], [-4.0, -8.0]]),
]


@pytest.mark.parametrize("rows_in_a_group", [1, 2])
def test_rows_come_one_after_another_in_the_order_asked_for(tmp_path: Path, rows_in_a_group: int) -> None:
    rows = TeacherRows(write_teacher_rows(tmp_path, STORED, rows_in_a_group), pa.array(["two", "one"]))
    rows.require([TWO, ONE].__getitem__, ALONE)
    ids_NK, log_probs_NK = rows.read([0, 1])
    assert ids_NK.tolist() == [[6, 9], [7, 8], [5, 9]]
    assert log_probs_NK.tolist() == [[-0.25, -2.0], [-4.0, -8.0], [-0.5, -1.0]]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"three": ONE}, "sample three has no stored log-probabilities: run the recipe's stage distill again"),
        ({"two": replace(TWO, completion=[6, 8])}, "stored for sample two are of another tokens"),
        ({"two": replace(TWO, completion=[6])}, "stored for sample two are of another tokens"),
        ({"one": ONE, "two": replace(TWO, context=[4, 3])}, "stored for sample two are of another context"),
    ],
)
def test_a_missing_or_misaligned_row_is_one_error_that_names_the_sample(
    tmp_path: Path, wanted: dict[str, Row], says: str
) -> None:
    with pytest.raises(JobError, match=says):
        TeacherRows(write_teacher_rows(tmp_path, STORED), pa.array(wanted)).require(
            [*wanted.values()].__getitem__, ALONE
        )


def test_a_file_that_is_gone_or_no_list_is_one_error(tmp_path: Path) -> None:
    places = write_teacher_rows(tmp_path, STORED)
    with pytest.raises(JobError, match="is no list of a teacher's rows"):
        TeacherRows(tmp_path / "rows.parquet", pa.array(["one"]))
    (tmp_path / "rows.parquet").unlink()
    with pytest.raises(JobError, match="cannot read stored log-probabilities"):
        TeacherRows(places, pa.array(["one"])).require([ONE].__getitem__, ALONE)
