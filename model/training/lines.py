"""Files of metrics: one JSON object a line, read while another process may be writing the last one.

`stillhouse report` and every run read them too, and need not wait for torch: only who writes imports it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.training.parallel import World


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines, in order; none where there is no file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # half written
            continue
    return found


class MetricsLog:
    """`metrics.jsonl`, one object per step, written by the leading process; `lines` holds them in all."""

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        self.lines: list[dict[str, float]] = world.led(lambda: read_lines(path))

    def keep(self, steps: int) -> None:
        """Drops the lines after the checkpoint that a run goes on from."""
        from model.training.checkpoint import write_file

        self.lines = self.lines[:steps]
        if self.world.leads:
            write_file(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def append(self, line: dict[str, float]) -> None:
        """Adds one step, visible to readers at once."""
        from model.training.checkpoint import disk_errors

        self.lines.append(line)
        if self.world.leads:
            with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
