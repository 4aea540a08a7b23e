"""The file of a run's metrics, `metrics.jsonl`: written step by step, cut back where a run goes back."""

from __future__ import annotations

import json
from pathlib import Path

from model.training.checkpoint import disk_errors, write_file
from model.training.lines import read_lines
from model.training.parallel import World


class MetricsLog:
    """`metrics.jsonl`, one object per step, written by the leading process; `lines` holds them in all."""

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        self.lines: list[dict[str, float]] = world.led(lambda: read_lines(path))

    def keep(self, steps: int) -> None:
        """Drops the lines after the checkpoint that a run goes on from."""
        self.lines = self.lines[:steps]
        if self.world.leads:
            write_file(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def append(self, line: dict[str, float]) -> None:
        """Adds one step, visible to readers at once."""
        self.lines.append(line)
        if self.world.leads:
            with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
