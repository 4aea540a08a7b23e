"""The expected peak: its parts by hand, what a lack of memory does, and a real process against its own peak."""

from __future__ import annotations

import gc
import json
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.training import memory
from model.training.job import GRPOJob, JobError, PPOJob, Precision, SFTJob, job_from
from model.training.load import checkpoint_activations, outline
from model.training.memory import NoRoomError, Plan
from model.training.parallel import World
from model.training.process import Stopped
from model.training.runner import run_job
from tests.model.training.tiny import ALONE, LETTERS, PREFILL, Never, make_model, make_tokenizer, save_tiny

GIB = 2**30
PLAN = Plan(loaded=GIB, trained=2 * GIB, per_token=2**20, tokens=1024, tables=2**28, sampled=0, saved=0)


class Exponentials(torch.nn.Module):
    """exp of an embedding of 16 numbers: what autograd keeps can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(8, 16)

    def base_model(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.table(input_ids).exp())


def test_what_autograd_keeps_by_hand() -> None:
    """Per token: its id (8 bytes) and exp's result (16 floats); once: the one place where a token is predicted."""
    assert memory.kept_bytes(Exponentials(), 11, ALONE.device) == 10 * (8 + 16 * 4) + 8


def test_activations_of_another_length_are_foretold() -> None:
    model = make_model()
    kept = memory.measure_activations(model, 64, ALONE.device)
    assert kept.square > 0  # this attention has tables of scores
    assert kept.bytes(48, 48) == pytest.approx(memory.kept_bytes(model, 48, ALONE.device), rel=0.05)


def test_activation_checkpointing_is_seen_and_left_on() -> None:
    model = make_model()
    whole = memory.measure_activations(model, 64, ALONE.device).bytes(64, 64)
    checkpoint_activations(model)
    assert memory.measure_activations(model, 64, ALONE.device).bytes(64, 64) < 0.7 * whole
    assert model.is_gradient_checkpointing
    assert model.training


@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("again", [False, True])
def test_a_model_without_weights_tells_what_one_with_weights_keeps(tmp_path: Path, layers: int, again: bool) -> None:
    whole = make_model(layers=layers)
    whole.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    empty, _ = outline(tmp_path, Precision.FLOAT32, ALONE.device, compiled=False)
    for model in (whole, empty) if again else ():
        checkpoint_activations(model)
    expected = memory.measure_activations(whole, 256, ALONE.device)
    found = memory.measure_outline(empty, ALONE.device)
    assert found.bytes(200, 100) == pytest.approx(expected.bytes(200, 100), rel=0.03)


def test_what_was_measured_is_gone(tmp_path: Path) -> None:
    """What autograd saves of an operation's own result would hold the whole graph, if it were kept as it is."""
    model, _ = outline(save_tiny(tmp_path), Precision.FLOAT32, ALONE.device, compiled=False)
    memory.measure_outline(model, ALONE.device)
    embedded = weakref.ref(model.get_input_embeddings().weight)
    del model
    gc.collect()
    assert embedded() is None


def test_an_optimizer_by_hand() -> None:
    """Of a bfloat16 weight: master, its gradient and two moments in float32, and the model's own gradient."""
    job = SFTJob(init=Path(), out=Path(), examples=Path())
    model = make_model()
    count = sum(weight.numel() for weight in model.parameters())
    assert memory.trained_bytes(model, job) == (12 * count, 16 * count)
    assert memory.trained_bytes(model.bfloat16(), job) == (18 * count, 14 * count)
    narrow = replace(job, optimizer_state=Precision.BFLOAT16)
    assert memory.trained_bytes(model, narrow) == (14 * count, 10 * count)
    ppo = PPOJob(init=Path(), out=Path(), problems=Path())  # a value model's moments, and in a checkpoint its masters
    assert memory.trained_bytes(model, ppo) == (26 * count, 26 * count)
    model.base_model.requires_grad_(False)
    assert memory.trained_bytes(model, job) == (0, 2 * count)  # the head is the embedding; a checkpoint has all weights


def test_keys_and_values_by_hand() -> None:
    """2 layers, 2 heads of 8 numbers, keys and values, float32."""
    job = GRPOJob(
        init=Path(),
        out=Path(),
        problems=Path(),
        problems_per_step=100,
        group_size=10,
        max_tokens=8,
        dtype=Precision.FLOAT32,
    )
    assert memory.cache_bytes(job, make_model()) == 2 * 2 * 2 * 8 * 4
    assert memory.sampled_bytes(job, make_model(), ALONE, longest=600) == 1000 * (600 * 256 + 5 * 48 * 4)
    eight = World(ALONE.device, 3, 8)
    assert memory.sampled_bytes(job, make_model(), eight, longest=600) == 125 * (600 * 256 + 5 * 48 * 4)


def test_where_there_is_room_nothing_changes() -> None:
    assert PLAN.fitted(free=10 * GIB, longest=64) == PLAN
    assert PLAN.peak == GIB + 2 * GIB + GIB + GIB // 4


def test_fewer_tokens_at_once_where_not_all_fit() -> None:
    """Of 3 GiB 5 % stay free; 2 are the optimizer's, a quarter the logits': 614.4 MiB for tokens of one MiB."""
    assert PLAN.fitted(free=3 * GIB, longest=64).tokens == 614
    assert PLAN.fitted(free=3 * GIB, longest=700).tokens == 700  # a row is never cut


def test_what_is_missing_for_the_longest_row() -> None:
    """700 MiB of tokens, where 614.4 MiB are left for them."""
    plan = PLAN.fitted(free=3 * GIB, longest=700)
    assert plan.missing(3 * GIB) == pytest.approx((700 - 614.4) * 2**20, abs=2**10)
    assert PLAN.fitted(free=3 * GIB, longest=64).missing(3 * GIB) == 0


def test_where_the_optimizer_does_not_fit_one_error_says_what_helps() -> None:
    with pytest.raises(NoRoomError, match=r"needs 2.00 GiB beside the 1.00 GiB loaded.*lora_rank") as caught:
        PLAN.fitted(free=2 * GIB, longest=64)
    assert not caught.value.retryable


def test_the_tightest_control_group_counts(tmp_path: Path) -> None:
    """Limit less use, plus cache that can be dropped; the root has no limit, the groups' are 5000 and 9000."""
    for folder, limit in ((tmp_path, "max"), (tmp_path / "a", "9000"), (tmp_path / "a/b", "5000")):
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("4000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 200\nactive_file 100\n")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/a/b\n")
    assert memory._control_groups(membership, tmp_path) == [1300, 5300]
    membership.write_text("5:memory:/a/b\n")  # version 1
    assert memory._control_groups(membership, tmp_path) == []


def raw_job(folder: Path, examples: Path, out: Path) -> dict[str, Any]:
    values = {"init": folder, "examples": examples, "out": out}
    return {name: str(path) for name, path in values.items()} | {
        "prefill": PREFILL,
        "epochs": 2,
        "tokens_per_batch": 200,
        "tokens_per_micro_batch": 200,
        "dtype": "float32",
        "threads": 1,
    }


RunWith = Callable[..., tuple[Path, str]]


@pytest.fixture
def run_with(
    tiny_folder: Path,
    examples_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> RunWith:
    """Trains with so much free memory, in bytes; the run's folder, and what was said."""

    def run(name: str, free: int, stop: Any = None, **settings: Any) -> tuple[Path, str]:
        monkeypatch.setattr(memory, "free_memory", lambda _device: free)
        job = job_from(SFTJob, raw_job(tiny_folder, examples_file, tmp_path / name) | settings)
        with suppress(Stopped):
            run_job(job, stop or Never())
        return tmp_path / name, capsys.readouterr().err

    return run


def losses_of(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def tokens_of(out: Path) -> int:
    found: int = json.loads((out / "manifest.json").read_text())["memory"]["tokens_per_micro_batch"]
    return found


LITTLE = 1_000_000  # bytes: enough for some of the tokens


def test_a_run_with_little_memory_comes_to_the_same(run_with: RunWith) -> None:
    much, _ = run_with("much", GIB)
    little, said = run_with("little", LITTLE)
    assert tokens_of(little) < tokens_of(much)
    assert losses_of(little) == pytest.approx(losses_of(much), rel=1e-4)
    assert "tokens at once instead of" in said
    assert "run again" not in said
    with pytest.raises(NoRoomError):
        run_with("none", 1000)


def test_where_the_longest_row_does_not_fit_layers_are_run_again(run_with: RunWith, tiny_folder: Path) -> None:
    """Of float32 weights masters, gradients and moments are 12 bytes each; beside them nothing is left."""
    much, _ = run_with("much", GIB)
    job = SFTJob(init=tiny_folder, out=Path(), examples=Path())
    tight = round(memory.trained_bytes(make_model(), job)[0] / 0.95) + 10
    again, said = run_with("again", tight)
    assert losses_of(again) == pytest.approx(losses_of(much), rel=1e-4)
    assert "layers are run again in the backward pass, without which the longest row does not fit" in said
    assert re.search(r"the longest row, \d+ tokens, may need 0.00 GiB more than there are: train fewer", said)


def test_a_row_that_did_not_fit_is_not_tried_again_as_it_was(run_with: RunWith) -> None:
    _, said = run_with("out", GIB, tokens_that_fit=5)
    assert "layers are run again" in said
    assert "may need" not in said


def test_layers_that_were_run_again_are_so_after_a_resume(run_with: RunWith, tmp_path: Path, tiny_folder: Path) -> None:
    """More tokens fit at once with it than without, so it decides about the packs."""
    fixed = memory.trained_bytes(make_model(), SFTJob(init=tiny_folder, out=Path(), examples=Path()))[0]
    for step in range(1, 16):  # what is just too little for the longest row as it is
        tight = round((fixed + 16_000 * step) / 0.95)
        out, said = run_with(f"parted-{step}", tight, StopAfter(tmp_path / f"parted-{step}", 3))
        if "may need" not in said:
            break
    assert "layers are run again" in said
    whole, _ = run_with("whole", tight)
    other = Path(shutil.copytree(out, tmp_path / "other"))
    for resumed, free in ((out, round(0.98 * tight)), (other, 1000 * tight)):
        run_with(resumed.name, free)
        assert losses_of(resumed) == losses_of(whole)
        assert tokens_of(resumed) == tokens_of(whole)


def test_the_value_models_layers_are_run_again_too(
    tiny_folder: Path, problems_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def noted(model: Any, stage: Any) -> None:
        real(model, stage)
        made.extend([model, stage.value_model.trunk])

    real = memory.run_again
    monkeypatch.setattr(memory, "run_again", noted)
    raw = {"init": str(tiny_folder), "problems": str(problems_file), "out": str(tmp_path / "ppo"), "prefill": PREFILL}
    raw |= {"steps": 1, "problems_per_step": 2, "max_tokens": 6, "tokens_that_fit": 5, "threads": 1}
    run_job(job_from(PPOJob, raw), Never())
    assert [memory.runs_again(model) for model in made] == [True, True]


def test_what_is_free_by_now_does_not_change_a_run_that_goes_on(run_with: RunWith, tmp_path: Path) -> None:
    """Other packs would round otherwise: a resumed run has the packs that it had."""
    whole, _ = run_with("whole", LITTLE)
    out, _ = run_with("parted", LITTLE, StopAfter(tmp_path / "parted", 3))
    assert len(losses_of(out)) == 3
    run_with("parted", GIB)
    assert losses_of(out) == losses_of(whole)
    assert tokens_of(out) == tokens_of(whole)


class StopAfter:
    """A stop request that comes once so many steps are written down."""

    def __init__(self, out: Path, steps: int) -> None:
        self.metrics, self.steps = out / "metrics.jsonl", steps

    @property
    def received(self) -> bool:
        return self.metrics.exists() and self.metrics.read_text().count("\n") >= self.steps


def test_an_example_longer_than_the_budget_is_refused_and_the_remedy_holds(
    tiny_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    """A question of 13 tokens with the prefill, `so so so 3.` and the end-of-turn token."""
    raw = raw_job(tiny_folder, examples_file, tmp_path / "out") | {"max_steps": 1}
    with pytest.raises(JobError) as caught:
        run_job(job_from(SFTJob, raw | {"tokens_per_micro_batch": 24}), Never())
    assert str(caught.value) == (
        "a row may have 25 tokens, and tokens_per_micro_batch = 24: raise it to 25 at least, or lower max_length = 512"
    )
    assert not (tmp_path / "out/metrics.jsonl").exists()
    for number, remedy in enumerate(({"tokens_per_micro_batch": 25}, {"tokens_per_micro_batch": 24, "max_length": 24})):
        out = tmp_path / f"remedy-{number}"
        run_job(job_from(SFTJob, raw | remedy | {"out": str(out)}), Never())
        assert (out / "manifest.json").exists()


def test_a_rollout_that_may_grow_longer_than_the_budget_is_refused(
    tiny_folder: Path, problems_file: Path, tmp_path: Path
) -> None:
    """A question of 13 tokens with the prefill, and 8 to be sampled: before the first one is."""
    paths = {"init": tiny_folder, "problems": problems_file, "out": tmp_path / "out"}
    raw = {name: str(path) for name, path in paths.items()}
    raw |= {"prefill": PREFILL, "dtype": "float32", "threads": 1, "max_tokens": 8, "tokens_per_micro_batch": 20}
    with pytest.raises(JobError) as caught:
        run_job(job_from(GRPOJob, raw), Never())
    assert str(caught.value) == (
        "a row may have 21 tokens, and tokens_per_micro_batch = 20: raise it to 21 at least, or lower max_tokens = 8"
    )
    assert not caught.value.retryable
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_a_real_process_comes_to_what_was_expected(examples_file: Path, tmp_path: Path) -> None:
    """Large enough that its 300 MB stand out beside what torch itself takes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(LETTERS + "".join(map(chr, range(0x4E00, 0x4E00 + 7900))))
    config = LlamaConfig(
        vocab_size=8000, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "init")
    tokenizer.save_pretrained(tmp_path / "init")
    raw = raw_job(tmp_path / "init", examples_file, tmp_path / "out") | {"dtype": "bfloat16", "stage": "sft"}
    (tmp_path / "job.json").write_text(json.dumps(raw))
    subprocess.run([sys.executable, "-m", "model.training", str(tmp_path / "job.json")], check=True)
    found = json.loads((tmp_path / "out/manifest.json").read_text())["memory"]
    grown, expected = (found[name] - found["loaded_bytes"] for name in ("peak_bytes", "expected_bytes"))
    assert expected > 250 * 2**20
    assert expected == pytest.approx(grown, rel=0.2)
