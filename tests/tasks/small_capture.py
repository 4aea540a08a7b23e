"""Twelve small examples and a teacher to ask about them; by itself it captures them two by two, to be killed.

python -m tests.tasks.small_capture DATASET URL EXAMPLES
"""

from __future__ import annotations

import sys
from pathlib import Path

from model.sampling.request import SamplingParams
from tasks import capture
from tasks.capture import Questions, capture_shard
from tasks.engine import Engine, EngineSpec
from tasks.progress import ticking
from tasks.run import Run
from tasks.store import Dataset
from tests.model.training.tiny import PREFILL, make_tokenizer

K = 4


def make_engine(url: str, log_path: Path) -> Engine:
    return Engine(
        EngineSpec("fake", urls=(url,)), SamplingParams(0.0), concurrency=2, timeout_seconds=20, log_path=log_path
    )


def make_questions(engine: Engine, examples: Path, k: int = K, max_length: int = 512) -> Questions:
    questions = Questions(engine, "fake", "r1", k, make_tokenizer())
    questions.read(examples, make_tokenizer(), PREFILL, max_length)
    return questions


def ask(run: Run, questions: Questions) -> list[int]:
    """What the flow does: plans and carries out; the shards that were made."""
    questions.plan(run.dataset)
    with ticking("capture", None, "examples") as ticker:
        return [capture_shard.fn(run, questions, shard, ticker) for shard in questions.shards]


if __name__ == "__main__":
    capture.SHARD_EXAMPLES = 2
    own = Run(Dataset.create(sys.argv[1]), "run-1")
    with make_engine(sys.argv[2], Path(sys.argv[1]) / "vllm.log") as teacher:
        ask(own, make_questions(teacher, Path(sys.argv[3])))
