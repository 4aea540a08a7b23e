"""What a benchmark's figures were measured on: cores, processor, memory, versions, commit, date.

Written into the JSON beside each benchmark. No host name and no path: figures are compared between machines, not
traced to one. `python benchmarks/machine.py` prints it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ALWAYS = ("stillhouse", "pyarrow", "numpy")


def describe(packages: Sequence[str] = ()) -> dict[str, object]:
    """The machine and the software. `packages`: distributions whose versions shaped the figures (None: not installed).

    `cores` are those that this process may use, `ram_gib` what the machine has, `modified` whether the checkout
    differs from `commit` (None where there is no git).
    """
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_model(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in dict.fromkeys((*ALWAYS, *packages))},
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "modified": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "date": datetime.now(UTC).date().isoformat(),
    }


def unpacked_version(folder: Path | None, name: str) -> str | None:
    """The version of a wheel that was unpacked into a folder; None where there is none."""
    found = next(folder.glob(f"{name}-*.dist-info"), None) if folder else None
    return found.name.removeprefix(f"{name}-").removesuffix(".dist-info") if found else None


def _cpu_model() -> str:
    """The processor's name as the kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """What git says of this checkout; None where it cannot."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    json.dump(describe(sys.argv[1:]), sys.stdout, indent=1)
    print()
