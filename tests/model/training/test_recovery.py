"""What the lines of a run's metrics say of its weights: whether they are broken, and since which update."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from model.training.job import GRPOJob, SFTJob
from model.training.recovery import (
    BadBatches,
    Broken,
    DivergedError,
    StartOverError,
    broken_by,
    last_update,
    usual_limits,
)
from model.training.step import Limits, Line
from tests.model.training.tiny import ALONE


def update(step: int) -> Line:
    return {"step": step, "loss": 1.0, "grad_norm": 1.0}


def spike(step: int) -> Line:
    return update(step) | {"grad_norm": 100.0, "skipped": 1, "updates": 0, "spikes": 1}


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


NUMBERS, SPIKE = Broken.NO_NUMBERS, Broken.SPIKE


@pytest.mark.parametrize(
    ("lines", "broken", "blamed"),
    [
        ([], None, 0),
        ([no_numbers(1)], None, 0),
        ([no_numbers(1), no_numbers(2)], NUMBERS, 0),
        ([update(1), update(2), no_numbers(3)], None, 2),
        ([update(1), update(2), no_numbers(3), no_numbers(4)], NUMBERS, 2),
        ([update(1), no_numbers(2), update(3), no_numbers(4)], None, 3),
        ([update(1), spike(2), no_numbers(3), no_numbers(4)], NUMBERS, 1),
        ([update(1), spike(2)], None, 1),
        ([update(1), spike(2), update(3), spike(4)], None, 3),
        ([update(1), spike(2), spike(3)], SPIKE, 1),
        ([update(1), spike(2), nothing_to_train_on(3), left_out(4), spike(5)], SPIKE, 1),
        ([update(1), no_numbers(2), spike(3)], NUMBERS, 1),
        ([update(1), nothing_to_train_on(2), no_numbers(3), nothing_to_train_on(4), no_numbers(5)], NUMBERS, 1),
        ([update(1), left_out(2), no_numbers(3), left_out(4), no_numbers(5)], NUMBERS, 1),
        ([update(1), half(2), no_numbers(3)], NUMBERS, 2),
        ([update(1), no_values(2), no_numbers(3)], NUMBERS, 2),
        ([update(1), no_values(2), no_values(3)], NUMBERS, 1),
    ],
)
def test_when_weights_are_broken_and_by_which_step(
    lines: list[Line], broken: Broken | None, blamed: int, tmp_path: Path
) -> None:
    assert broken_by(lines, BadBatches(tmp_path / "skipped.json", ALONE)) == broken
    assert last_update(lines) == blamed


def test_spikes_that_going_back_did_not_help_against_are_the_batches_fault(tmp_path: Path) -> None:
    """Missing numbers stay the weights' fault, and so do spikes of later steps."""
    bad = BadBatches(tmp_path / "skipped.json", ALONE)
    lines = [update(1), update(2), spike(3), spike(4)]
    bad.add(SPIKE, lines, 2, back_to=1, rate="learning_rate")
    again = [update(1), left_out(2), spike(3), spike(4)]
    assert broken_by(again, bad) is None
    assert broken_by([*again, spike(5)], bad) is SPIKE
    assert broken_by([update(1), left_out(2), no_numbers(3), no_numbers(4)], bad) is NUMBERS


def job(**settings: Any) -> SFTJob:
    return SFTJob(init=Path(), out=Path(), examples=Path(), **settings)


def test_what_is_usual_is_the_median_of_the_last_updates() -> None:
    """50 steps whose loss falls from 100 by 2 a step; the last one was a spike, and says nothing of what is usual."""
    lines = [{"step": i, "loss": 102.0 - 2 * i, "grad_norm": 0.5 * i} for i in range(1, 61)]
    lines[-1] |= {"grad_norm": 1e6, "spikes": 1, "skipped": 1, "updates": 0}
    ten = job(spike_ratio=10.0)
    # Steps 11 to 59: the 35th is in the middle.
    assert usual_limits(ten, lines) == Limits(loss=10 * 32.0, norm=10 * 17.5)
    assert usual_limits(job(), lines) == Limits()
    assert usual_limits(ten, lines[:24]) == Limits()
    assert usual_limits(ten, lines[:25]).norm == 10 * 6.5


def test_what_is_no_worse_than_the_beginning_is_no_spike() -> None:
    """Examples learned by heart: a batch that is not has a loss and a gradient many times the usual, and is fine."""
    lines = [{"step": 1, "loss": 2.0, "grad_norm": 5.0}]
    lines += [{"step": i, "loss": 0.001, "grad_norm": 0.01} for i in range(2, 60)]
    assert usual_limits(job(spike_ratio=10.0, grad_clip=1.0), lines) == Limits(loss=2.0, norm=1.0)


def test_losses_of_stages_that_sample_say_nothing(tmp_path: Path) -> None:
    lines = [{"step": i, "loss": 0.0, "grad_norm": 3.0} for i in range(1, 60)]
    found = usual_limits(GRPOJob(init=tmp_path, out=tmp_path, problems=tmp_path, spike_ratio=10.0), lines)
    assert found == Limits(loss=math.inf, norm=30.0)


LINES = [update(1), update(2), update(3), no_numbers(4), no_numbers(5)]


def test_a_step_is_left_out_from_a_checkpoint_up_to_three_times(tmp_path: Path) -> None:
    bad = BadBatches(tmp_path / "skipped.json", ALONE)
    for blamed in (3, 5, 7):
        bad.add(NUMBERS, LINES, blamed, back_to=2, rate="learning_rate")
    assert BadBatches(tmp_path / "skipped.json", ALONE).steps == [3, 5, 7]
    with pytest.raises(DivergedError, match=r"step 5: .* lower learning_rate \(.* steps \[3, 5, 7\] did not help"):
        bad.add(NUMBERS, LINES, 9, back_to=2, rate="learning_rate")


def test_a_remedy_for_spikes_names_their_setting(tmp_path: Path) -> None:
    bad = BadBatches(tmp_path / "skipped.json", ALONE)
    with pytest.raises(DivergedError, match=r"step 3: loss .* usual: lower learning_rate, or raise spike_ratio$"):
        bad.add(SPIKE, [update(1), spike(2), spike(3)], 1, back_to=0, rate="learning_rate")


def test_from_the_beginning_it_is_tried_once_and_not_for_the_first_update(tmp_path: Path) -> None:
    bad = BadBatches(tmp_path / "skipped.json", ALONE)
    for blamed in (0, 1):
        with pytest.raises(DivergedError):
            bad.add(NUMBERS, LINES, blamed, back_to=0, rate="learning_rate")
    assert not (tmp_path / "skipped.json").exists()
    with pytest.raises(StartOverError, match=r"step 5: .* after step 3, .* the same job starts over without it"):
        bad.add(NUMBERS, LINES, 3, back_to=0, rate="learning_rate")
    told = {"step": 3, "noticed": 5, "why": "loss or gradient is no number"}
    assert json.loads((tmp_path / "skipped.json").read_text()) == [told]
    with pytest.raises(DivergedError):
        bad.add(NUMBERS, LINES, 2, back_to=0, rate="learning_rate")
