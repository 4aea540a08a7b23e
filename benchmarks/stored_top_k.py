"""How much of a teacher's distribution do its k likeliest tokens hold, and what does half precision cost?

The demo's model answers small sums in the demo's template, with worked turns as the teacher and without them as the
student; every answer is right. By k: the probability that the stored tokens have (`mass`), the share of the full
KL(teacher‖student) that the distance with a tail bucket keeps (`share_of_kl`), bytes a token before compression, and
what storing log-probabilities in float16 changes, relative to float64: the loss and the gradient of the logits.
Not measured: free text and long chains, where the mass is smaller.

    python -m benchmarks.stored_top_k
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe
from flows.recipe import load_recipe
from flows.wiring import template_of
from model.losses.kl import kl
from model.losses.top_k import top_k_part
from model.pretrained import resolve_model
from model.sampling.stored_size import stored_bytes
from model.templates import PromptTemplate

KS = (8, 16, 32, 64, 128, 256)
SUMS = [(a, b) for a in range(1, 9) for b in (2, 5, 7)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="deployments/recipes/demo.toml")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    teacher_NV, student_NV = _logits(template_of(load_recipe(arguments.recipe)))
    full = kl(teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)).mean().item()
    by_k = {k: _measured(teacher_NV, student_NV, k, full) for k in KS}
    result = {"tokens": len(teacher_NV), "kl_nats": round(full, 4), "k": by_k, "machine": describe(["torch"])}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


@torch.no_grad()
def _logits(template: PromptTemplate) -> tuple[Tensor, Tensor]:
    """At every token of all answers, float64: with the worked turns, and without."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model("builtin:smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def read(view: PromptTemplate, a: int, b: int) -> Tensor:
        prompt = view.render(tokenizer, f"Calculate {a} + {b}.") + view.prefill
        answer = f"{a} + {b} = {a + b}\n</think>\n<answer>{a + b}</answer>"
        context, learned = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
        tokens = torch.tensor([[*context, *learned, tokenizer.eos_token_id]])
        logits: Tensor = model(input_ids=tokens).logits[0, len(context) - 1 : -1]
        return logits.double()

    views: tuple[Any, Any] = (template, template.without_shots())
    teacher_NV, student_NV = (torch.cat([read(view, a, b) for a, b in SUMS]) for view in views)
    return teacher_NV, student_NV


def _measured(teacher_NV: Tensor, student_NV: Tensor, k: int, full: float) -> dict[str, float]:
    log_probs_NK, ids_NK = teacher_NV.log_softmax(-1).topk(k)
    weights_N = torch.full((len(teacher_NV),), 1 / len(teacher_NV), dtype=torch.float64)
    exact, halved = (
        top_k_part(student_NV.clone(), ids_NK, stored_NK, weights_N)
        for stored_NK in (log_probs_NK, log_probs_NK.half().double())
    )
    return {
        "mass": round(log_probs_NK.exp().sum(-1).mean().item(), 5),
        "share_of_kl": round(exact.loss.item() / full, 5),
        "bytes_per_token": stored_bytes(1, k),
        "float16_loss_error": (halved.loss / exact.loss - 1).abs().item(),
        "float16_gradient_error": ((halved.gradient_CV - exact.gradient_CV).norm() / exact.gradient_CV.norm()).item(),
    }


if __name__ == "__main__":
    main()
