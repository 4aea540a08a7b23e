"""Does the demo take no more time than it did at an earlier commit?

Both commits' demos, whole and from the start, take turns on this machine: each in a checkout of its own, with this
interpreter and its packages, `python -m flows.cli run deployments/recipes/demo.toml`. Models are converted before (the
first run of all would do that). Seconds of the wall clock and of processors, children included; and the accuracy of
every model that was evaluated, since a demo that does less is quicker. An idle machine is wanted, for some 20 minutes a
turn. Not measured: installation.

    python -m benchmarks.demo_time --before 8a5e5c6
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import describe
from model.pretrained import resolve_model

ROOT = Path(__file__).parents[1]
RECIPE = "deployments/recipes/demo.toml"
EVALUATED = "select model, metric, value from evaluations where metric = 'pass@1' order by all"


def demo(checkout: Path, scratch: Path) -> dict[str, Any]:
    """One run of a checkout's demo."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    stillhouse = [sys.executable, "-m", "flows.cli"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (scratch / "demo.log").open("a") as log:
        command = [*stillhouse, "run", RECIPE, "--set", f"dataset={scratch / 'data'}"]
        done = subprocess.run(command, cwd=checkout, env=environment, stdout=log, stderr=log, check=False)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"the demo ended with status {done.returncode}: {(scratch / 'demo.log').read_text()[-2000:]}")
    asked = [*stillhouse, "sql", str(scratch / "data"), EVALUATED, "--format", "json"]
    found = subprocess.run(asked, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(processor, 1),
        "pass@1": {row["model"]: round(row["value"], 3) for row in json.loads(found.stdout)},
    }


def main() -> None:
    """Runs both by turns and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="commit to compare with this checkout's")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    resolve_model("builtin:smollm2-135m-instruct")
    runs: dict[str, list[dict[str, Any]]] = {"now": [], "before": []}
    for _ in range(arguments.turns):
        for name, commit in (("now", "HEAD"), ("before", arguments.before)):
            with tempfile.TemporaryDirectory() as folder:
                checkout = Path(folder) / "checkout"
                subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
                subprocess.run(["git", "checkout", "--quiet", commit], cwd=checkout, check=True)
                runs[name].append(demo(checkout, Path(folder)))
            print(name, runs[name][-1], flush=True)
    times = {name: median(run["seconds"] for run in found) for name, found in runs.items()}
    result = {"ratio": round(times["now"] / times["before"], 3), "before": arguments.before, "runs": runs}
    arguments.out.write_text(json.dumps(result | {"machine": describe()}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
