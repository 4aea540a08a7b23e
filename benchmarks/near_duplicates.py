"""How long does it take to find the twins among 800,000 problems, in how much memory, and are they twins?

Problems are made from real ones (GSM8K's JSONL files, given as a path): the numbers of each are changed, again and
again, which makes another question of it, and a known share are true twins: the same question with another ending or
beginning, in lower case, with its first sentence's longest word changed, or word for word. No problem has a gold
answer, so that numbers and words alone must do. Ours is the task that a run carries out (tokens, signatures, bands,
exact comparison, verdict file); the peer is the loop that datasketch's documentation shows, at the same threshold and
shingles, in the same run. It needs `pip install datasketch` (with scipy). Each part runs in a process of its own,
whose greatest memory is told beside what it takes before it has seen a problem.

    python -m benchmarks.near_duplicates path/to/gsm8k
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from model.records import PROBLEM_SCHEMA, Problem, problem_id, to_table
from model.rewards.settings import ContaminationSettings, DuplicateSettings
from model.rewards.texts.shingles import tokens
from tasks.run import Run
from tasks.store import PROBLEMS, Dataset, shard_name

OUT = Path(__file__).with_suffix(".json")
PLANTED = 0.02  # share of true twins
PER_FILE = 20_000
SEED = 20260101

TWIN: dict[str, Callable[[str], str]] = {
    "other_ending": lambda text: f"{text} Explain how you arrive at the answer.",
    "other_beginning": lambda text: f"Solve the following problem. {text}",
    "lower_case": lambda text: text.lower(),
    "one_word": lambda text: text.replace(max(re.findall(r"[A-Za-z]+", text), key=len), "thing", 1),
    "white_space": lambda text: text.replace(" ", "  ", 2) + "\n",
}


def main() -> None:
    arguments = _arguments()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](Path(arguments.folder))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = [_measure(arguments, size, Path(scratch)) for size in arguments.sizes]
    beside = [row for row in results if "datasketch" in row]
    record = {
        "question": __doc__.splitlines()[0],
        "ratio": round(beside[-1]["datasketch"]["seconds"] / beside[-1]["stillhouse"]["seconds"], 1),
        "ratio_at_problems": beside[-1]["problems"],
        "settings": {"threshold": 0.8, "shingle": 3, "permutations": 128, "planted_share": PLANTED, "seed": SEED},
        "results": results,
        "machine": describe(["rensa", "datasketch"]),
        "remade_by": "python -m benchmarks.near_duplicates path/to/gsm8k",
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder with GSM8K's JSONL files")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000, 800_000], help="numbers of problems")
    parser.add_argument("--peer-up-to", type=int, default=200_000, help="greatest size that the peer is tried on")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(arguments: argparse.Namespace, size: int, scratch: Path) -> dict[str, Any]:
    folder = scratch / str(size)
    made = time.monotonic()
    truth = _write(folder, _real(Path(arguments.folder)), size)
    print(f"{size} problems made in {time.monotonic() - made:.0f} s", file=sys.stderr)
    row: dict[str, Any] = {"problems": size, "planted_twins": len(truth)}
    for part in PARTS:
        if part == "stillhouse" or size <= arguments.peer_up_to:
            found = _in_a_process(part, folder)
            row[part] = _graded(found, truth)
    return row


def _in_a_process(part: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.near_duplicates", str(folder), "--part", part]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _graded(found: dict[str, Any], truth: dict[str, str]) -> dict[str, Any]:
    """Seconds and memory, the share of planted twins found by kind, and the problems that only share a template."""
    twins = set(found.pop("twins"))
    planted, hit = Counter(truth.values()), Counter(truth[twin] for twin in twins if twin in truth)
    return found | {
        "found_share": {kind: round(hit[kind] / planted[kind], 3) for kind in planted},
        "false_twins": len(twins - truth.keys()),
    }


# --- problems from problems ------------------------------------------------------------------------


def _real(folder: Path) -> list[str]:
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(json.loads(line)["question"] for line in lines))


def _write(folder: Path, real: list[str], size: int) -> dict[str, str]:
    """A dataset of `size` problems; returns the planted twins' ids, each with its kind."""
    dataset, truth, batch, number = Dataset.create(folder), {}, [], 0
    for text, kind in _made(real, size):
        one = Problem(problem_id("math", text, None), "math", "made", text)
        if kind:
            truth[one.problem_id] = kind
        batch.append(one)
        if len(batch) == PER_FILE:
            _write_file(dataset, batch, number)
            batch, number = [], number + 1
    if batch:
        _write_file(dataset, batch, number)
    return truth


def _write_file(dataset: Dataset, batch: list[Problem], number: int) -> None:
    table = to_table(batch, PROBLEM_SCHEMA)
    dataset.write_shard(f"{PROBLEMS}/{shard_name(number)}", table, schema=PROBLEM_SCHEMA, fingerprint="made")


def _made(real: list[str], size: int) -> Iterator[tuple[str, str]]:
    """Different questions, and after some of them a twin with its kind; `size` texts in all."""
    rng, seen, made = random.Random(SEED), set(), 0
    while made < size:
        text = re.sub(r"\d+", lambda found: str(rng.randint(2, 10 ** len(found[0]) + 8)), rng.choice(real))
        if text in seen or not re.search(r"\d", text):
            continue
        seen.add(text)
        yield text, ""
        made += 1
        if rng.random() < PLANTED and made < size:
            kind = rng.choice(list(TWIN))
            twin = TWIN[kind](text)
            if twin not in seen:
                seen.add(twin)
                yield twin, kind
                made += 1


# --- the two ways ----------------------------------------------------------------------------------


def _stillhouse(folder: Path) -> dict[str, Any]:
    from tasks.problem_checks import check_problems
    from tasks.problem_verdicts import excluded

    dataset = Dataset.open(folder)
    before, started = _peak_mib(), time.monotonic()
    check_problems.fn(Run(dataset, "benchmark"), ["duplicate"], DuplicateSettings(), ContaminationSettings())
    seconds = time.monotonic() - started
    return _told(seconds, before, sorted(excluded(dataset, ["duplicate"])))


def _datasketch(folder: Path) -> dict[str, Any]:
    from datasketch import MinHash, MinHashLSH

    from tasks.problem_checks import problems_in_order

    dataset, settings = Dataset.open(folder), DuplicateSettings()
    before, started = _peak_mib(), time.monotonic()
    index, twins = MinHashLSH(threshold=settings.threshold, num_perm=settings.permutations), []
    for batch in problems_in_order(dataset):
        for problem in batch:
            words, width = tokens(problem.prompt), settings.shingle
            signature = MinHash(num_perm=settings.permutations)
            signature.update_batch([" ".join(words[at : at + width]).encode() for at in range(len(words) - width + 1)])
            if index.query(signature):
                twins.append(problem.problem_id)
            else:
                index.insert(problem.problem_id, signature)
    return _told(time.monotonic() - started, before, twins)


PARTS = {"stillhouse": _stillhouse, "datasketch": _datasketch}


def _peak_mib() -> float:
    """The greatest memory of this process since it began (`ru_maxrss` would begin with its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _told(seconds: float, before: float, twins: list[str]) -> dict[str, Any]:
    memory = {"peak_mib": round(_peak_mib()), "peak_mib_before": round(before)}
    return {"seconds": round(seconds, 1), **memory, "twins": twins}


if __name__ == "__main__":
    main()
