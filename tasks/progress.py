"""One progress display for the whole process: a bar on a terminal, a line now and then in a log.

Work is ticked from many threads (one per shard in flight). The command line opens the display with `shown()`;
without it, as under a Prefect worker, the same calls write a log line every ten seconds. Nothing here is
needed for the work itself: a ticker may be dropped at any point.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG = logging.getLogger("stillhouse")
LOG.setLevel(logging.INFO)  # under a worker nobody else does, and the root's level hides these lines
LOG_EVERY_SECONDS = 10.0

_display: Progress | None = None


class Ticker:
    """Counts one stage's work. `total` may be unknown (None) and set later; all methods are thread-safe."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.note = ""
        self._tokens = 0
        self._lock = threading.Lock()
        self._started = self._logged = time.monotonic()
        self._task = _display.add_task(name, total=total, note="") if _display else None

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Counts `amount` more units as done; `note` is shown beside the bar."""
        with self._lock:
            self.done += amount
            self.note = self.note if note is None else note
        self._show()

    def set(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Sets the count, for work that reports its own position (a training process's step)."""
        with self._lock:
            self.done = done
            self.total = total if total is not None else self.total
            self.note = self.note if note is None else note
        self._show()

    def count(self, tokens: int) -> None:
        """Counts one more unit and its tokens, whose rate stands beside the bar."""
        with self._lock:
            self.done += 1
            self._tokens += tokens
            self.note = f"{self._tokens / (time.monotonic() - self._started):.0f} tokens/s"
        self._show()

    def describe(self, note: str) -> None:
        """Changes the note without counting anything."""
        self.advance(0, note)

    def _show(self) -> None:
        if _display and self._task is not None:
            _display.update(self._task, completed=self.done, total=self.total, note=self.note)
        elif time.monotonic() - self._logged > LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            LOG.info("%s", self.line())

    @property
    def percent(self) -> float:
        """The share that is done, 0 to 100; 0 while the total is not known."""
        return min(100.0, 100.0 * self.done / self.total) if self.total else 0.0

    def line(self) -> str:
        """One line of text, as it stands in a log."""
        of = f"/{self.total}" if self.total else ""
        seconds = time.monotonic() - self._started
        return f"{self.name}: {self.done}{of} {self.unit} in {seconds:.0f} s {self.note}".rstrip()

    def close(self) -> None:
        """Ends the stage: a full bar stays on the terminal, a log gets its last line."""
        if _display and self._task is not None:
            unknown = self.total is None
            done = max(self.done, 1) if unknown else self.done
            _display.update(self._task, completed=done, total=done if unknown else self.total)
            _display.stop_task(self._task)
        else:
            LOG.info("%s", self.line())


def announce(text: str) -> None:
    """One line above the bars, or in the log."""
    if _display:
        _display.console.print(text, highlight=False)
    else:
        LOG.info("%s", text)


@contextmanager
def ticking(name: str, total: int | None, unit: str) -> Iterator[Ticker]:
    """A ticker for the length of a `with` block."""
    ticker = Ticker(name, total, unit)
    try:
        yield ticker
    finally:
        ticker.close()


@contextmanager
def shown(console: Console) -> Iterator[None]:
    """Shows all tickers as bars on `console` when it is a terminal; elsewhere log lines do the work."""
    global _display
    if not console.is_terminal:
        yield
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    ) as display:
        _display = display
        try:
            yield
        finally:
            _display = None
