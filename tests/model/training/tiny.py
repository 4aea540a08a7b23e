"""A tiny random Llama with a character tokenizer, and files of examples: what the training tests train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from model.records import (
    EXAMPLE_SCHEMA,
    PROBLEM_SCHEMA,
    TEACHER_PLACE_SCHEMA,
    TEACHER_ROW_SCHEMA,
    Problem,
    TeacherPlace,
    TeacherRow,
    TrainingExample,
    context_digest,
    to_table,
)
from model.training.data import Row, TokenBatch
from model.training.documents import attend_by_document
from model.training.optimizer import Head
from model.training.parallel import World

ALONE = World(torch.device("cpu"))

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 +-=?:."
EOS = "<eos>"
PREFILL = "a: "


def make_tokenizer(letters: str = LETTERS) -> Any:
    """One token per character; end-of-turn and padding are the same token, as in many real models."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {EOS: 0, "<unk>": 1} | {letter: i for i, letter in enumerate(letters, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def make_model(seed: int = 0, vocabulary: int = 48, tied: bool = True, layers: int = 2) -> Any:
    """Grouped-query attention, tied embeddings, like the demo's student in small."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    attend_by_document(model)
    return model


def plain_logits(model: Any, batch: TokenBatch) -> torch.Tensor:
    """The logits of a batch's completion tokens, every row run whole and alone, [N, V]."""
    assert not any(batch.documents.before), "a row that shares its opening is not whole"
    rows = batch.tokens_T.split(batch.documents.lengths)
    logits_TV = torch.cat([model(input_ids=row[None]).logits[0] for row in rows])
    return logits_TV[batch.positions_N]


def head_of(model: Any) -> Head:
    """The head of a float32 model, whose gradient is the weight's own."""
    weight = model.get_output_embeddings().weight
    weight.grad = torch.zeros_like(weight)
    return Head(weight.detach(), weight.grad)


def save_tiny(folder: Path, seed: int = 0) -> Path:
    """A model folder as training reads it."""
    make_model(seed).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_examples(path: Path, count: int = 12) -> Path:
    """Sums of two digits, with completions of different lengths and worked turns for the teacher."""
    examples = []
    for i in range(count):
        one, other = i % 5, i % 3
        question = f"q: {one} + {other}? "
        completion = f"{PREFILL}{'so ' * (i % 4)}{one + other}."
        worked = "q: 1 + 1? a: 2. "
        examples.append(
            TrainingExample(f"sample-{i}", f"problem-{i}", question, worked + question, completion, str(one + other))
        )
    pq.write_table(to_table(examples, EXAMPLE_SCHEMA), path)
    return path


def write_problems(path: Path, count: int = 5) -> Path:
    """Problems with the same prompts."""
    problems = [Problem(f"problem-{i}", "math", "tiny", f"q: {i} + 1? ", str(i + 1)) for i in range(count)]
    pq.write_table(to_table(problems, PROBLEM_SCHEMA), path)
    return path


def teacher_row(sample: str, row: Row, ids_TK: Any, log_probs_TK: Any) -> TeacherRow:
    """What a teacher thought of one row's completion."""
    ids, log_probs = np.asarray(ids_TK, np.int32), np.asarray(log_probs_TK, np.float16)
    mass = float(np.exp(log_probs.astype(np.float32)).sum(-1).mean())
    digest = context_digest(row.context)
    return TeacherRow(sample, digest, row.completion, ids.reshape(-1), log_probs.reshape(-1), ids.shape[-1], mass)


def write_teacher_rows(folder: Path, rows: list[TeacherRow], rows_in_a_group: int = 2) -> Path:
    """The rows in one file, and the list of their places, whose path is returned."""
    pq.write_table(to_table(rows, TEACHER_ROW_SCHEMA), folder / "rows.parquet", row_group_size=rows_in_a_group)
    places = [TeacherPlace(row.sample_id, "rows.parquet", at, "") for at, row in enumerate(rows)]
    pq.write_table(to_table(places, TEACHER_PLACE_SCHEMA), folder / "places.parquet")
    return folder / "places.parquet"


class Never:
    """A stop that nobody asks for."""

    received = False
