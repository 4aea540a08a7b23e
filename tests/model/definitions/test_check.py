"""The checker is checked: it agrees with what trains, and sees one loss that was broken."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from model.definitions import ours, published
from model.definitions.check import against_values, check_losses, compare, table
from model.losses.head import Part
from model.losses.sft import sft_part


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_loss_agrees_with_its_paper() -> None:
    done = CliRunner().invoke(app, ["train", "--check-losses"])
    assert done.exit_code == 0, done.output
    assert done.output.endswith("definitions: all agree\n")
    assert "DIFFER" not in done.output


def test_a_broken_loss_is_marked_and_ends_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a percent of the gradient, the value untouched."""

    def broken(*arguments: Any) -> Part:
        part = sft_part(*arguments)
        part.gradient_CV.mul_(1.0001)
        return part

    monkeypatch.setattr(ours, "sft_part", broken)
    done = CliRunner().invoke(app, ["train", "--check-losses"])
    assert done.exit_code == 1
    marked = [line for line in done.output.splitlines() if line.startswith("DIFFERS")]
    assert [line.split()[1] for line in marked] == ["cross-entropy,"] * 3
    assert done.output.endswith("definitions: 3 DIFFER\n")


def test_other_inputs_agree_too() -> None:
    assert [row.name for row in check_losses(seed=3, vocabulary=96) if not row.agrees] == []


@pytest.mark.parametrize("wrong", [1.001, math.nan, math.inf])
def test_what_is_no_number_does_not_agree(wrong: float) -> None:
    row = compare(against_values("x", "a book", torch.tensor([wrong, 1.0]), torch.ones(2)))
    assert not row.agrees
    assert "DIFFERS x" in table([row])


def test_published_definitions_by_hand() -> None:
    """One winner in four; p = (½, ½) and q = (¼, ¾); a completion of 8 of at most 10 tokens; 1 right of 2."""
    one_in_four = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert published.grpo_advantages(one_in_four).tolist() == pytest.approx([-1 / 3**0.5, 3**0.5, *[-1 / 3**0.5] * 2])
    assert published.rloo_advantages(one_in_four).tolist() == pytest.approx([-1 / 3, 1.0, -1 / 3, -1 / 3])
    p_NV, q_NV = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    assert published.kl(p_NV, q_NV).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert published.top_k_kl(p_NV, q_NV, torch.tensor([[0]])).item() == pytest.approx(published.kl(p_NV, q_NV).item())
    assert published.overlong_reward(8, 10, 4) == -0.5
    assert published.pass_at_k(2, 1, 1) == 0.5


def test_a_job_or_the_check() -> None:
    for words in ([], ["job.json", "--check-losses"]):
        done = CliRunner().invoke(app, ["train", *words])
        assert "say what to do" in str(done.exception)


def test_a_job_that_is_not_there_ends_with_two() -> None:
    """A process of its own: it answers signals in its own way."""
    words = [sys.executable, "-m", "flows.cli", "train", "nowhere.json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("JobError: cannot read the job nowhere.json")
