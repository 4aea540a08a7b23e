"""A run with a judge shows, where a person looks, what it said beside the rules; one without shows nothing."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx

from tasks.catalog import connect
from tests.fake_endpoint import FakeEndpoint, solve

Command = Callable[..., subprocess.CompletedProcess[str]]
COUNTS = """
    select count(*) filter (j.verdict = 'pass'), count(*) filter (j.verdict = 'fail')
    from verdicts m join verdicts j using (sample_id)
    where m."check" = 'math' and j."check" = 'judge' group by m.verdict order by m.verdict desc"""


def lenient(prompt: str, seed: int | None) -> str:
    """The teacher of the other tests; and a judge who forgives what is too large."""
    if '"verdict"' not in prompt:
        return solve(prompt, seed)
    _question, gold, answer = re.findall(r"<<<(\w+)\n(.*?)\n\1>>>", prompt, re.DOTALL)
    number = int(re.findall(r"-?\d+", answer[1])[-1])
    verdict = "correct" if number >= int(gold[1]) else "incorrect"
    return json.dumps({"analysis": f"it says {number}", "verdict": verdict})


def test_the_confusion_table_is_on_both_pages_and_in_the_ui(
    stillhouse: Command, write_recipe: Callable[..., Path], endpoint: FakeEndpoint, prefect_api: str, tmp_path: Path
) -> None:
    endpoint.answer = lenient
    recipe, dataset = write_recipe(endpoint.url, dataset="judged"), tmp_path / "judged"
    run = stillhouse("run", recipe, "--only", "problems,generate,verify")
    assert run.returncode == 0, run.stderr
    assert "funnel" in run.stdout
    assert "judge beside" not in run.stdout + stillhouse("status", dataset).stdout
    assert artifacts(prefect_api, "judged-judge") == []

    checks = 'verify.checks=["finish", "format", "math", "judge"]'
    again = stillhouse("run", recipe, "--only", "verify", "--set", checks, "--set", "verify.judge.audit_share=1")
    assert again.returncode == 0, again.stderr
    right, wrong = connect(dataset).sql(COUNTS).fetchall()
    assert right[0] > 20
    assert right[1] == 0
    assert min(wrong) > 2
    share = f"{100 * wrong[1] / sum(wrong):.0f} %"
    shown = [("math", "pass", right[0], 0, 0, "100 %"), ("math", "fail", *wrong, 0, share)]
    for page in (again.stdout, stillhouse("status", dataset).stdout):
        assert "judge beside rules" in page
        rows = [tuple(map(str.strip, line.split("│"))) for line in page.splitlines() if "│" in line]
        assert set(rows) >= {tuple(map(str, row)) for row in shown}
    (artifact,) = set(artifacts(prefect_api, "judged-judge"))
    assert [(row["judge_pass"], row["judge_fail"]) for row in json.loads(artifact)] == [right, wrong]


def artifacts(api: str, key: str) -> list[str]:
    wanted = {"artifacts": {"key": {"any_": [key]}}}
    return [found["data"] for found in httpx.post(f"{api}/artifacts/filter", json=wanted).json()]
