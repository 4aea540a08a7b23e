"""Two tokenizers on one text: which places are compared, and that a student learns from another family's teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.training.cross_tokenizer import CrossTokenizerStage, partners, token_starts
from model.training.forward import backward
from model.training.job import DistillJob, JobError, Precision, job_from
from model.training.runner import run_job
from tests.model.training.tiny import ALONE, EOS, LETTERS, PREFILL, Never, head_of, make_model, make_tokenizer

WORDS = ("so ", "a: ", "q: ")


def word_tokenizer() -> Any:
    """Some words of three letters in one token, all other letters by themselves."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {EOS: 0, "<unk>": 1} | {text: i for i, text in enumerate((*WORDS, *LETTERS), start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join((*WORDS, "."))), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, unk_token="<unk>")


@pytest.fixture(scope="module")
def word_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with more tokens than the student."""
    folder = tmp_path_factory.mktemp("words")
    make_model(seed=4, vocabulary=56).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def make_job(init: Path, teacher: Path, examples: Path, out: Path, **settings: Any) -> DistillJob:
    base = {"prefill": PREFILL, "dtype": Precision.FLOAT32, "divergence": "uld", "tokens_per_batch": 200}
    paths = {"init": str(init), "teacher": str(teacher), "examples": str(examples), "out": str(out)}
    job = job_from(DistillJob, paths | base | settings)
    assert isinstance(job, DistillJob)
    return job


def test_tokens_that_begin_at_the_same_character_are_partners() -> None:
    """s|o| |s|o| |7|. and "so "|"so "|7|. with the end of turn."""
    letters, words = make_tokenizer(), word_tokenizer()
    assert token_starts(words, "so so 7.") == [0, 3, 6, 7, 8]
    assert partners(token_starts(letters, "so so 7."), token_starts(words, "so so 7.")) == [
        0,
        -1,
        -1,
        1,
        -1,
        -1,
        2,
        3,
        4,
    ]
    assert partners(token_starts(words, "so so 7."), token_starts(letters, "so so 7.")) == [0, 3, 6, 7, 8]
    assert partners([0], [0]) == [0]


def test_a_token_within_a_character_has_no_partner() -> None:
    """Two tokens that share the second of three characters: the second of them begins within it."""

    def shares(_text: str, **_: Any) -> dict[str, Any]:
        return {"offset_mapping": [(0, 1), (1, 2), (1, 2), (2, 3)]}

    assert token_starts(shares, "añb") == [0, 1, -1, 2, 3]
    assert partners([0, 1, 2, 3], token_starts(shares, "añb")) == [0, 1, 3, 4]


def test_a_blank_that_is_left_out_of_a_tokens_extent_belongs_to_it() -> None:
    def trims(_text: str, **_: Any) -> dict[str, Any]:
        return {"offset_mapping": [(0, 2), (3, 5)]}

    assert token_starts(trims, "so so") == [0, 2, 5]


def test_a_place_where_several_tokens_begin_is_not_compared() -> None:
    assert partners([0, 0, 1, 2], [0, 1, 2]) == [-1, -1, 1, 2]
    assert partners([0, 1, 2], [0, 0, 1, 2]) == [-1, 2, 3]


def test_slow_tokenizers_are_refused() -> None:
    def cannot(_text: str, **_: Any) -> None:
        raise NotImplementedError

    with pytest.raises(JobError, match="fast ones"):
        token_starts(cannot, "so")


def test_a_teacher_like_the_student_adds_nothing(tiny_folder: Path, examples_file: Path, tmp_path: Path) -> None:
    """Same tokenizer, weights and prompt: every place is compared, and cross-entropy is left."""
    stage = CrossTokenizerStage(
        make_job(tiny_folder, tiny_folder, examples_file, tmp_path, normalise="token"), make_tokenizer(), ALONE, Never()
    )
    stage.teacher_row = stage.row  # type: ignore[method-assign]
    stage.teacher.prefix, stage.teacher.layers = [], []
    student = make_model()
    for micro in stage.prepare(1).micro_batches:
        loss, sums = backward(student, micro.tokens, micro.kernel, head_of(student))
        assert sums["uld"] == pytest.approx(0.0, abs=1e-4)
        assert sums["aligned_share"] == micro.tokens.token_count
        assert loss == pytest.approx((micro.tokens.weights_N[0] * sums["cross_entropy"]).item(), rel=1e-4)


def test_each_token_is_compared_with_its_own_partner(
    tiny_folder: Path, word_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    """Over several rows: the partner's next token opens with the student's next letter."""
    stage = CrossTokenizerStage(
        make_job(tiny_folder, word_folder, examples_file, tmp_path), make_tokenizer(), ALONE, Never()
    )
    indices = [3, 0, 6]
    theirs = [token for i in indices for token in stage.teacher_row(i).completion]
    own = [token for i in indices for token in stage.row(i).completion]
    letters, words = make_tokenizer(), word_tokenizer()
    assert stage.partners_of([]).tolist() == []  # a process may have nothing to do
    pairs = [(own[n], theirs[at]) for n, at in enumerate(stage.partners_of(indices).tolist()) if at >= 0]
    assert 0 < len(pairs) < len(own)
    for one, other in pairs:
        assert words.decode([other]).startswith(letters.decode([one]))


def test_a_student_learns_from_another_familys_teacher(
    tiny_folder: Path, word_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    settings = {"epochs": 20, "learning_rate": 3e-3, "warmup_share": 0.0, "uld_weight": 5.0, "threads": 1}
    job = make_job(tiny_folder, word_folder, examples_file, tmp_path / "out", **settings)
    run_job(job, Never())
    lines = [json.loads(line) for line in (job.out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert 0 < lines[-1]["aligned_share"] < 1
    assert all(0 <= line["uld"] <= 2 for line in lines)


def test_without_the_option_another_vocabulary_is_refused_and_the_option_named(
    tiny_folder: Path, word_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    job = make_job(tiny_folder, word_folder, examples_file, tmp_path / "out", divergence="forward")
    with pytest.raises(JobError, match='divergence = "uld"'):
        run_job(job, Never())


def test_it_has_no_temperature(tiny_folder: Path, examples_file: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="temperature = 1 only"):
        make_job(tiny_folder, tiny_folder, examples_file, tmp_path, temperature=2.0)
