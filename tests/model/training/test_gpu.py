"""What runs only on a GPU: flash attention by document, the head's fused kernels, compiled layers, whole jobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.losses.head import Kernel, Part, head_gradients, table_width
from model.losses.kl import Divergence, divergence, divergence_part
from model.losses.log_probs import log_prob_part, token_log_probs
from model.losses.sft import sft_loss, sft_part
from model.losses.top_k import top_k_divergence, top_k_part
from model.training import documents as documents_module
from model.training.documents import Documents, attend_by_document, compile_layers
from model.training.job import JOBS, job_from
from model.training.process import Stopped
from model.training.runner import run_job
from tests.model.training.alike import JOBS_OF_ALL, alone, assert_trained_alike, make_job, write_inputs
from tests.model.training.pair import train_in_two
from tests.model.training.tiny import PREFILL, Never, save_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

CUDA = torch.device("cuda")
SHAPE = {
    "vocab_size": 100,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}
LENGTHS = (9, 300, 6, 17, 1, 40, 41)
PARENTS = (-1, -1, 0, 2, 2, 0, 1)


def make(family: str, dtype: torch.dtype) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().to(CUDA, dtype)
    attend_by_document(model)
    return model


def hidden(model: Any, documents: Documents, **arguments: Any) -> Tensor:
    tokens_T = torch.randint(0, 100, (documents.total,), generator=torch.Generator().manual_seed(1)).to(CUDA)
    given = {"input_ids": tokens_T[None], "use_cache": False} | documents.forward_arguments()
    found: Tensor = model.base_model(**given | arguments).last_hidden_state[0]
    return found


def gradients(model: Any, documents: Documents) -> tuple[Tensor, dict[str, Tensor]]:
    """The last hidden states, and the gradients of a fixed linear function of them."""
    model.zero_grad()
    found = hidden(model, documents)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).to(CUDA)
    (found.float() * weights).sum().backward()  # type: ignore[no-untyped-call]
    return found, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def error(found: Tensor, expected: Tensor) -> float:
    """Relative to the norm."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("parents", [(), PARENTS])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("compiled", [False, True])
def test_flash_attention_by_document_is_float32s_in_value_and_gradient(
    family: str, parents: tuple[int, ...], compiled: bool
) -> None:
    """The float32 model attends side by side, whose equality to documents run alone the CPU's tests show."""
    documents = Documents(LENGTHS, CUDA, parents=parents)
    wide, model = make(family, torch.float32), make(family, torch.bfloat16)
    if compiled:
        compile_layers(model)
    expected, slopes = gradients(wide, documents)
    found, narrow = gradients(model, documents)
    assert error(found, expected) < 0.02
    assert narrow.keys() == slopes.keys()
    for name, slope in slopes.items():
        if slope.norm() > 1e-3:  # a bias of keys has none, but for rounding
            assert error(narrow[name], slope) < 0.04, name


def test_long_documents_that_are_taken_alone_are_what_they_are_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = (4608, 30, 4200, 17, 9)  # one of the lengths to which others are rounded up, and another
    assert [run.lengths for run in Documents(lengths, CUDA).runs] == [(4608,), (30,), (4200,), (17, 9)]
    model = make("Qwen3", torch.bfloat16)
    found, slopes = gradients(model, Documents(lengths, CUDA))
    monkeypatch.setattr(documents_module, "_ALONE", 10_000)
    expected, others = gradients(model, Documents(lengths, CUDA))
    assert error(found, expected) < 0.01
    assert all(error(slopes[name], others[name]) < 0.02 for name in others)


def test_no_document_feels_another_bit_for_bit() -> None:
    model = make("Qwen3", torch.bfloat16)
    documents = Documents(LENGTHS, CUDA)
    tokens_T = torch.arange(documents.total, device=CUDA) % 90
    changed_T = torch.cat([tokens_T[:9] + 1, tokens_T[9:]])
    one, other = (hidden(model, documents, input_ids=each[None]) for each in (tokens_T, changed_T))
    assert not torch.equal(one[:9], other[:9])
    assert torch.equal(one[9:], other[9:])


def test_a_prefix_that_all_documents_see() -> None:
    model = make("Llama", torch.bfloat16)
    tokens_T = torch.arange(sum(LENGTHS), device=CUDA) % 90
    whole = [torch.cat([tokens_T[:9], row]) for row in tokens_T.split(LENGTHS)]
    alone = Documents(tuple(map(len, whole)), CUDA)
    expected = hidden(model, alone, input_ids=torch.cat(whole)[None]).split(alone.lengths)
    first = Documents((9,), CUDA)
    cache = model.base_model(input_ids=tokens_T[None, :9], use_cache=True, **first.forward_arguments()).past_key_values
    documents = Documents(LENGTHS, CUDA, prefix=9)
    found = hidden(model, documents, input_ids=tokens_T[None], use_cache=True, past_key_values=cache)
    assert error(found, torch.cat([row[9:] for row in expected])) < 0.01


# --- the head -------------------------------------------------------------------------------------------------------

TOKENS, SIZE, VOCABULARY, STORED = 300, 128, 5_000, 16


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).bfloat16().to(CUDA)

    own, theirs = drawn(TOKENS, SIZE), drawn(TOKENS, SIZE)
    head, teacher = (drawn(VOCABULARY, SIZE, scale=3 / SIZE**0.5) for _ in range(2))
    log_probs, ids = (theirs @ teacher.T).float().log_softmax(-1).topk(STORED)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator).to(CUDA)
    weights = torch.rand(TOKENS, generator=generator).to(CUDA) / TOKENS
    return {"own": own, "head": head, "theirs": theirs, "teacher": teacher, "targets": targets, "weights": weights} | {
        "ids": ids,
        "log_probs": log_probs,
    }


def parts(given: dict[str, Tensor]) -> dict[str, tuple[Kernel, Callable[[Tensor], Tensor]]]:
    """By loss: the kernel, and the definition on all logits in float64."""
    targets, weights = given["targets"], given["weights"]
    teacher_NV = given["theirs"].double() @ given["teacher"].double().T

    def policy(log_probs: Tensor, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return (weights[rows] * log_probs.exp()).sum(), {}

    def kl(kind: Divergence, temperature: float) -> tuple[Kernel, Callable[[Tensor], Tensor]]:
        def part(logits: Tensor, rows: slice) -> Part:
            there = teacher_NV[rows].float()
            return divergence_part(logits, there, weights[rows], kind, targets[rows], beta=0.3, temperature=temperature)

        def defined(logits: Tensor) -> Tensor:
            each = divergence(logits, teacher_NV, kind, beta=0.3, temperature=temperature)
            return (weights * each).sum()

        return Kernel(part, precise=True), defined

    found = {
        "sft": (
            Kernel(lambda logits, rows: sft_part(logits, targets[rows], weights[rows])),
            lambda logits: sft_loss(logits, targets, weights),
        ),
        "policy": (
            Kernel(
                lambda logits, rows: log_prob_part(
                    logits, targets[rows], lambda each: policy(each, rows), 0.7, entropy=True
                )
            ),
            lambda logits: (weights * token_log_probs(logits, targets, 0.7).exp()).sum(),
        ),
        "top_k": (
            Kernel(
                lambda logits, rows: top_k_part(logits, given["ids"][rows], given["log_probs"][rows], weights[rows]),
                precise=True,
            ),
            lambda logits: (weights * top_k_divergence(logits, given["ids"], given["log_probs"])).sum(),
        ),
    }
    kinds = (Divergence.FORWARD, Divergence.REVERSE, Divergence.JSD)
    return found | {f"{kind}, τ = {t}": kl(kind, t) for kind in kinds for t in (1.0, 2.0)}


KLS = [f"{kind}, τ = {t}" for kind in ("forward", "reverse", "jsd") for t in (1.0, 2.0)]


@pytest.mark.parametrize("loss", ["sft", "policy", "top_k", *KLS])
def test_the_heads_gradients_are_float64s(loss: str) -> None:
    given = inputs()
    kernel, defined = parts(given)[loss]
    found = head_gradients(given["own"], given["head"], kernel, rows=128)  # the last chunk is a smaller one
    own, head = given["own"].double().requires_grad_(), given["head"].double().requires_grad_()
    value = defined(own @ head.T)
    by_own, by_head = torch.autograd.grad(value, (own, head))
    assert found.loss == pytest.approx(value.item(), rel=1e-4 if kernel.precise else 0.05)
    assert found.weight_VH is not None
    assert found.weight_VH.dtype == torch.float32
    bound = 0.004 if kernel.precise else 0.03  # logits rounded to bfloat16, and divided by τ = 0.7
    assert error(found.hidden_NH, by_own) < bound
    assert error(found.weight_VH, by_head) < bound


def test_a_vocabulary_of_an_odd_size() -> None:
    """Its logits lie in a wider table, whose other columns get no gradient."""
    given, known = inputs(), 4_901
    assert table_width(given["head"], known) == 4_928
    teacher_NV, weights = given["theirs"].double() @ given["teacher"][:known].double().T, given["weights"]

    def part(logits: Tensor, rows: slice) -> Part:
        assert logits.shape[-1] == known
        there, targets = teacher_NV[rows].float(), given["targets"][rows].clamp(max=known - 1)
        return divergence_part(logits, there, weights[rows], Divergence.FORWARD, targets)

    found = head_gradients(given["own"], given["head"], Kernel(part, precise=True, vocabulary=known), rows=128)
    own, head = given["own"].double().requires_grad_(), given["head"].double().requires_grad_()
    value = (weights * divergence(own @ head[:known].T, teacher_NV, Divergence.FORWARD)).sum()
    by_own, by_head = torch.autograd.grad(value, (own, head))
    assert found.weight_VH is not None
    assert error(found.hidden_NH, by_own) < 0.004
    assert error(found.weight_VH, by_head) < 0.004
    assert found.weight_VH[known:].abs().max().item() == 0.0


def test_a_sure_and_right_prediction_keeps_its_small_gradient() -> None:
    """1 − π is lost where π is rounded to bfloat16 before it is taken off."""
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16, device=CUDA)
    logits[0, 7] = 14.0
    target, weight = torch.tensor([7], device=CUDA), torch.ones(1, device=CUDA)
    exact = 1 - logits.double().softmax(-1)[0, 7].item()
    part = sft_part(logits, target, weight)
    assert part.gradient_CV[0, 7].item() == pytest.approx(-exact, rel=0.01)


def test_entropy_is_the_definitions() -> None:
    logits = (3 * torch.randn(40, 3000, generator=torch.Generator().manual_seed(0))).to(CUDA)
    exact = torch.distributions.Categorical(logits=logits.double()).entropy().sum()
    targets = torch.zeros(40, dtype=torch.int64, device=CUDA)
    part = log_prob_part(logits.clone(), targets, lambda each: (each.sum(), {}), entropy=True)
    assert part.sums["entropy"].item() == pytest.approx(exact.item(), rel=1e-5)


# --- whole jobs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_long(tiny_folder: Path, examples_file: Path, tmp_path: Path) -> Callable[..., Any]:
    common = {"init": tiny_folder, "prefill": PREFILL, "learning_rate": 3e-3, "checkpoint_every": 3}
    examples = {"examples": examples_file, "epochs": 6, "tokens_per_batch": 100, "tokens_per_micro_batch": 60}
    teacher = save_tiny(tmp_path / "teacher", seed=2)
    specific = {"sft": examples, "distill": examples | {"teacher": teacher}}

    def make(stage: str, out: str, **settings: Any) -> Any:
        raw = {"out": tmp_path / out, **common, **specific[stage], **settings}
        return job_from(JOBS[stage], {n: str(v) if isinstance(v, Path) else v for n, v in raw.items()})

    return make


@pytest.fixture
def exact() -> Iterator[None]:
    """Sums in one order, on a GPU too."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class After:
    """Asks for a stop when so many lines of metrics are there."""

    def __init__(self, out: Path, count: int) -> None:
        self.metrics, self.count = out / "metrics.jsonl", count

    @property
    def received(self) -> bool:
        return self.metrics.exists() and len(self.metrics.read_text().splitlines()) >= self.count


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["sft", "distill"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("exact")
def test_a_stopped_job_goes_on_to_the_same_losses(make_long: Callable[..., Any], stage: str, compiled: bool) -> None:
    whole = make_long(stage, "whole", compile=compiled)
    run_job(whole, Never())
    parted = make_long(stage, "parted", compile=compiled)
    with pytest.raises(Stopped, match="after step 4"):
        run_job(parted, After(parted.out, 4))
    run_job(parted, Never())
    assert losses(parted.out) == pytest.approx(losses(whole.out), rel=1e-2, abs=5e-4)
    assert losses(whole.out)[-1] < losses(whole.out)[0]
    memory = json.loads((whole.out / "manifest.json").read_text())["memory"]
    assert memory["peak_bytes"] > 0


def test_a_compiled_job_learns_what_the_other_does(make_long: Callable[..., Any]) -> None:
    from torch._dynamo.utils import counters

    run_job(make_long("sft", "compiled-False"), Never())
    before = counters["stats"]["unique_graphs"]
    run_job(make_long("sft", "compiled-True", compile=True), Never())
    assert counters["stats"]["unique_graphs"] > before
    plain, ours = (losses(make_long("sft", f"compiled-{c}").out) for c in (False, True))
    assert ours == pytest.approx(plain, rel=0.05)


# --- every stage ----------------------------------------------------------------------------------------------------

# One GPU has no room for an engine that samples while the trainer trains (tests/model/training/test_gpu_vllm.py).
ON_GPUS = {name: job | ({"rollouts_ahead": 0} if "rollouts_ahead" in job else {}) for name, job in JOBS_OF_ALL.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("on-gpus"))


@pytest.fixture(scope="module")
def in_two(folder: Path) -> dict[str, Path]:
    """Every job by two processes (FSDP2 over NCCL), on two GPUs or on one that both share; their folders."""
    jobs = {name: make_job(folder, settings, f"two/{name}") for name, settings in ON_GPUS.items()}
    train_in_two(list(jobs.values()), on_gpus=True)
    return {name: job["out"] for name, job in jobs.items()}


@pytest.mark.parametrize("name", [name for name in ON_GPUS if "bfloat16" not in name])
def test_a_gpu_trains_as_a_cpu_does(name: str, folder: Path) -> None:
    """In float32: the same rollouts, rewards, losses, gradients, answers and weights."""
    on_gpu, on_cpu = make_job(folder, ON_GPUS[name], f"one/{name}"), make_job(folder, ON_GPUS[name], f"cpu/{name}")
    assert_trained_alike(name, alone(on_gpu, CUDA), alone(on_cpu))


@pytest.mark.parametrize("name", ON_GPUS)
def test_two_processes_train_on_gpus_as_one_does(name: str, folder: Path, in_two: dict[str, Path]) -> None:
    assert_trained_alike(name, in_two[name], alone(make_job(folder, ON_GPUS[name], f"one/{name}"), CUDA))
