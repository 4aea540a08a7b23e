"""Writes docs/one_sample.md: one real problem of the demo through every stage, with its actual rows.

    .venv/bin/python docs/one_sample.py data/demo > docs/one_sample.md

Every figure and text on that page is read from the dataset; this file only puts sentences between them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tasks.catalog import connect, explain_sample, run_sql
from tasks.store import Dataset

# A problem that was answered rightly and wrongly shows the most.
CHOSEN = """
    select problem_id from pass_rates
    where passed > 0 and problem_id in (select problem_id from outcomes where "check" = 'math')
    order by abs(pass_rate - 0.5), problem_id limit 1"""


def main(folder: str) -> str:
    """The page."""
    dataset = Dataset.open(folder)
    con = connect(dataset)

    def rows(query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = run_sql(con, query).to_pylist()
        return found

    problem = rows(f"select * from problems where problem_id = ({CHOSEN})")[0]
    samples = rows(f"""
        select s.sample_id, s.replica, s.seed, s.completion_tokens, s.finish_reason, s.text, o."check", o.reason
        from samples s join outcomes o using (sample_id)
        where s.problem_id = '{problem["problem_id"]}' order by s.replica""")
    accepted = next(row for row in samples if row["check"] is None)
    history = explain_sample(con, accepted["sample_id"])
    shard = history.samples[-1]["shard"]
    manifest = json.loads((Path(folder) / "samples" / f"{shard:06d}.json").read_text())
    parts = [
        "# One sample, from problem to student",
        "Made by `.venv/bin/python docs/one_sample.py data/demo > docs/one_sample.md` after `make demo`; "
        "all rows are that run's own.",
        "## 1. The problem",
        "`tasks/load.py` read it from the built-in set and gave it the id of its content. The split was drawn from "
        "the question alone, so no other source and no later run can move it.",
        _table([{key: problem[key] for key in ("problem_id", "source", "prompt", "gold", "split")}]),
        "## 2. The plan",
        f"`tasks/work.py` planned {len(samples)} samples of it in shard {shard}. A sample's id is the hash of problem, "
        "teacher, template, sampling parameters and replica; its seed comes from the id.",
        _table([{key: row[key] for key in ("sample_id", "replica", "seed")} for row in samples]),
        "## 3. The answers",
        "`tasks/generate.py` rendered the template with its worked turns, put `<think>` in front, and streamed the "
        "requests into vLLM together with those of other shards.",
        *[_answer(row) for row in samples],
        f"The shard's {manifest['rows']} rows went to `samples/{shard:06d}.parquet` ({manifest['bytes']} bytes), were "
        "read back, and only then got their manifest; before that, they did not exist:",
        _json({key: manifest[key] for key in ("rows", "bytes", "sha256", "ids_digest", "fingerprint", "versions")}),
        "## 4. The verdicts",
        "`tasks/verify.py` ran every check on every sample and wrote one file for each check. For the accepted "
        f"sample `{accepted['sample_id']}`:",
        _table(
            [
                {key: row[key] for key in ("check", "version", "verdict", "score", "reason", "milliseconds")}
                for row in history.verdicts
            ]
        ),
        "## 5. The choice",
        "Accepting is a query (`tasks/views.py`), so another rule costs a second and no generation. The whole "
        "dataset's funnel under the recipe's rule:",
        _table(rows("select step, samples, lost, reason from funnel")),
        "## 6. The students",
        "`tasks/select.py` rendered the accepted samples without the worked turns; `model/training` learned from "
        "them; `tasks/evaluate.py` asked each student the held-out questions:",
        _table(
            rows(
                "select model, step, suite, metric, round(value, 3) as value, round(low, 3) as low, "
                "round(high, 3) as high, problems, samples from evaluations where metric = 'pass@1' "
                "order by created_at, suite"
            )
        ),
        "## 7. Everything about it, at any time",
        f"    stillhouse explain data/demo {accepted['sample_id'][:12]}",
    ]
    return "\n\n".join(parts) + "\n"


def _answer(row: dict[str, Any]) -> str:
    fate = "accepted" if row["check"] is None else f"rejected at `{row['check']}`: {row['reason']}"
    head = f"Replica {row['replica']}, {row['completion_tokens']} tokens, ended by `{row['finish_reason']}`, {fate}:"
    return f"{head}\n\n```text\n{row['text']}\n```"


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return (f"{value:.3g}" if isinstance(value, float) else str(value)).replace("|", "\\|").replace("\n", " ")


def _json(value: Any) -> str:
    return "```json\n" + json.dumps(value, indent=1) + "\n```"


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1]))
