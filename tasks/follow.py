"""What a training does, for whoever waits for it: read from the files that it writes, shown as a bar."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.training.process import EXIT_DONE
from tasks.processes import POLL_SECONDS, last_lines
from tasks.progress import Ticker, announce

READING_FILE = "tokens/reading.json"  # of a student: how far its trainer is with its examples (examples.py there)

# What stands beside the bar, and how it is called there.
_SHOWN = {
    "loss": "loss",
    "kl": "kl",
    "reward": "reward",
    "entropy": "entropy",
    "completion_length": "length",
    "tokens_per_second": "tokens/s",
    "mfu": "mfu",
}
_VALIDATED = "pass@1"
PUBLISH_SECONDS = 60.0  # between two pictures of a run's curves


class Follower:
    """Reads what the trainer appends to its metrics files and shows the last step."""

    def __init__(self, metrics: Path, ticker: Ticker, publish: Callable[[], None] | None = None) -> None:
        self._metrics, self._ticker, self._publish = metrics, ticker, publish
        self.step = self._published = 0
        self.step_seconds = 0.0  # of the last step
        self._next = time.monotonic() + PUBLISH_SECONDS

    def poll(self) -> None:
        """Shows the newest whole line, if there is one."""
        row, validated = _last(self._metrics), _last(self._metrics.with_name("validation.jsonl"))
        if row is None:
            if read := _last(self._metrics.parent / READING_FILE):
                self._ticker.describe(f"tokenises examples: {read['done']:,} of {read['total']:,}")
            return
        self.step, self.step_seconds = int(row["step"]), float(row.get("seconds", 0.0))
        note = [f"{name} {row[key]:.3g}" for key, name in _SHOWN.items() if isinstance(row.get(key), int | float)]
        if validated and _VALIDATED in validated:
            note.append(f"{_VALIDATED} {validated[_VALIDATED]:.3g} (step {validated['step']:.0f})")
        self._ticker.set(self.step, row.get("total_steps"), "  ".join(note))
        self._show()

    def _show(self) -> None:
        if self._publish is None or self.step == self._published or time.monotonic() < self._next:
            return
        try:
            self._publish()
        # A picture is for looking: whatever keeps it from being shown must not end the training that it shows.
        except Exception as error:
            announce(f"warning: the curves are not shown ({type(error).__name__}: {error})")
        self._published, self._next = self.step, time.monotonic() + PUBLISH_SECONDS


def _last(metrics: Path) -> dict[str, Any] | None:
    """The newest whole line of a file of metrics."""
    for line in reversed(last_lines(metrics, count=2)):
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:  # the last line may be half written; the one before it is whole
            continue
        return found
    return None


def followed(job: Path, carry_out: Callable[[Path], int]) -> int:
    """Carries out a training file in this thread, while another shows its steps; returns the exit status."""
    out = _out_of(job)
    if out is None:
        return carry_out(job)
    done_before = (out / "manifest.json").is_file()
    ended = threading.Event()
    ticker = Ticker(f"train {out.name}", None, "steps")
    follower = Follower(out / "metrics.jsonl", ticker)

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            follower.poll()

    following = threading.Thread(target=follow, daemon=True)
    following.start()
    try:
        status = carry_out(job)
    finally:
        ended.set()
        following.join()
    if status == EXIT_DONE:  # else what was said of its end stays the last line
        follower.poll()
        ticker.close()
        announce(f"{'done before' if done_before else 'done'}: {follower.step} steps, model in {out / 'model'}")
    return status


def _out_of(job: Path) -> Path | None:
    """The folder that a training file names; None where it names none, of which whoever carries it out says more."""
    try:
        return Path(json.loads(job.read_text(encoding="utf-8"))["out"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
