"""What an earlier version of a check, one that would have said the same of a text, said of a shard's samples.

Some versions have two parts, `1+AAAAAA.BBBBBB`: what was said of a text, which took a model and time, and what
follows from it (a threshold, whom to ask). Where only the second part has changed, the first is found here. Only
verdicts on this very make of the shard count.
"""

from __future__ import annotations

from model.records import Status, Verdict, from_table
from tasks.store import VERDICTS, Dataset, sample_path, verdict_path
from tasks.work import verdict_extra


def earlier_verdicts(dataset: Dataset, check: str, said: str, shard: int) -> dict[str, Verdict]:
    """By sample id the newest `pass` or `fail` of the check's versions that begin with `said` and a dot."""
    samples = dataset.read_manifest(sample_path(shard))
    if samples is None:
        return {}
    folders = sorted(dataset.file(f"{VERDICTS}/{check}").glob(f"{said}.*"))
    found = [dataset.read_manifest(verdict_path(check, folder.name, shard)) for folder in folders]
    fitting = [manifest for manifest in found if manifest is not None and manifest.extra == verdict_extra(samples)]
    rows: dict[str, Verdict] = {}
    for manifest in sorted(fitting, key=lambda manifest: manifest.created_at):
        verdicts: list[Verdict] = from_table(dataset.read_table(manifest.relative), Verdict)
        rows |= {row.sample_id: row for row in verdicts if row.verdict in (Status.PASS, Status.FAIL)}
    return rows
