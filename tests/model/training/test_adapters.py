"""LoRA: what an adapter's gradient is, that nothing but adapters moves, and that who reads the result needs none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.training import runner
from model.training.adapters import WithoutAdapters, adapters_off, add_adapters, merged
from model.training.checkpoint import save_model
from model.training.data import Row, collate
from model.training.documents import compile_layers
from model.training.forward import completion_log_probs
from model.training.job import JobError, Precision, SFTJob
from model.training.load import load_model
from model.training.manifest import identity
from model.training.optimizer import MasterAdamW
from model.training.process import Stopped
from tests.model.training.test_runner import Stop, read_losses, read_metrics, run
from tests.model.training.tiny import PREFILL, make_model, make_tokenizer
from tests.model.training.tiny_engine import install

MakeJob = Callable[..., dict[str, Any]]
RANK, ALPHA = 4, 8.0
SCALE = ALPHA / RANK
ROWS = [Row([2, 3, 4], [5, 6, 7]), Row([9, 8], [11, 4, 3, 2])]


@pytest.fixture
def make_job(tiny_folder: Path, examples_file: Path, problems_file: Path, tmp_path: Path) -> MakeJob:
    examples = {"examples": examples_file, "max_steps": 4, "tokens_per_batch": 100, "tokens_per_micro_batch": 60}
    rollouts = {"problems": problems_file, "steps": 3, "problems_per_step": 2, "group_size": 4, "max_tokens": 4}
    common = {"init": tiny_folder, "prefill": PREFILL, "learning_rate": 1e-2, "threads": 1, "checkpoint_every": 9}
    common |= {"lora_rank": RANK, "lora_alpha": ALPHA, "dtype": "float32"}

    def make(stage: str = "sft", out: str = "out", **settings: Any) -> dict[str, Any]:
        specific = examples if stage == "sft" else rollouts
        job = {"stage": stage, "out": tmp_path / out, **common, **specific, **settings}
        return {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}

    return make


def settings(**values: Any) -> SFTJob:
    return SFTJob(init=Path("base"), out=Path("out"), examples=Path("e"), lora_alpha=ALPHA, **values)


def adapted(seed: int = 0, **values: Any) -> Any:
    """A tiny model whose adapters have left 0, as after some training."""
    model = add_adapters(make_model(seed), settings(**{"lora_rank": RANK} | values))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def log_probs(model: Any) -> torch.Tensor:
    return completion_log_probs(model, collate(ROWS, [1.0, 1.0], torch.device("cpu")), 1.0)


def test_an_adapters_gradient_is_that_of_the_paper() -> None:
    """y = W x + s·B A x: ∂L/∂B = s·(∂L/∂W) Aᵀ and ∂L/∂A = s·Bᵀ (∂L/∂W), ∂L/∂W at the merged weight, by hand."""
    model = adapted()
    layer = model.model.layers[1].mlp.down_proj
    a_RI, b_OR, w_OI = layer.lora_A.default.weight, layer.lora_B.default.weight, layer.base_layer.weight
    x_TI = torch.randn(5, w_OI.shape[1], generator=torch.Generator().manual_seed(2))
    (layer(x_TI) ** 2).sum().backward()
    y_TO = x_TI @ (w_OI + SCALE * b_OR @ a_RI).T
    by_w_OI = 2 * y_TO.T @ x_TI
    torch.testing.assert_close(b_OR.grad, SCALE * by_w_OI @ a_RI.T)
    torch.testing.assert_close(a_RI.grad, SCALE * b_OR.T @ by_w_OI)
    assert w_OI.grad is None


def test_only_adapters_of_the_trunks_linear_layers_are_trained() -> None:
    model = adapted()
    optimizer = MasterAdamW(model, 0.0)
    linear = 7 * model.config.num_hidden_layers  # q, k, v, o, gate, up, down
    assert len(optimizer.names) == 2 * linear
    assert all(".lora_A." in name or ".lora_B." in name for name in optimizer.names)
    assert optimizer.head(model).gradient_VH is None


def test_targets_are_chosen_by_name_and_what_is_no_target_is_refused() -> None:
    names = MasterAdamW(adapted(lora_targets=("q_proj", "v_proj")), 0.0).names
    assert {name.split(".")[4] for name in names} == {"q_proj", "v_proj"}
    with pytest.raises(JobError, match=r"no linear layer \['lm_head'\]; it has down_proj, .*, v_proj"):
        add_adapters(make_model(), settings(lora_rank=2, lora_targets=("lm_head", "q_proj")))
    with pytest.raises(JobError, match="lora_rank = -1 must not be negative"):
        settings(lora_rank=-1)


def test_without_peft_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert add_adapters(make_model(), settings()) is not None
    with pytest.raises(JobError, match="lora_rank needs the package peft: `pip install peft`"):
        add_adapters(make_model(), settings(lora_rank=2))


def test_the_written_model_is_the_adapted_one_and_the_trained_weights_stay_apart(tmp_path: Path) -> None:
    model = adapted()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_model(tmp_path / "whole", model, make_tokenizer(), None)
    written, _ = load_model(tmp_path / "whole", Precision.FLOAT32, torch.device("cpu"))
    torch.testing.assert_close(log_probs(written), log_probs(model), atol=1e-5, rtol=0)
    assert (log_probs(written) - log_probs(make_model())).abs().max() > 0.05
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_merged_changes_have_the_adapters_rank_and_touch_nothing_else() -> None:
    model, base = adapted(), make_model().state_dict()
    whole = merged(model, model.state_dict())
    assert whole.keys() == base.keys()
    for name, weight in whole.items():
        change = weight - base[name]
        if name.endswith("_proj.weight"):
            assert torch.linalg.matrix_rank(change, atol=1e-5) == RANK
        else:
            assert torch.equal(weight, base[name])


def test_with_its_adapters_off_the_model_is_the_base_to_the_bit() -> None:
    model, base = adapted(), make_model()
    on = log_probs(model)
    assert torch.equal(log_probs(WithoutAdapters(model)), log_probs(base))
    assert (on - log_probs(base)).abs().max() > 0.05
    with pytest.raises(RuntimeError, match="in the block"), adapters_off(model):
        raise RuntimeError("in the block")
    assert torch.equal(log_probs(model), on)
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in model.named_parameters())


def test_a_run_begins_at_the_base_leaves_it_and_writes_what_others_read(make_job: MakeJob, tiny_folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain, out = run(make_job(out="plain", lora_rank=0)), run(make_job())
    losses = [loss for _, loss in read_losses(out / "metrics.jsonl")]
    assert losses[0] == read_losses(plain / "metrics.jsonl")[0][1]
    assert losses[-1] < losses[0] - 0.1
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with_adapter = PeftModel.from_pretrained(base, out / "adapter").eval()
    alone = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    tokens = torch.arange(2, 40)[None]
    torch.testing.assert_close(alone(tokens).logits, with_adapter(tokens).logits, atol=1e-5, rtol=0)
    begun = load_file(tiny_folder / "model.safetensors")
    for name, weight in load_file(out / "model/model.safetensors").items():
        assert torch.equal(weight, begun[name]) == (not name.endswith("_proj.weight")), name
    assert "peft" in json.loads((out / "manifest.json").read_text())["versions"]


def test_layers_that_are_run_again_change_no_bit(make_job: MakeJob) -> None:
    plain, again = run(make_job(out="plain")), run(make_job(out="again", activation_checkpointing=True))
    assert read_metrics(again / "metrics.jsonl") == read_metrics(plain / "metrics.jsonl")


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(make_job: MakeJob, stage: str) -> None:
    dtype = "bfloat16"
    whole = run(make_job(stage, "whole", dtype=dtype))
    parted = make_job(stage, "parted", dtype=dtype)
    with pytest.raises(Stopped, match="after step 2"):
        run(parted, Stop(Path(parted["out"]) / "metrics.jsonl", after=2))
    again = run(parted)
    assert read_metrics(again / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl")
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (again / file).read_bytes() == (whole / file).read_bytes()


def test_compiled_layers_with_adapters_that_run_again_in_the_backward_pass(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the compiler's front end, which is all of it that a CPU's test can wait for."""
    plain = run(make_job("sft", "plain", activation_checkpointing=True))

    def load_and_compile(*given: Any, **more: Any) -> tuple[Any, Any]:
        model, tokenizer = load_model(*given, **more)
        compile_layers(model, "aot_eager")
        return model, tokenizer

    monkeypatch.setattr(runner, "load_model", load_and_compile)
    ours = run(make_job("sft", "compiled", activation_checkpointing=True))
    one, two = (read_metrics(out / "metrics.jsonl") for out in (plain, ours))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-5)
    assert [line["grad_norm"] for line in two] == pytest.approx([line["grad_norm"] for line in one], rel=1e-4)


def test_the_policys_reference_is_itself_without_adapters(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """KL is 0 while B is 0; no second model is read."""
    loads = []
    monkeypatch.setattr(runner, "load_model", lambda *given, **more: loads.append(given) or load_model(*given, **more))
    out = run(make_job("grpo", kl_weight=0.1, steps=1))
    assert [line["kl"] for line in read_metrics(out / "metrics.jsonl")] == [0]
    assert len(loads) == 1


def test_an_engine_is_given_the_merged_weights(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny engine loads the folder as vLLM would; the probe after each load is the trainer's own."""
    install(monkeypatch)
    out = run(make_job("grpo", rollouts="vllm", learning_rate=0.1, schedule="constant"))
    assert all(line["sync_gap"] < 1e-4 for line in read_metrics(out / "metrics.jsonl"))
    assert len(read_losses(out / "metrics.jsonl")) == 3


def test_a_job_without_adapters_is_the_job_that_it_was(tiny_folder: Path, examples_file: Path) -> None:
    """Folders of students trained before there were adapters stay theirs."""
    files = {"init": tiny_folder, "out": Path("out"), "examples": examples_file}
    plain, other = SFTJob(**files), SFTJob(**files, lora_alpha=7.0)
    assert not {name for name in identity(plain) if name.startswith("lora")}
    assert identity(plain) == identity(other)
    assert identity(SFTJob(**files, lora_rank=2)) != identity(SFTJob(**files, lora_rank=2, lora_alpha=7.0))
