"""Rewrite the verdicts in math_pairs.json from the code as it is: `python -m tests.golden.rewards.remake`.

The pairs are edited by hand in the JSON (a new one needs only gold and answer); read the diff before it is
committed.
"""

from __future__ import annotations

import json
from pathlib import Path

from model.rewards.math import judge_math

PAIRS = Path(__file__).with_name("math_pairs.json")


def main() -> None:
    golden = json.loads(PAIRS.read_text(encoding="utf-8"))
    lines = [json.dumps(_judged(pair["gold"], pair["answer"]), ensure_ascii=False) for pair in golden["pairs"]]
    body = ",\n".join(f"    {line}" for line in lines)
    remake = json.dumps(golden["remake"])
    PAIRS.write_text(f'{{\n  "remake": {remake},\n  "pairs": [\n{body}\n  ]\n}}\n', encoding="utf-8")


def _judged(gold: str, answer: str) -> dict[str, str]:
    judgement = judge_math(answer, gold)
    return {"gold": gold, "answer": answer, "verdict": str(judgement.verdict), "reason": judgement.reason}


if __name__ == "__main__":
    main()
