"""What the training benchmark trains on: samples that a dataset has accepted, and rollouts made here.

Rollouts are right and wrong answers to some of the demo's problems, in its template, written from the gold answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from model.advantages import Advantage, group_advantages
from model.records import PROBLEM_SCHEMA, FinishReason, Problem, to_table
from model.templates import PromptTemplate
from model.training.data import Row, tokenize
from model.training.rollouts import Rollout
from tasks.builtin_problems import builtin_rows
from tasks.choice import SELECTIONS

PREFILL = "<think>\n"
TEMPLATE = PromptTemplate("think-answer", "You answer arithmetic questions.", PREFILL, ("</answer>",))
SETS = {"sums-2x1": 200, "products-1x1": 100, "sums-3x1": 50, "sums-2x2": 50}  # as deployments/recipes/demo.toml
GROUP = 8
RIGHT, WRONG = 1.2, 0.2  # rewards of a well-formed answer


def problems() -> list[Problem]:
    """The demo's, of all sets, taken in turn."""
    found = [
        Problem(f"{name}-{i}", "math", name, row["prompt"], row["gold"])
        for name, limit in SETS.items()
        for i, row in enumerate(islice(builtin_rows(name), limit))
    ]
    return sorted(found, key=lambda problem: int(problem.problem_id.rpartition("-")[2]))


def worked(problem: Problem, answer: str, lines: int = 1) -> str:
    """A message that comes to an answer."""
    expression = problem.prompt.removeprefix("Calculate ").removesuffix(".")
    return f"{PREFILL}" + f"{expression} = {answer}\n" * lines + f"</think>\n<answer>{answer}</answer>"


def newest(dataset: Path, stage: str) -> Path:
    """What a run of this dataset last chose for a stage, as its trainer read it. SystemExit where there is nothing."""
    found = sorted(dataset.glob(f"{SELECTIONS}/{stage}-*.parquet"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SystemExit(f"{dataset} holds nothing that was chosen for {stage}: run `make demo` first")
    return found[-1]


@dataclass(frozen=True)
class Groups:
    """Fixed rollouts: a sampler and a reward of GRPO that know their answers beforehand."""

    rollouts: dict[str, list[Rollout]]  # by context
    rewards: list[float]  # of every group

    def advantages(self) -> list[float]:
        """Of every group's members."""
        found: list[float] = group_advantages(torch.tensor([self.rewards]), Advantage.GRPO)[0].tolist()
        return found


def write_groups(path: Path, tokenizer: Any, count: int) -> Groups:
    """Writes `count` problems as GRPO reads them; three of each eight answers are right, one has a line more."""
    chosen = [
        Problem(p.problem_id, p.domain, p.source, TEMPLATE.render(tokenizer, p.prompt), p.gold)
        for p in problems()[:count]
    ]
    pq.write_table(to_table(chosen, PROBLEM_SCHEMA), path)
    rollouts = {}
    for raw, problem in zip(problems(), chosen, strict=False):
        context = problem.prompt + PREFILL
        answers = [int(str(problem.gold)) + max(0, g - 2) for g in range(GROUP)]
        texts = [worked(raw, str(answer), 1 + (g == GROUP - 1)) for g, answer in enumerate(answers)]
        rollouts[context] = [_rollout(tokenizer, context, text.removeprefix(PREFILL)) for text in texts]
    return Groups(rollouts, [RIGHT] * 3 + [WRONG] * (GROUP - 3))


def _rollout(tokenizer: Any, context: str, text: str) -> Rollout:
    return Rollout(Row(tokenize(tokenizer, context), tokenize(tokenizer, text)), text, FinishReason.STOP)
