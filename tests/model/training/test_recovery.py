"""What the lines of a run's metrics say of its weights: whether they are broken, and since which update."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.training.job import GRPOJob, SFTJob
from model.training.recovery import (
    Broken,
    DivergedError,
    Recovery,
    Returns,
    StartOverError,
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
        ([update(1), update(2), spike(3), spike(4)], SPIKE, 2),
        ([update(1), update(2), spike(3), nothing_to_train_on(4), left_out(5), spike(6)], SPIKE, 2),
        ([update(1), update(2), no_numbers(3), spike(4)], SPIKE, 2),
        ([update(1), update(2), spike(3), no_numbers(4)], SPIKE, 2),
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
    assert recovery(lines, tmp_path).broken() == broken
    assert last_update(lines) == blamed


def recovery(lines: list[Line], folder: Path, **settings: Any) -> Recovery:
    """Of a run with these lines, whose checkpoints are all there."""
    settings = {"out": folder, "checkpoint_every": 1} | settings
    checkpoints = SimpleNamespace(any_before=lambda _step: True)
    given = job(**settings), SimpleNamespace(lines=lines), checkpoints, SimpleNamespace(world=ALONE)
    return Recovery(*given, stage=SimpleNamespace(beside=None))  # type: ignore[arg-type]


def test_spikes_that_are_there_again_are_the_batches_fault_with_those_that_adjoin_them(tmp_path: Path) -> None:
    """Missing numbers stay the weights' fault, and so do spikes that come after a good step."""
    first = [update(1), update(2), update(3), spike(4), spike(5)]
    assert recovery(first, tmp_path).broken() is SPIKE
    Returns(tmp_path / "skipped.json", ALONE).add(SPIKE, first, 3, back_to=2, remedy="lower learning_rate")
    again = [update(1), update(2), left_out(3), spike(4), spike(5)]
    assert recovery(again, tmp_path).broken() is None
    assert recovery([*again[:3], no_numbers(4), no_numbers(5)], tmp_path).broken() is NUMBERS
    longer = [*again, spike(6)]
    for lines in (longer, [*longer, spike(7)], longer):  # the last time as after a kill
        assert recovery(lines, tmp_path).broken() is None
    assert Returns(tmp_path / "skipped.json", ALONE).noticed == 7
    later = [*longer, spike(7), update(8), spike(9), spike(10)]
    assert recovery(later, tmp_path).broken() is SPIKE


def test_spikes_without_a_checkpoint_to_go_back_to_only_make_no_update(tmp_path: Path) -> None:
    """The step before the blamed one had the last that was due; one that a stop request left does not count."""
    lines = [*map(update, range(1, 12)), spike(12), spike(13)]
    assert recovery(lines, tmp_path, checkpoint_every=10).broken() is SPIKE
    assert recovery(lines, tmp_path, checkpoint_every=11).broken() is None
    assert recovery([*lines[:9], spike(10), *lines[10:]], tmp_path, checkpoint_every=10).broken() is None
    pruned = recovery(lines, tmp_path)
    pruned.checkpoints = SimpleNamespace(any_before=lambda step: step > 11)  # type: ignore[assignment]
    assert pruned.broken() is None


def test_spikes_send_training_back_three_times_and_never_end_it(tmp_path: Path) -> None:
    returns = Returns(tmp_path / "skipped.json", ALONE)
    for step in (4, 14, 24):
        lines = [*map(update, range(1, step)), spike(step), spike(step + 1)]
        assert recovery(lines, tmp_path).broken() is SPIKE
        returns.add(SPIKE, lines, step - 1, back_to=step - 2, remedy="lower learning_rate")
    assert recovery([*map(update, range(1, 34)), spike(34), spike(35)], tmp_path).broken() is None
    assert recovery([*map(update, range(1, 34)), no_numbers(34), no_numbers(35)], tmp_path).broken() is NUMBERS


def test_a_lasting_rise_becomes_the_usual() -> None:
    """Steps that were all spikes say nothing of what is usual, until too few others are left to say it."""
    lines = [{"step": i, "loss": 1.0, "grad_norm": 1.0} for i in range(1, 51)]
    lines += [spike(i) | {"loss": 1.0} for i in range(51, 77)]
    assert usual_limits(job(spike_ratio=10.0), lines[:-1]).norm == 10.0
    assert usual_limits(job(spike_ratio=10.0), lines) == Limits()


def job(**settings: Any) -> SFTJob:
    return SFTJob(**({"init": Path(), "out": Path(), "examples": Path()} | settings))


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
    returns = Returns(tmp_path / "skipped.json", ALONE)
    for blamed in (3, 5, 7):
        returns.add(NUMBERS, LINES, blamed, back_to=2, remedy="lower learning_rate")
    assert Returns(tmp_path / "skipped.json", ALONE).left_out == [3, 5, 7]
    with pytest.raises(DivergedError, match=r"step 5: .* lower learning_rate \(.* steps \[3, 5, 7\] did not help"):
        returns.add(NUMBERS, LINES, 9, back_to=2, remedy="lower learning_rate")


def test_from_the_beginning_it_is_tried_once_and_not_for_the_first_update(tmp_path: Path) -> None:
    returns = Returns(tmp_path / "skipped.json", ALONE)
    for blamed in (0, 1):
        with pytest.raises(DivergedError):
            returns.add(NUMBERS, LINES, blamed, back_to=0, remedy="lower learning_rate")
    assert not (tmp_path / "skipped.json").exists()
    with pytest.raises(StartOverError, match=r"step 5: .* after step 3, .* the same job starts over without it"):
        returns.add(NUMBERS, LINES, 3, back_to=0, remedy="lower learning_rate")
    told = {"step": 3, "noticed": 5, "why": "loss or gradient is no number"}
    assert json.loads((tmp_path / "skipped.json").read_text()) == [told]
    with pytest.raises(DivergedError):
        returns.add(NUMBERS, LINES, 2, back_to=0, remedy="lower learning_rate")
