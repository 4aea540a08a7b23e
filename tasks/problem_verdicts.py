"""What checks say of the problems themselves, whatever is answered to them: verdict files, and who is left out.

One file per check, replaced as a whole: its manifest names the check's version and ties it to the problem files
that were judged, so that more problems, or another version, make it stale. Nothing here judges: the checks are
in `tasks/problem_checks.py` (duplicate, contamination) and `tasks/audit.py` (a problem's own gold).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from model.records import PROBLEM_VERDICT_SCHEMA, ProblemVerdict, Status, content_hash, to_table
from tasks.store import PROBLEMS, Dataset, Manifest

FOLDER = "problem_verdicts"
PROBLEM_CHECKS = ("audit", "duplicate", "contamination")


def verdict_file(check: str) -> str:
    """Where a check's verdicts on problems lie, relative to the dataset."""
    return f"{FOLDER}/{check}.parquet"


def write_problem_verdicts(
    dataset: Dataset, check: str, version: str, rows: Sequence[ProblemVerdict], seconds: float
) -> None:
    """Replaces the verdicts of `check` by these, which are on the problem files as they lie there now."""
    dataset.write_shard(
        verdict_file(check),
        to_table(list(rows), PROBLEM_VERDICT_SCHEMA),
        schema=PROBLEM_VERDICT_SCHEMA,
        fingerprint=version,
        extra=_tie(dataset),
        seconds=seconds,
    )


def stale(dataset: Dataset, check: str, version: str) -> bool:
    """Whether the problems have no verdicts of `check` in this version, or there are other problems by now."""
    manifest = dataset.read_manifest(verdict_file(check))
    return manifest is None or manifest.fingerprint != version or manifest.extra != _tie(dataset)


def excluded(dataset: Dataset, checks: Collection[str]) -> dict[str, str]:
    """Training problems that fail one of `checks`, and the first that they fail; a check that never ran fails none."""
    found: dict[str, str] = {}
    for check in checks:
        if dataset.read_manifest(verdict_file(check)) is not None:
            table = dataset.read_table(verdict_file(check), ["problem_id", "verdict"])
            failing = table.filter(pc.field("verdict") == Status.FAIL.value).column("problem_id").to_pylist()
            found = dict.fromkeys(failing, check) | found
    kept = _never_trained_on(dataset, found) if found else set()
    return {problem: check for problem, check in found.items() if problem not in kept}


def verdict_manifests(dataset: Dataset) -> list[Manifest]:
    """Every check's valid verdict file on problems."""
    return dataset.manifests(FOLDER)


def _tie(dataset: Dataset) -> dict[str, str]:
    """The problem files by content, in load order."""
    return {"problems": content_hash("problems", [manifest.sha256 for manifest in dataset.manifests(PROBLEMS)])}


def _never_trained_on(dataset: Dataset, problems: Collection[str]) -> set[str]:
    """Those of `problems` that are held out or for validation, which nothing excludes."""
    wanted, found = pa.array(list(problems), pa.string()), set()
    for manifest in dataset.manifests(PROBLEMS):
        table = dataset.read_table(manifest.relative, ["problem_id", "split"])
        table = table.filter((pc.field("split") != "train") & pc.field("problem_id").isin(wanted))
        found |= set(table.column("problem_id").to_pylist())
    return found
