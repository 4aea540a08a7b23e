"""Two processes (FSDP2 over gloo) train as one does: what they sample, are paid, answer and learn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from model.training.data import Row, micro_batches, row_packs
from model.training.parallel import World
from tests.model.training.alike import (
    CPU,
    GSPO,
    JOBS_OF_ALL,
    PPO,
    alone,
    assert_alike,
    assert_trained_alike,
    lines,
    losses,
    make_job,
    write_inputs,
)
from tests.model.training.pair import BROKEN, BROKEN_AT, train_in_two

BEGUN = "ppo that one began"
REFILLED = "grpo with refills and a head of its own"
KILLED = "grpo that was killed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def in_two(folder: Path) -> dict[str, Path]:
    """Every job, carried out by two processes; one that one process had begun, one that was killed, one whose weights
    break; their folders."""
    jobs = {name: make_job(folder, settings, f"two/{name}") for name, settings in JOBS_OF_ALL.items()}
    jobs[BEGUN] = make_job(folder, PPO, f"two/{BEGUN}")
    forget_the_end(alone(jobs[BEGUN]))
    jobs[KILLED] = make_job(folder, JOBS_OF_ALL[REFILLED], f"two/{KILLED}")
    jobs[BROKEN] = make_job(folder, JOBS_OF_ALL["sft"] | {"epochs": 6}, f"two/{BROKEN}")
    train_in_two(list(jobs.values()), killed=[(jobs[KILLED], 3)])
    return {name: job["out"] for name, job in jobs.items()}


def forget_the_end(out: Path) -> None:
    """As if the run had been killed after its first checkpoint."""
    (out / "manifest.json").unlink()
    first, *later = sorted((out / "checkpoints").glob("step-*"))
    for checkpoint in later:
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.partial"))
    assert later
    assert len(losses(out)) > int(first.name.removeprefix("step-"))


@pytest.mark.parametrize("name", JOBS_OF_ALL)
def test_two_processes_train_as_one(name: str, folder: Path, in_two: dict[str, Path]) -> None:
    assert_trained_alike(name, in_two[name], alone(make_job(folder, JOBS_OF_ALL[name], f"one/{name}")))


def test_two_processes_answer_as_one(folder: Path, in_two: dict[str, Path]) -> None:
    """The same validations, the same best step, and its weights kept; the answers of all are judged."""
    name = "gspo, validated"
    one = alone(make_job(folder, GSPO, f"one/{name}"))  # done already, unless this test runs by itself
    two = in_two[name]
    assert_alike(lines(two, "validation"), lines(one, "validation"), 1e-6)
    assert {line["samples"] for line in lines(two, "validation")} == {15}
    assert len({line["pass@1"] for line in lines(two, "validation")}) > 1
    of_one, of_two = (json.loads((out / "manifest.json").read_text())["model_step"] for out in (one, two))
    assert of_one == of_two


@pytest.mark.parametrize("name", ["sft", "ppo", BEGUN])
def test_another_number_of_processes_goes_on_from_a_checkpoint(
    name: str, folder: Path, in_two: dict[str, Path]
) -> None:
    """Two began and one ends, or the other way round: what a value model had learned goes on too."""
    settings = JOBS_OF_ALL["ppo" if name == BEGUN else name]
    parted, whole = in_two[name], alone(make_job(folder, settings, f"one/{'ppo' if name == BEGUN else name}"))
    if name != BEGUN:
        forget_the_end(parted)
        alone(make_job(folder, settings, f"two/{name}"))
    assert_alike(lines(parted), lines(whole), 2e-3)


def test_two_processes_that_were_killed_go_on_to_the_same_bit(in_two: dict[str, Path]) -> None:
    """Killed after the third of four steps, with a checkpoint of the second: rollouts, refills and losses."""
    assert lines(in_two[KILLED]) == lines(in_two[REFILLED])


def test_two_processes_go_back_alike(in_two: dict[str, Path]) -> None:
    """The weights break in one of them, where a checkpoint is due: both leave it out, and that step's batch."""
    found = lines(in_two[BROKEN])
    assert [each["step"] for each in json.loads((in_two[BROKEN] / "skipped.json").read_text())] == [BROKEN_AT]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    assert [line["step"] for line in found if "skipped" in line] == [BROKEN_AT]
    weights = load_file(in_two[BROKEN] / "model/model.safetensors").values()
    assert all(bool(weight.isfinite().all()) for weight in weights)


def shares_of(packs: Callable[[int], list[list[int]]], size: int) -> list[list[list[int]]]:
    return [list(World(CPU, rank, size, None).share(packs(size))) for rank in range(size)]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 20])
def test_every_process_gets_as_many_packs_and_every_row_once(rows: int) -> None:
    lengths = [3 + i % 5 for i in range(rows)]
    grouped = [Row([1] * (i // 3 + 1), [2] * length) for i, length in enumerate(lengths)]
    for packs in (lambda size: micro_batches(lengths, 12, size), lambda size: row_packs(grouped, 12, size)):
        shares = shares_of(packs, 4)
        assert len({len(share) for share in shares}) == 1
        assert sorted(i for share in shares for pack in share for i in pack) == list(range(rows))


def test_processes_are_not_left_idle_where_the_budget_would_take_all() -> None:
    shares = shares_of(lambda size: micro_batches([4, 4, 4, 4], 1000, size), 2)
    assert [len(pack) for share in shares for pack in share] == [2, 2]
    group = [Row([1, 2, 3], [4] * 5) for _ in range(8)]
    shares = shares_of(lambda size: row_packs(group, 1000, size), 4)
    assert [len(pack) for share in shares for pack in share] == [2, 2, 2, 2]
    assert row_packs(group, 1000) == [list(range(8))]


def test_processes_wait_for_one_another_little() -> None:
    """Each step of packs takes what its longest takes: together hardly more than all tokens shared evenly."""
    draw = random.Random(0)
    for size in (2, 4, 8):
        lengths = [int(draw.lognormvariate(6, 0.8)) for _ in range(600)]
        packs = micro_batches(lengths, 8192, size)
        tokens = [sum(lengths[i] for i in pack) for pack in packs]
        waited = sum(max(tokens[at : at + size]) for at in range(0, len(tokens), size))
        assert waited * size <= 1.02 * sum(lengths)


def test_what_is_dealt_out_comes_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, 1, 5, 8):
        items = list(range(count))
        parts = [list(World(CPU, rank, 3, None).dealt(items)) for rank in range(3)]
        monkeypatch.setattr(World, "gather", lambda _self, _own, parts=parts: parts)
        assert World(CPU, 1, 3, None).collected(parts[1]) == items
