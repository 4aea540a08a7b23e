"""What a run leaves in the Prefect UI: the funnel, samples to read, training curves, evaluations.

Artifacts are for looking; the numbers themselves are the dataset's, and the same queries give them again.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pyarrow as pa
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.curves import as_png, stage_curves
from flows.stages import Stage
from tasks import catalog
from tasks.audit_report import audit_mistakes, audit_rates
from tasks.progress import Ticker
from tasks.store import Dataset
from tasks.summary import accepted_preview, rejected_preview, teacher_on_validation

PREVIEW = 5  # accepted samples to read; rejected ones twice as many, one for each reason
PROGRESS_SECONDS = 5.0  # between two updates of a progress artifact


def publish_funnel(dataset: Dataset) -> None:
    """The funnel as a table, the judge beside the rules where there is one, and a few samples as text."""
    con = catalog.connect(dataset)
    create_table_artifact(_rows(catalog.funnel(con)), key=_key(dataset, "funnel"), description="Where samples are lost")
    if confusion := _rows(catalog.agreement(con)):
        create_table_artifact(confusion, key=_key(dataset, "judge"), description="What the judge says beside each rule")
    parts = [f"### accepted `{row['sample_id']}`\n{_fenced(row['text'])}" for row in accepted_preview(con, PREVIEW)]
    parts += [
        f"### rejected `{row['sample_id']}`: {row['check']}, {row['reason']}\n{_fenced(row['text'])}"
        for row in rejected_preview(con, 2 * PREVIEW)
    ]
    create_markdown_artifact(
        "\n\n".join(parts) or "No samples yet.", key=_key(dataset, "samples"), description="Samples to read"
    )


def publish_audit(dataset: Dataset) -> None:
    """False rejects and false accepts per source and check as a table, and examples of both."""
    con = catalog.connect(dataset)
    rates = [{key: _plain(value) for key, value in row.items()} for row in audit_rates(con)]
    create_table_artifact(rates, key=_key(dataset, "audit"), description="Checks on gold and on corrupted answers")
    mistakes = [{key: _plain(value) for key, value in row.items()} for row in audit_mistakes(con)]
    create_table_artifact(mistakes, key=_key(dataset, "audit-mistakes"), description="What checks got wrong, by case")


@contextmanager
def progress_in_ui(dataset: Dataset, ticker: Ticker) -> Iterator[None]:
    """Shows a ticker's share as a progress artifact, brought up to date every few seconds."""
    artifact = create_progress_artifact(0.0, key=_key(dataset, f"progress-{ticker.name}"), description=ticker.name)
    assert isinstance(artifact, UUID)
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(PROGRESS_SECONDS):
            update_progress_artifact(artifact, ticker.percent)

    follower = threading.Thread(target=follow, name="progress-artifact", daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        update_progress_artifact(artifact, ticker.percent)


def publish_curve(dataset: Dataset, stage: Stage) -> None:
    """A training stage's metrics over its steps so far, as a picture; to be called while it trains, too."""
    figure = stage_curves(dataset, stage, teacher_on_validation(catalog.connect(dataset)))
    picture = base64.b64encode(as_png(figure)).decode()
    markdown = f"![{stage}: metrics over steps](data:image/png;base64,{picture})"
    create_markdown_artifact(markdown, key=_key(dataset, f"curve-{stage}"), description=f"Training of {stage}")


def publish_evaluations(dataset: Dataset) -> None:
    """Every evaluation with its interval, as a table."""
    table = catalog.evaluations(catalog.connect(dataset))
    create_table_artifact(
        _rows(table), key=_key(dataset, "evaluations"), description="Held-out accuracy with 95 % intervals"
    )


def _key(dataset: Dataset, what: str) -> str:
    """Prefect groups artifacts by key over all runs of a server, so the key names the dataset."""
    return re.sub(r"[^a-z0-9]+", "-", f"{dataset.path.name}-{what}".lower()).strip("-")


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    return [{key: _plain(value) for key, value in row.items()} for row in table.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return value if isinstance(value, int | str | type(None)) else str(value)


def _fenced(text: str) -> str:
    """As a code block, whatever backticks the model wrote; long texts are cut."""
    return "````text\n" + text[:2000].replace("````", "'```") + "\n````"
