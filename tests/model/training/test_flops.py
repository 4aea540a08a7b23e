"""Model FLOPs of the tiny Llama, counted by hand, and the MFU of a step that is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.training.data import Row, collate
from model.training.documents import Documents
from model.training.flops import Meter, ModelFlops, known_peak, peak_flops
from model.training.job import Precision, SFTJob
from model.training.sft import sft_kernel
from model.training.step import MicroBatch, StepWork
from tests.model.training.tiny import ALONE, make_model

# Two layers of hidden size 32: q 32·32, k and v 32·16 each (two of four heads), o 32·32, three of 32·64 in the MLP, two
# norms of 32; one last norm; a vocabulary of 48.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32
TRUNK = 2 * LAYER + 32
HEAD = 48 * 32
ATTENTION = 12 * 2 * 4 * 8  # 12·L·H·Q
CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_takes_6_per_weight_and_attention_12_lhqt(tied: bool) -> None:
    """An embedding of its own is looked up: it costs nothing, tied or not."""
    flops = ModelFlops.of(make_model(tied=tied))
    assert (flops.token, flops.predicted, flops.attended) == (6 * TRUNK, 6 * HEAD, ATTENTION)
    # One document of 100 tokens, all of them predicted: PaLM's (6N + 12·L·H·Q·T)·T.
    assert flops.of_documents(Documents((100,), CPU), 100) == (6 * (TRUNK + HEAD) + ATTENTION * 100) * 100
    # Packed with another, each token sees its own document only.
    assert flops.of_documents(Documents((60, 40), CPU), 0) == 6 * TRUNK * 100 + ATTENTION * (60**2 + 40**2)
    # Tokens that two go on from are run once, and seen by both.
    forked = Documents((60, 25, 15), CPU, parents=(-1, 0, 0))
    assert flops.of_documents(forked, 0) == 6 * TRUNK * 100 + ATTENTION * (60**2 + 25 * 85 + 15 * 75)


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    model = make_model()
    for name, weight in model.named_parameters():
        weight.requires_grad_("mlp" not in name)
    assert ModelFlops.of(model).token == 6 * TRUNK - 2 * (2 * 3 * 32 * 64)


def job(peak: float = 0.0, dtype: Precision = Precision.BFLOAT16) -> SFTJob:
    return SFTJob(init=Path(), out=Path(), examples=Path(), peak_tflops=peak, dtype=dtype)


def test_mfu_of_a_step_by_hand() -> None:
    """Rows of 5 and 3 tokens run 4 and 2, of which 2 and 1 are predicted, twice; half a second at 1 MFLOP/s."""
    rows = [Row([5, 6, 7], [8, 9]), Row([5, 6], [7])]
    batch = collate(rows, [1.0, 1.0], ALONE.device)
    work = StepWork([MicroBatch(batch, sft_kernel(batch))], updates=2)
    flops = 2 * (6 * TRUNK * 6 + 6 * HEAD * 3 + ATTENTION * (4**2 + 2**2))
    meter = Meter(job(peak=1e-6), make_model(), ALONE)
    assert meter.measured(work, 0.5) == {"mfu": pytest.approx(flops / 0.5e6)}
    nothing = collate([], [], ALONE.device)
    assert meter.measured(StepWork([MicroBatch(nothing, sft_kernel(nothing))]), 0.5) == {"mfu": 0.0}


def test_without_a_peak_there_is_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Meter(job(), make_model(), ALONE).measured(StepWork([]), 1.0) == {}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    cuda = torch.device("cuda")
    assert peak_flops(job(), cuda) == 989e12
    assert peak_flops(job(dtype=Precision.FLOAT32), cuda) == 0
    assert peak_flops(job(peak=2.0, dtype=Precision.FLOAT32), cuda) == 2e12


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 0),
        ("NVIDIA H20", 0),
        ("NVIDIA H200 NVL", 0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 0),
        ("NVIDIA GeForce RTX 4090", 0),
    ],
)
def test_peaks_by_name(device: str, peak: float) -> None:
    assert known_peak(device) == peak
