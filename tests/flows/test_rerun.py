"""A shard whose endpoint fails is `failed` with its error; `rerun --failed` makes it and touches nothing else."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.catalog import connect
from tasks.inputs import problems_by_id
from tasks.store import Dataset
from tasks.work import train_problem_ids
from tests.fake_endpoint import FakeEndpoint
from tests.tasks.flaky import MENDED

Command = Callable[..., subprocess.CompletedProcess[str]]
DATA = ("problems", "plans", "samples", "verdicts")


def test_a_failed_shard_is_told_and_made_again_alone(
    stillhouse: Command, write_recipe: Callable[..., Path], endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    recipe, dataset = write_recipe(endpoint.url), tmp_path / "dataset"
    assert stillhouse("run", recipe, "--only", "problems").returncode == 0
    # Ten problems with two replicas each fill a shard of 20, so the sixteenth problem is in shard 1.
    endpoint.faults.fail_key, endpoint.faults.fail_first = _prompt(dataset, 15), -1

    run = stillhouse("run", recipe)
    assert run.returncode == 1, run.stderr
    assert "rerun" in run.stderr.splitlines()[-1]
    failed = _rows(dataset, "select stage, shard, attempts, error_type, error from shards where state = 'failed'")
    assert [row[:4] for row in failed] == [("generate", 1, 3, "SamplerError")]
    assert "500" in failed[0][4]
    assert _rows(dataset, "select distinct shard from samples where shard = 1") == []

    before = _checksums(dataset)
    endpoint.faults.fail_first = 0
    again = stillhouse("rerun", dataset, "--failed")
    assert again.returncode == 0, again.stderr
    after = _checksums(dataset)
    assert {name: after[name] for name in before} == before
    assert {Path(name).stem for name in after.keys() - before.keys()} == {"000001"}
    assert _rows(dataset, "select distinct state from shards") == [("done",)]


def test_chosen_samples_are_made_again_and_the_old_rows_stay_on_disk(
    stillhouse: Command, write_recipe: Callable[..., Path], endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    recipe, dataset = write_recipe(endpoint.url, problems=20), tmp_path / "dataset"
    assert stillhouse("run", recipe, "--only", "problems,generate,verify").returncode == 0
    before, files = _samples(dataset), _checksums(dataset)
    chosen = {row[0] for row in _rows(dataset, "select sample_id from samples where replica = 1")}

    # A re-run that ended after it had planned them is gone on with by the same command.
    endpoint.faults.fail_first = -1
    assert stillhouse("rerun", dataset, "--where", "replica = 1").returncode == 1
    assert _samples(dataset) == before
    endpoint.faults.fail_first = 0
    planned = _rows(dataset, "select shard from shards where stage = 'generate' and state = 'failed' order by 1")
    again = stillhouse("rerun", dataset, "--where", "replica = 1")
    assert again.returncode == 0, again.stderr
    assert f"re-run: shards {', '.join(str(row[0]) for row in planned)}" in again.stdout
    after = _samples(dataset)
    assert after.keys() == before.keys()
    changed = {sample for sample in after if after[sample] != before[sample]}
    assert changed
    assert changed <= chosen
    assert {name: _checksums(dataset)[name] for name in files} == files


def test_verdicts_that_are_errors_are_told_and_redone_alone(
    stillhouse: Command,
    write_recipe: Callable[..., Path],
    endpoint: FakeEndpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mended = tmp_path / "mended"
    monkeypatch.setenv(MENDED, str(mended))
    recipe, dataset = write_recipe(endpoint.url, problems=20), tmp_path / "dataset"
    checks = 'verify.checks=["finish","format","math","tests.tasks.flaky:FlakyCheck"]'
    run = stillhouse("run", recipe, "--only", "problems,generate,verify", "--set", checks)
    assert run.returncode == 0, run.stderr
    errors = _rows(dataset, "select count(*) from verdicts where verdict = 'error'")[0][0]
    assert errors
    told = f"{errors} verdicts are errors (flaky raised {errors})"
    assert told in run.stdout
    status = stillhouse("status", dataset)
    assert told in status.stdout
    assert "seconds: wall time in which shards were worked on" in status.stdout
    assert re.search(r"verify .* verdicts ", status.stdout)
    assert f"rerun {dataset} --errors" in status.stdout
    assert re.search(r"verification added \d+\.\d % to the run", status.stdout)
    before = _checksums(dataset)

    mended.touch()
    again = stillhouse("rerun", dataset, "--errors")
    assert again.returncode == 0, again.stderr
    assert f"{errors} verified again, 0 are errors still" in again.stdout + again.stderr
    after = _checksums(dataset)
    assert after.keys() == before.keys()
    assert {Path(name).parts[1] for name in before if after[name] != before[name]} == {"flaky"}
    assert _rows(dataset, "select count(*) from verdicts where reason = 'mended'") == [(errors,)]
    assert "are errors" not in stillhouse("status", dataset).stdout
    nothing = stillhouse("rerun", dataset, "--errors", "--failed")
    assert nothing.returncode == 2


def test_a_predicate_that_does_not_parse_is_a_usage_error(
    stillhouse: Command, write_recipe: Callable[..., Path], endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    assert stillhouse("run", write_recipe(endpoint.url, problems=4), "--only", "problems").returncode == 0
    wrong = stillhouse("rerun", tmp_path / "dataset", "--where", "no_such_column = 1")
    assert wrong.returncode == 2
    assert "no_such_column" in wrong.stderr


def _prompt(dataset: Path, place: int) -> str:
    opened = Dataset.open(dataset)
    problem = train_problem_ids(opened)[place]
    return problems_by_id(opened, [problem])[problem].prompt


def _rows(dataset: Path, query: str) -> list[tuple[object, ...]]:
    return connect(dataset).execute(query).fetchall()


def _samples(dataset: Path) -> dict[object, object]:
    return dict(_rows(dataset, "select sample_id, text from samples"))


def _checksums(dataset: Path) -> dict[str, str]:
    files = [file for folder in DATA for file in sorted((dataset / folder).rglob("*")) if file.is_file()]
    return {str(f.relative_to(dataset)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
