"""What do head and loss cost, in time, memory and error, beside TRL's kernels and plain torch?

One head (the demo student's: hidden size 576, vocabulary 49,152) in bfloat16, on `--tokens` positions of which half
count, as where prompts are masked. From the trunk's output to the gradients of hidden states and head, the same inputs
for every way, each in a process of its own; ways of one loss take turns, and the best of the rounds counts. The losses:
  cross_entropy   ours, TRL's kernel as its trainer calls it on this device (on a CPU: on all positions), TRL's kernel
                  on the positions that count, plain torch
  forward, reverse, jsd   KL to a live teacher of the same shape: ours, TRL's kernel on the positions that count, plain
  top_k           KL to 64 stored log-probabilities with a tail bucket: ours, plain torch, and TRL's forward kernel,
                  which serves the same purpose with the teacher's whole head
On a GPU Liger's kernels too (of the mean over tokens, summed in float32), where `--liger` names them.
`seconds`: the best round; `cpu_seconds`: processor time of its threads, which other work disturbs less. `peak_mib`:
what the resident memory grew by at its highest, inputs not counted, gradients counted. `error`: of the worse of both
gradients against float64 on the same bfloat16 inputs, relative to its norm.
On a GPU, where there is one, all ways run in one process, `seconds` is the median of several calls (compiling is not
among them), memory is the device's, and another file is wanted (`--out`). Not measured: the trunk.

    python -m benchmarks.head_losses --trl FOLDER     (FOLDER: TRL's wheel unpacked)
    python -m benchmarks.head_losses --trl FOLDER --liger FOLDER --tokens 8192 --hidden 1024 --vocabulary 151936 \
        --out gpu.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.machine import describe, unpacked_version
from model.losses.head import Kernel, Part, head_gradients, project
from model.losses.kl import Divergence, divergence, divergence_part
from model.losses.sft import sft_part
from model.losses.top_k import top_k_divergence, top_k_part

STORED = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOSSES = ("cross_entropy", "forward", "reverse", "jsd", "top_k")
WAYS = ("ours", "trl", "trl, compacted", "liger", "torch")
CALLS = 7  # on a GPU
BETAS = {"forward": 0.0, "reverse": 1.0, "jsd": 0.5, "top_k": 0.0}  # as TRL counts


@dataclass(frozen=True)
class Inputs:
    """All positions; `counts` says which of them do."""

    hidden: Tensor  # [T, H]
    head: Tensor  # [V, H]
    teacher_hidden: Tensor
    teacher_head: Tensor
    targets: Tensor  # [T]
    counts: Tensor  # bool, [T]
    ids: Tensor  # [N, K]: of the positions that count
    log_probs: Tensor  # [N, K]

    @property
    def weights(self) -> Tensor:
        """Of the positions that count: a mean."""
        tokens = int(self.counts.sum())
        wide = torch.promote_types(self.hidden.dtype, torch.float32)
        return torch.full((tokens,), 1 / tokens, dtype=wide, device=self.hidden.device)


Gradients = tuple[Tensor, Tensor]  # of the hidden states that count, and of the head
Way = Callable[[Inputs], Gradients]


def make_inputs(tokens: int, hidden_size: int, vocabulary: int) -> Inputs:
    """Logits of a standard deviation of about 3, as models have them."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def drawn(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, device=DEVICE)).bfloat16()

    hidden, teacher_hidden = drawn(tokens, hidden_size), drawn(tokens, hidden_size)
    head, teacher_head = (drawn(vocabulary, hidden_size, scale=3 / hidden_size**0.5) for _ in range(2))
    counts = torch.arange(tokens, device=DEVICE) % 2 == 1
    stored, ids = (teacher_hidden[counts] @ teacher_head.T).float().log_softmax(-1).topk(STORED)
    targets = torch.randint(vocabulary, (tokens,), generator=generator, device=DEVICE)
    return Inputs(hidden, head, teacher_hidden, teacher_head, targets, counts, ids, stored)


# --- the ways -----------------------------------------------------------------------------------------------------


def ours(loss: str) -> Way:
    """`head_gradients` with the loss's kernel."""

    def gradients(given: Inputs) -> Gradients:
        hidden, teacher_hidden = given.hidden[given.counts], given.teacher_hidden[given.counts]
        targets, weights = given.targets[given.counts], given.weights

        def part(logits: Tensor, rows: slice) -> Part:
            if loss == "cross_entropy":
                return sft_part(logits, targets[rows], weights[rows])
            if loss == "top_k":
                return top_k_part(logits, given.ids[rows], given.log_probs[rows], weights[rows])
            teacher = project(teacher_hidden[rows], given.teacher_head, precise=True)
            return divergence_part(logits, teacher, weights[rows], Divergence(loss), targets[rows])

        found = head_gradients(hidden, given.head, Kernel(part, precise=loss != "cross_entropy"))
        assert found.weight_VH is not None, "the head learns too"
        return found.hidden_NH, found.weight_VH

    return gradients


def plain(loss: str) -> Way:
    """All logits at once and autograd: also the definition, in whatever type the inputs have."""

    def gradients(given: Inputs) -> Gradients:
        hidden, head = given.hidden[given.counts].requires_grad_(), given.head.detach().requires_grad_()
        logits, targets = hidden @ head.T, given.targets[given.counts]
        if loss == "cross_entropy":
            each = torch.nn.functional.cross_entropy(logits.to(given.weights.dtype), targets, reduction="none")
        elif loss == "top_k":
            each = top_k_divergence(logits, given.ids, given.log_probs)
        else:
            teacher = given.teacher_hidden[given.counts] @ given.teacher_head.T
            each = divergence(logits, teacher, Divergence(loss))
        by_hidden, by_head = torch.autograd.grad((given.weights * each).sum(), (hidden, head))
        return by_hidden, by_head

    return gradients


def trl(loss: str, *, compacted: bool) -> Way:
    """TRL's autograd functions."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # type: ignore[import-not-found]
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction  # type: ignore[import-not-found]
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE  # type: ignore[import-not-found]

    def gradients(given: Inputs) -> Gradients:
        hidden, head = given.hidden.detach().requires_grad_(), given.head.detach().requires_grad_()
        chosen = given.counts if compacted else torch.ones_like(given.counts)
        if loss == "cross_entropy":
            each = -ChunkedLogProbFunction.apply(
                hidden[chosen], head, None, given.targets[chosen], 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ()
            )[0]
        else:
            each = ChunkedDivergenceFunction.apply(
                hidden[chosen], head, None, given.teacher_hidden[chosen], given.teacher_head, None, BETAS[loss]
            )[0]
        kept = each if compacted else each.masked_fill(~given.counts, 0.0)
        by_hidden, by_head = torch.autograd.grad(kept.sum() / given.counts.sum(), (hidden, head))
        return by_hidden[given.counts], by_head

    return gradients


def liger(loss: str) -> Way:
    """Liger's fused losses, on the positions that count; for stored tokens its JSD kernel with the whole head."""
    from liger_kernel.transformers import (  # type: ignore[import-not-found]
        LigerFusedLinearCrossEntropyLoss,
        LigerFusedLinearJSD,
    )

    def gradients(given: Inputs) -> Gradients:
        hidden, head = given.hidden[given.counts].requires_grad_(), given.head.detach().requires_grad_()
        if loss == "cross_entropy":
            mean = LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)(
                head, hidden, given.targets[given.counts]
            )
        else:
            divergence_of = LigerFusedLinearJSD(jsd_beta=BETAS[loss], accum_dtype=torch.float32)
            mean = divergence_of(hidden, head, given.teacher_hidden[given.counts], given.teacher_head, None)
        by_hidden, by_head = torch.autograd.grad(mean, (hidden, head))
        return by_hidden, by_head

    return gradients


def way_of(loss: str, name: str) -> Way:
    """The function of that name."""
    if name == "ours":
        return ours(loss)
    if name == "liger":
        return liger(loss)
    return plain(loss) if name == "torch" else trl(loss, compacted=name != "trl")


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(loss: str, name: str, shape: Sequence[int]) -> dict[str, float]:
    """In this process: one round to warm up, one for memory, two for time; the error last."""
    given, way = make_inputs(*shape), way_of(loss, name)
    way(make_inputs(8, *shape[1:]))
    before = _peak_memory()
    found = way(given)
    peak = _peak_memory(again=False) - before
    walls, processor = [], []
    for _ in range(2):
        started, spent = time.perf_counter(), time.process_time()
        way(given)
        _finish()
        walls.append(time.perf_counter() - started)
        processor.append(time.process_time() - spent)
    figures = {"seconds": min(walls), "cpu_seconds": min(processor), "peak_mib": peak / 1024}
    is_same_loss = not (loss == "top_k" and name.startswith("trl"))
    return figures | ({"error": _error(found, plain(loss)(_as_float64(given)))} if is_same_loss else {})


def measure_on_gpu(loss: str, name: str, given: Inputs, exact: Gradients) -> dict[str, float]:
    """In this process: two calls to warm up, one for memory, some for time."""
    way = way_of(loss, name)
    for _ in range(2):
        way(given)
    before = _peak_memory()
    found = way(given)
    figures = {"peak_mib": (_peak_memory(again=False) - before) / 1024}
    if not (loss == "top_k" and name in ("trl, compacted", "liger")):
        figures["error"] = _error(found, exact)
    del found
    walls = []
    for _ in range(CALLS):
        _finish()
        started = time.perf_counter()
        way(given)
        _finish()
        walls.append(time.perf_counter() - started)
    return {"seconds": median(walls), **figures}


def _exact(loss: str, given: Inputs) -> Gradients:
    """Ours in float64, as it is written: on a CPU it is compared with the definition, whose tables do not fit here."""
    with torch.compiler.set_stance("force_eager"):
        return ours(loss)(_as_float64(given))


def _peak_memory(*, again: bool = True) -> float:
    """KiB: the highest so far; `again`: what is used now, from which the mark then starts anew."""
    _finish()
    if DEVICE.type == "cuda":
        if again:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1024
    if again:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS" if again else "VmHWM"))


def _finish() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _as_float64(given: Inputs) -> Inputs:
    names = ("hidden", "head", "teacher_hidden", "teacher_head", "log_probs")
    return replace(given, **{name: getattr(given, name).double() for name in names})


def _error(found: Gradients, exact: Gradients) -> float:
    """The larger one of the two gradients' relative errors."""
    pairs = zip(found, exact, strict=True)
    return max(float((one.double() - right.double()).norm() / right.double().norm()) for one, right in pairs)


def main() -> None:
    arguments = _arguments()
    sys.path += [str(folder) for folder in (arguments.trl, arguments.liger) if folder]
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        loss, name = arguments.one
        print(json.dumps(measure(loss, name, (arguments.tokens, arguments.hidden, arguments.vocabulary))))
        return
    rounds = _gpu_rounds if DEVICE.type == "cuda" else _rounds
    figures = {loss: rounds(loss, arguments) for loss in LOSSES}
    result = {
        "ratios": {loss: _ratios(ways) for loss, ways in figures.items()},
        "losses": figures,
        "shape": {"positions": arguments.tokens, "counting": arguments.tokens // 2, **_size(arguments)},
        "stored": STORED,
        "threads": arguments.threads,
        "peers": {
            "trl": unpacked_version(arguments.trl, "trl"),
            "liger": unpacked_version(arguments.liger, "liger_kernel"),
        },
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "machine": describe(["torch"]),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["ratios"], indent=1))


def _size(arguments: argparse.Namespace) -> dict[str, int]:
    return {"H": arguments.hidden, "V": arguments.vocabulary}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="positions, half of which count")
    parser.add_argument("--hidden", type=int, default=576, help="hidden size; the default is the demo student's")
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl", type=Path, help="folder that TRL's wheel was unpacked to; left out without it")
    parser.add_argument("--liger", type=Path, help="folder of Liger's, for a GPU")
    parser.add_argument("--one", nargs=2, metavar=("LOSS", "WAY"), help="what the other processes are started with")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def _names(loss: str, arguments: argparse.Namespace) -> list[str]:
    """The ways that can be measured here."""
    on_gpu = DEVICE.type == "cuda"
    left_out = {"trl", "trl, compacted"} if not arguments.trl else set()
    left_out |= {"trl"} if on_gpu or loss != "cross_entropy" else set()  # its trainer compacts by itself there
    left_out |= set() if on_gpu and arguments.liger else {"liger"}
    return [name for name in WAYS if name not in left_out]


def _gpu_rounds(loss: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By way that fits: the median time, the memory, the error."""
    given = make_inputs(arguments.tokens, arguments.hidden, arguments.vocabulary)
    exact, found = _exact(loss, given), dict[str, dict[str, float]]()
    for name in _names(loss, arguments):
        try:
            found[name] = measure_on_gpu(loss, name, given, exact)
            print(loss, name, found[name], flush=True)
        except torch.OutOfMemoryError:
            print(loss, name, "does not fit", flush=True)
        torch.cuda.empty_cache()
    return found


def _rounds(loss: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By way: the best time, the highest memory, the error."""
    names = _names(loss, arguments)
    best: dict[str, dict[str, float]] = {}
    for _ in range(arguments.rounds):
        for name in names:
            now = _in_a_process(loss, name, arguments)
            before = best.get(name, now)
            least = {key: round(min(now[key], before[key]), 3) for key in ("seconds", "cpu_seconds")}
            best[name] = now | least | {"peak_mib": round(max(now["peak_mib"], before["peak_mib"]))}
            print(loss, name, best[name], flush=True)
    return best


def _in_a_process(loss: str, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.head_losses", "--one", loss, name, "--tokens", str(arguments.tokens)]
    command += ["--hidden", str(arguments.hidden), "--vocabulary", str(arguments.vocabulary)]
    command += ["--threads", str(arguments.threads), *(["--trl", str(arguments.trl)] if arguments.trl else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _ratios(ways: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Ours by each other way: below 1 is less."""
    mine = ways["ours"]
    return {
        name: {
            key: round(mine[key] / theirs[key], 3)
            for key in ("seconds", "cpu_seconds", "peak_mib", "error")
            if key in theirs
        }
        for name, theirs in ways.items()
        if name != "ours"
    }


if __name__ == "__main__":
    main()
