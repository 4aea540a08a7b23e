"""Whatever a user gets wrong is told in one line, with exit code 2, and costs nothing that was there before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.attempts import read_attempts
from tasks.catalog import connect
from tasks.store import PROBLEMS, SAMPLES, Dataset
from tasks.work import pending_generate, pending_verify, planned_shards, verdict_files
from tests.fake_endpoint import FakeEndpoint

Command = Callable[..., subprocess.CompletedProcess[str]]
WriteRecipe = Callable[..., Path]
PROGRESS = ("load problems:", "warning:", "problems:", "audit:", "generate:", "verify:", "converting", "converted")
NOWHERE = "http://127.0.0.1:9/v1"  # the discard port: nothing listens there


def anew(*words: object) -> subprocess.CompletedProcess[str]:
    """A command that a Python of its own carries out, imports and all."""
    command = [sys.executable, "-m", "flows.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def assert_told(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line that begins with the error's name, after lines of progress at most."""
    *progress, line = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert all(earlier.startswith(PROGRESS) for earlier in progress), done.stderr
    assert line.partition(":")[0].endswith("Error")
    for word in words:
        assert word in line


def test_missing_recipe(tmp_path: Path) -> None:
    assert_told(anew("run", tmp_path / "none.toml"), "no such recipe", "none.toml")


def test_unknown_key_names_the_nearest(cli: Command, write_recipe: WriteRecipe) -> None:
    recipe = write_recipe(NOWHERE)
    assert_told(cli("run", recipe, "--set", "generate.replicsa=3"), "generate.replicsa", "generate.replicas")


def test_unknown_stage(cli: Command, write_recipe: WriteRecipe) -> None:
    assert_told(cli("run", write_recipe(NOWHERE), "--only", "generat"), "did you mean 'generate'")


def test_stage_that_is_disabled(cli: Command, write_recipe: WriteRecipe) -> None:
    assert_told(cli("run", write_recipe(NOWHERE), "--only", "grpo"), "grpo.enabled is false in the recipe")


def test_generation_without_problems(stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint) -> None:
    done = stillhouse("run", write_recipe(endpoint.url), "--only", "generate")
    assert_told(done, "holds no problems yet", "--only problems")


def test_required_check_that_no_check_of_ones_own_is_called(
    stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint
) -> None:
    own = "verify.checks=['finish', 'model.rewards.length:LengthCheck']"
    recipe = write_recipe(endpoint.url, problems=4)
    done = stillhouse("run", recipe, "--set", own, "--set", "accept.require=['lenght']")
    assert_told(done, "accept.require names `lenght`", "finish, length")


def test_wrong_accept_rule_leaves_the_dataset_as_it_was(
    stillhouse: Command, cli: Command, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe, dataset = write_recipe(NOWHERE, problems=4), tmp_path / "dataset"
    assert stillhouse("run", recipe, "--only", "problems").returncode == 0
    done = cli("run", recipe, "--set", "accept.where=no_such_column > 1")
    assert_told(done, "accept.where", "no_such_column")
    assert cli("status", dataset).returncode == 0


def test_dataset_that_cannot_be_written(cli: Command, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "logs").write_text("no folder: what every user is refused, root too")
    assert_told(cli("run", write_recipe(NOWHERE)), "cannot write", "logs")


def test_not_a_dataset(cli: Command, tmp_path: Path) -> None:
    assert_told(cli("status", tmp_path), "is not a dataset")
    assert_told(cli("sql", tmp_path, "select 1"), "is not a dataset")
    assert_told(cli("report", tmp_path), "is not a dataset")


@pytest.mark.parametrize("words", [["run"], ["rerun", "--nonsense"], ["no-such-verb"]])
def test_wrong_usage(words: list[str]) -> None:
    done = anew(*words)
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_teacher_that_does_not_answer_is_told_before_anything_is_loaded(
    stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    dataset = Dataset(tmp_path / "dataset")
    done = stillhouse("run", write_recipe(NOWHERE, problems=4))
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"SamplerError: no endpoint answers ({NOWHERE}: ConnectError")
    assert dataset.manifests(PROBLEMS) == []
    # What is made already needs no teacher, and what is asked for later needs it again.
    stages = ("--only", "problems,generate,verify")
    assert stillhouse("run", write_recipe(endpoint.url, problems=4), *stages).returncode == 0
    gone = write_recipe(NOWHERE, problems=4)
    assert stillhouse("run", gone, *stages).returncode == 0
    more = stillhouse("run", gone, *stages, "--set", "generate.replicas=3")
    assert more.returncode == 1
    assert "no endpoint answers" in more.stderr
    assert all(attempt.state == "completed" for attempt in read_attempts(dataset))


def test_empty_problem_set(
    stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    recipe = _with_problems(write_recipe(endpoint.url), f'type = "jsonl"\npath = "{empty}"')
    assert_told(stillhouse("run", recipe), "empty.jsonl", "no rows")


def test_missing_problem_file(
    stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    recipe = _with_problems(write_recipe(endpoint.url), f'type = "jsonl"\npath = "{tmp_path / "none.jsonl"}"')
    assert_told(stillhouse("run", recipe), "none.jsonl")


def test_model_folder_that_is_none(
    stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    done = stillhouse("run", write_recipe(endpoint.url), "--set", f"student.model={tmp_path}")
    assert_told(done, str(tmp_path), "holds no model")


def test_dataset_of_another_recipe(
    stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    recipe = write_recipe(endpoint.url, problems=4)
    assert stillhouse("run", recipe, "--only", "problems").returncode == 0
    before = (tmp_path / "dataset" / "recipe.json").read_bytes()
    done = stillhouse("run", recipe, "--set", "generate.temperature=0.9")
    assert_told(done, "different recipe", "generate.temperature", "0.7", "0.9")
    assert (tmp_path / "dataset" / "recipe.json").read_bytes() == before


def test_another_held_out_share_is_refused_and_leaves_the_recipe_as_it_was(
    stillhouse: Command, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe = write_recipe(NOWHERE)
    assert stillhouse("run", recipe, "--only", "problems").returncode == 0
    before = (tmp_path / "dataset" / "recipe.json").read_bytes()
    done = stillhouse("run", recipe, "--set", "problems.0.held_out=0.9", "--only", "problems")
    assert_told(done, "`held_out` must not change")
    assert (tmp_path / "dataset" / "recipe.json").read_bytes() == before


def test_folder_that_cannot_be_made(stillhouse: Command, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert_told(stillhouse("run", write_recipe(NOWHERE), "--set", f"dataset={tmp_path}/file/x"), "file/x")


@pytest.mark.machine
def test_full_disk(stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint, tmp_path: Path) -> None:
    """A real one, small enough to fill. What was written stays, and the same command makes what is missing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - (200 << 10)))
        command = ("run", write_recipe(endpoint.url, dataset="disk/data"), "--only", "problems,generate,verify")
        assert_told(stillhouse(*command), "disk is full", f"{disk}/data")
        dataset = Dataset(disk / "data")
        written = {m.relative: m for folder in (PROBLEMS, SAMPLES) for m in dataset.manifests(folder)}
        written |= {file.relative: dataset.read_manifest(file.relative) for file in verdict_files(dataset)}
        assert any(relative.startswith(SAMPLES) for relative in written)
        assert all(dataset.verify_checksum(relative) for relative in written)
        missing = sum(planned_shards(dataset)[shard].rows for shard in pending_generate(dataset))
        asked = len(endpoint.requests)

        (disk / "filler").unlink()
        done = stillhouse(*command)
        assert done.returncode == 0, done.stderr
        assert (pending_generate(dataset), pending_verify(dataset)) == ([], [])
        assert {relative: dataset.read_manifest(relative) for relative in written} == written
        assert len(endpoint.requests) == asked + missing
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def verify_attempts(dataset: Dataset) -> dict[tuple[int, int], str]:
    """State by shard and attempt."""
    return {(a.shard, a.attempt): a.state for a in read_attempts(dataset) if a.stage == "verify"}


def test_machine_on_which_no_sandbox_holds(
    stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    """Refused before anything is generated; what is verified without an audit is no verdict, and is made later."""

    def run(*words: object, holds: bool) -> subprocess.CompletedProcess[str]:
        return stillhouse("run", *words, confined=not holds)

    tests = json.dumps({"mode": "stdin", "cases": [{"input": "1", "output": "2"}]})
    (tmp_path / "problems.jsonl").write_text(
        json.dumps({"prompt": "Add 1 to the number given.", "gold": "print(int(input()) + 1)", "tests": tests})
    )
    endpoint.answer = lambda *_: "so\n</think>\n<answer>\n```python\nprint(int(input()) + 1)\n```\n</answer>"
    source = f'type = "jsonl"\npath = "{tmp_path / "problems.jsonl"}"\ndomain = "code"'
    recipe = _with_problems(write_recipe(endpoint.url), source)
    recipe.write_text(recipe.read_text().replace('"math"]', '"code"]') + '[accept]\nrequire = ["finish", "code"]\n')
    words = ("check `code` has no sandbox here", "allow user namespaces", "tier A:", "tier B:", "tier C:")

    assert_told(run(recipe, holds=False), *words)
    assert endpoint.requests == []
    assert_told(run(recipe, "--only", "generate,verify", holds=False), *words)
    dataset = Dataset(tmp_path / "dataset")
    assert len(endpoint.requests) == 2
    assert verdict_files(dataset) == []
    assert verify_attempts(dataset) == {(0, 1): "failed"}
    done = run(recipe, "--only", "generate,verify", holds=True)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == 2
    verdicts = connect(dataset.path).execute("""select "check", verdict, reason, count(*) from verdicts group by all""")
    assert ("code", "pass", "passed", 2) in verdicts.fetchall()
    assert verify_attempts(dataset) == {(0, 1): "failed", (0, 2): "completed"}


def test_gold_that_does_not_parse_is_unscorable(
    stillhouse: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        '{"prompt": "Calculate 1 + 1.", "gold": "2"}\n'
        '{"prompt": "Calculate 2 + 1.", "gold": "\\\\frac{1}{"}\n'
        "this line is not JSON\n"
        '{"prompt": "Calculate 3 + 1."}\n'
    )
    recipe = _with_problems(write_recipe(endpoint.url), f'type = "jsonl"\npath = "{problems}"')
    done = stillhouse("run", recipe, "--only", "problems,generate,verify")
    assert done.returncode == 0, done.stderr
    rows = connect(tmp_path / "dataset").execute("""
        select p.prompt, v.verdict, v.reason from verdicts v join samples s using (sample_id)
        join problems p using (problem_id) where v."check" = 'math' and v.verdict = 'unscorable' group by all""")
    assert sorted(rows.fetchall()) == [
        ("Calculate 2 + 1.", "unscorable", "gold_unparseable"),
        ("Calculate 3 + 1.", "unscorable", "no_gold"),
    ]
    reject = (tmp_path / "dataset" / "rejects" / "problems.jsonl").read_text()
    assert '"line": 3' in reject


def test_wrong_sql_is_one_line(
    stillhouse: Command, cli: Command, write_recipe: WriteRecipe, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    assert stillhouse("run", write_recipe(endpoint.url, problems=4), "--only", "problems").returncode == 0
    assert_told(cli("sql", tmp_path / "dataset", "select nothing from problems"), "nothing")
    assert_told(cli("sql", tmp_path / "dataset", "copy problems to 'x.csv'"), "never written")
    assert_told(cli("explain", tmp_path / "dataset", "ffffffff"), "no sample")
    assert_told(cli("sql", tmp_path / "dataset", "-f", tmp_path / "none.sql"), "cannot read", "none.sql")


def _with_problems(recipe: Path, source: str) -> Path:
    head, _, rest = recipe.read_text().partition("[[problems]]")
    tail = rest[rest.index("[template]") :]
    recipe.write_text(f"{head}[[problems]]\n{source}\n{tail}")
    return recipe
