"""What the lines of a run's metrics say of its weights: whether they are broken, and since which update."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.training.loop import BadBatches, DivergedError, Line, StartOverError, last_update, no_numbers_twice
from tests.model.training.tiny import ALONE


def update(step: int) -> Line:
    return {"step": step, "loss": 1.0, "grad_norm": 1.0}


def spike(step: int) -> Line:
    return update(step) | {"grad_norm": 100.0, "skipped": 1, "updates": 0}


def nothing_to_train_on(step: int) -> Line:
    return {"step": step}


def left_out(step: int) -> Line:
    return {"step": step, "skipped": 1}


def no_numbers(step: int) -> Line:
    return {"step": step, "skipped": 1, "updates": 0, "nonfinite": 1}


def half(step: int) -> Line:
    """Of two updates the first was made, and the second had no numbers."""
    return update(step) | {"skipped": 1, "updates": 1, "nonfinite": 1}


def no_values(step: int) -> Line:
    """The model was updated; what is trained beside it had no numbers."""
    return update(step) | {"nonfinite": 1, "nonfinite_beside": 1}


@pytest.mark.parametrize(
    ("lines", "twice", "blamed"),
    [
        ([], False, 0),
        ([no_numbers(1)], False, 0),
        ([no_numbers(1), no_numbers(2)], True, 0),
        ([update(1), update(2), no_numbers(3)], False, 2),
        ([update(1), update(2), no_numbers(3), no_numbers(4)], True, 2),
        ([update(1), no_numbers(2), update(3), no_numbers(4)], False, 3),
        ([update(1), spike(2), no_numbers(3), no_numbers(4)], True, 1),
        ([update(1), no_numbers(2), spike(3)], False, 1),
        ([update(1), nothing_to_train_on(2), no_numbers(3), nothing_to_train_on(4), no_numbers(5)], True, 1),
        ([update(1), left_out(2), no_numbers(3), left_out(4), no_numbers(5)], True, 1),
        ([update(1), half(2), no_numbers(3)], True, 2),
        ([update(1), no_values(2), no_numbers(3)], True, 2),
        ([update(1), no_values(2), no_values(3)], True, 1),
    ],
)
def test_when_weights_are_broken_and_by_which_step(lines: list[Line], twice: bool, blamed: int) -> None:
    assert no_numbers_twice(lines) is twice
    assert last_update(lines) == blamed


LINES = [update(1), update(2), update(3), no_numbers(4), no_numbers(5)]


def test_a_step_is_left_out_from_a_checkpoint_up_to_three_times(tmp_path: Path) -> None:
    bad = BadBatches(tmp_path / "skipped.json", ALONE)
    for blamed in (3, 5, 7):
        bad.add(LINES, blamed, back_to=2, rate="learning_rate")
    assert BadBatches(tmp_path / "skipped.json", ALONE).steps == [3, 5, 7]
    with pytest.raises(DivergedError, match=r"step 5: .* lower learning_rate \(.* steps \[3, 5, 7\] did not help"):
        bad.add(LINES, 9, back_to=2, rate="learning_rate")


def test_from_the_beginning_it_is_tried_once_and_not_for_the_first_update(tmp_path: Path) -> None:
    bad = BadBatches(tmp_path / "skipped.json", ALONE)
    for blamed in (0, 1):
        with pytest.raises(DivergedError):
            bad.add(LINES, blamed, back_to=0, rate="learning_rate")
    assert not (tmp_path / "skipped.json").exists()
    with pytest.raises(StartOverError, match=r"step 5: .* after step 3, .* the same job starts over without it"):
        bad.add(LINES, 3, back_to=0, rate="learning_rate")
    assert json.loads((tmp_path / "skipped.json").read_text()) == [3]
    with pytest.raises(DivergedError):
        bad.add(LINES, 2, back_to=0, rate="learning_rate")
