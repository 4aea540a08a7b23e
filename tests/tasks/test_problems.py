"""Problems: every kind of source, every kind of unusable row, and the split."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ProblemsError
from model.records import problem_id
from tasks.builtin_problems import BUILTIN_SETS, builtin_rows
from tasks.problems import (
    HELD_OUT,
    TRAIN,
    VALIDATION,
    ProblemReader,
    load_problems,
    normalise_prompt,
    prompt_hash,
    split_of,
)
from tasks.sources import Columns, ProblemSource, count_rows, default_label

SPLITS = (TRAIN, VALIDATION, HELD_OUT)
QUESTIONS = [f"Question {number}?" for number in range(1000)]


def jsonl(folder: Path, *lines: Any, name: str = "set.jsonl") -> ProblemSource:
    """A source of these lines: bytes as they are, anything else as JSON."""
    path = folder / name
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return ProblemSource("jsonl", path=str(path))


def rejected(source: ProblemSource) -> list[tuple[int, str]]:
    return [(reject.line, reject.reason) for reject in load_problems([source]).rejects]


GOOD = {"prompt": "1 + 1?", "gold": "2"}


# --- JSONL, and the meaning of a row ---------------------------------------------------------------


def test_jsonl(tmp_path: Path) -> None:
    loaded = load_problems([jsonl(tmp_path, GOOD, {"prompt": " 2 + 2? ", "gold": 4, "other": 1})])
    first, second = loaded.problems
    assert (first.prompt, first.gold, first.source, first.domain, first.split) == (
        "1 + 1?",
        "2",
        "set",
        "math",
        TRAIN,
    )
    assert first.problem_id == problem_id("math", "1 + 1?", "2")
    assert (second.prompt, second.gold) == ("2 + 2?", "4")
    assert loaded.rejects == []
    assert (loaded.counts["set"].rows, loaded.counts["set"].train) == (2, 2)


def test_every_unusable_row_is_reported_with_its_line_and_the_rest_is_loaded(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path,
        GOOD,
        b'{"prompt": "cut o',
        b"",
        b'["prompt"]',
        b'{"prompt": "caf\xe9"}',
        {"question": "no prompt"},
        {"prompt": None},
        {"prompt": "   "},
        {"prompt": 7},
        {"prompt": "x" * 32_001},
        {"prompt": "nul \0"},
        {"prompt": "fine", "gold": "nul \0"},
        {"prompt": "lone \ud800"},
        b"[" * 200_000,
        b'{"prompt": "big", "gold": ' + b"9" * 5000 + b"}",
        {"prompt": "last one", "gold": "1"},
    )
    assert rejected(source) == [
        (2, "malformed_json"),
        (4, "not_an_object"),
        (5, "not_utf8"),
        (6, "missing_prompt"),
        (7, "missing_prompt"),
        (8, "empty_prompt"),
        (9, "wrong_type"),
        (10, "prompt_too_long"),
        (11, "contains_nul"),
        (12, "contains_nul"),
        (13, "not_utf8"),
        (14, "malformed_json"),
        (15, "malformed_json"),
    ]
    assert [problem.prompt for problem in load_problems([source]).problems] == ["1 + 1?", "last one"]


def test_rejects_can_be_written_as_utf8_json(tmp_path: Path) -> None:
    source = jsonl(tmp_path, GOOD, b'{"prompt": "caf\xe9"}', {"prompt": "lone \ud800"}, {"prompt": "\0"})
    for reject in load_problems([source]).rejects:
        line = json.dumps(
            [reject.source, reject.line, reject.reason, reject.detail, reject.excerpt], ensure_ascii=False
        )
        assert line.encode("utf-8")
        assert reject.detail
        assert len(reject.excerpt) <= 500


def test_counts_add_up(tmp_path: Path) -> None:
    source = jsonl(tmp_path, GOOD, GOOD, b"{", {"prompt": "no gold"}, {"prompt": "blank gold", "gold": " "})
    counts = load_problems([source]).counts["set"]
    assert (counts.rows, counts.train, counts.held_out, counts.duplicates) == (5, 3, 0, 1)
    assert counts.rejected == {"malformed_json": 1}
    assert counts.empty_golds == 2


def test_a_gold_that_nobody_can_parse_is_kept(tmp_path: Path) -> None:
    assert load_problems([jsonl(tmp_path, {"prompt": "p", "gold": r"\frac{1}{"})]).problems[0].gold == r"\frac{1}{"


def test_same_prompt_with_another_gold_is_another_problem(tmp_path: Path) -> None:
    loaded = load_problems([jsonl(tmp_path, GOOD, {**GOOD, "gold": "3"})])
    assert len(loaded.problems) == 2


def test_byte_order_mark_windows_line_ends_and_gzip(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}'))
    loaded = load_problems([ProblemSource("jsonl", path=str(path))])
    assert [problem.prompt for problem in loaded.problems] == ["a", "b"]
    assert loaded.rejects == []


def test_damaged_gzip_ends_the_load_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-20])
    with pytest.raises(ProblemsError, match="is the file damaged"):
        load_problems([ProblemSource("jsonl", path=str(path))])


def test_line_over_the_limit_is_skipped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sources.MAX_LINE_BYTES", 64)
    source = jsonl(tmp_path, GOOD, {"prompt": "x" * 300}, {"prompt": "after"})
    assert rejected(source) == [(2, "line_too_long")]
    assert load_problems([source]).problems[1].prompt == "after"


def test_columns_dotted_names_and_metadata(tmp_path: Path) -> None:
    row = {
        "messages": [{"role": "user", "content": "Why?"}],
        "reward": {"truth": [1, 2]},
        "tests": {"inputs": ["1"]},
        "level": 5,
        "metadata": {"kept": True},
    }
    columns = {"prompt": "messages.0.content", "gold": "reward.truth", "metadata": ["level"]}
    source = {"type": "jsonl", "path": jsonl(tmp_path, row).path, "columns": columns}
    problem = load_problems([source]).problems[0]
    assert (problem.prompt, problem.gold, problem.tests) == ("Why?", "[1, 2]", '{"inputs": ["1"]}')
    assert json.loads(problem.metadata) == {"kept": True, "level": 5}


def test_a_dotted_name_that_leads_nowhere_is_a_missing_prompt(tmp_path: Path) -> None:
    rows = [{"m": []}, {"m": "text"}, {"m": {"0": 1}}, {"m": [{"content": "Why?"}]}]
    path = jsonl(tmp_path, *rows).path
    source = ProblemSource("jsonl", path=path, columns=Columns(prompt="m.0.content"))
    assert rejected(source) == [(1, "missing_prompt"), (2, "missing_prompt"), (3, "missing_prompt")]


def test_gold_pattern_takes_the_last_match(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "gold": "2 + 3 = 5\n#### 5"},
        {"prompt": "b", "gold": "#### 1\nno, wait\n#### 1,234 "},
        {"prompt": "c", "gold": "no mark"},
    ]
    path = jsonl(tmp_path, *rows).path
    loaded = load_problems([ProblemSource("jsonl", path=path, gold_pattern=r"####\s*(.+)")])
    assert [problem.gold for problem in loaded.problems] == ["5", "1,234", None]
    assert loaded.counts["set"].empty_golds == 1


def test_limit_counts_problems_not_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "a"}, b"{", {"prompt": "b"}, {"prompt": "c"}]
    path = jsonl(tmp_path, *rows).path
    loaded = load_problems([ProblemSource("jsonl", path=path, limit=2)])
    assert [problem.prompt for problem in loaded.problems] == ["a", "b"]
    assert loaded.counts["set"].rows == 4


def test_batches_hold_problems_and_rejects_in_row_order(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"prompt": "a"}, b"{", {"prompt": "b"}, {"prompt": "c"}, {"prompt": "d"})
    batches = list(ProblemReader([source], batch_size=2))
    assert [(len(batch.problems), len(batch.rejects)) for batch in batches] == [(1, 1), (2, 0), (1, 0)]


def test_a_reader_can_be_read_again(tmp_path: Path) -> None:
    reader = ProblemReader([jsonl(tmp_path, GOOD, GOOD)])
    assert [len(batch.problems) for batch in reader] == [len(batch.problems) for batch in reader] == [1]
    assert reader.counts["set"].rows == 2


def test_memory_stays_flat(tmp_path: Path) -> None:
    """16 MB of rows, read in batches of 100: a load that kept them would pass 16 MB."""
    path = tmp_path / "big.jsonl"
    with path.open("w") as stream:
        for number in range(8_000):
            stream.write(json.dumps({"prompt": f"{number} " + "x" * 2000}) + "\n")
    tracemalloc.start()
    total = sum(len(batch.problems) for batch in ProblemReader([ProblemSource("jsonl", path=str(path))], 100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 8_000
    assert peak < 6_000_000


@given(content=st.binary(max_size=200), kind=st.sampled_from(["jsonl", "csv"]))
@settings(max_examples=150, deadline=None)
def test_no_bytes_stop_a_load(tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str) -> None:
    """A good first row, then anything: the good row is loaded, and every row is accounted for."""
    path = tmp_path_factory.mktemp("fuzz") / f"set.{kind}"
    first = b'{"prompt": "good"}\n' if kind == "jsonl" else b"prompt\ngood\n"
    path.write_bytes(first + content)
    loaded = load_problems([ProblemSource(kind, path=str(path))])
    counts = loaded.counts["set"]
    assert loaded.problems[0].prompt == "good"
    assert counts.rows == counts.loaded + counts.duplicates + sum(counts.rejected.values())
    assert len(loaded.rejects) == sum(counts.rejected.values())


# --- CSV -------------------------------------------------------------------------------------------


def csv_source(folder: Path, content: bytes, **settings: Any) -> ProblemSource:
    path = folder / "set.csv"
    path.write_bytes(content)
    return ProblemSource("csv", path=str(path), **settings)


def test_csv(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfprompt,gold\r\n"two\nlines, one question",1\r\n\r\nsecond,\r\n'
    loaded = load_problems([csv_source(tmp_path, content)])
    assert [(problem.prompt, problem.gold) for problem in loaded.problems] == [
        ("two\nlines, one question", "1"),
        ("second", None),
    ]


def test_csv_unusable_rows(tmp_path: Path) -> None:
    content = b'prompt,gold\n"two\nlines",1\nonly one\na,b,c\ncaf\xe9,1\n"bad"quote,1\n\0,1\n,1\nlast,1\n'
    source = csv_source(tmp_path, content)
    assert rejected(source) == [
        (4, "wrong_column_count"),
        (5, "wrong_column_count"),
        (6, "not_utf8"),
        (7, "malformed_csv"),
        (8, "contains_nul"),
        (9, "empty_prompt"),
    ]
    assert [problem.prompt for problem in load_problems([source]).problems] == ["two\nlines", "last"]


def test_csv_open_quote_at_the_end_is_one_reject(tmp_path: Path) -> None:
    assert rejected(csv_source(tmp_path, b'prompt,gold\na,1\n"never closed,2\n')) == [(3, "malformed_csv")]


def test_csv_long_field(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["prompt", "tests"], ["p", "t" * 200_000]])
    assert len(load_problems([ProblemSource("csv", path=str(path))]).problems[0].tests or "") == 200_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty: a CSV file begins with a line of column names"),
        (b"promt,gold\na,1\n", "has no column `prompt`; did you mean `promt`? (columns: promt, gold)"),
        (b"prompt,gold\n", "holds no problems: it has no rows"),
        (b'"promp', "does not begin with a line of CSV column names"),
    ],
)
def test_csv_that_is_not_one(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(ProblemsError) as caught:
        load_problems([csv_source(tmp_path, content)])
    assert says in str(caught.value)


def test_a_column_named_on_purpose_must_be_there(tmp_path: Path) -> None:
    source = csv_source(tmp_path, b"prompt,answer\na,1\n", columns=Columns(gold="anwser"))
    with pytest.raises(ProblemsError, match="no column `anwser`; did you mean `answer`"):
        load_problems([source])


# --- Parquet and Hugging Face ----------------------------------------------------------------------


def parquet_source(folder: Path, table: pa.Table, **settings: Any) -> ProblemSource:
    path = folder / "set.parquet"
    pq.write_table(table, path, row_group_size=2)
    return ProblemSource("parquet", path=str(path), **settings)


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"question": ["a", None, "", "d"], "answer": [1, 2, 3, 4], "wide": ["x"] * 4})
    source = parquet_source(tmp_path, table, columns=Columns("question", "answer"))
    assert [(problem.prompt, problem.gold) for problem in load_problems([source]).problems] == [
        ("a", "1"),
        ("d", "4"),
    ]
    assert rejected(source) == [(2, "missing_prompt"), (3, "empty_prompt")]


def test_parquet_text_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    prompts = pa.array([b"a", b"caf\xe9", b"c"], pa.binary()).view(pa.string())
    source = parquet_source(tmp_path, pa.table({"prompt": prompts}))
    assert rejected(source) == [(2, "not_utf8")]


def test_not_parquet(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    path.write_text("prompt\n")
    with pytest.raises(ProblemsError, match="not a Parquet file"):
        load_problems([ProblemSource("parquet", path=str(path))])


def test_hugging_face_folder(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "a", "answer": "x #### 1"}\n{"question": "", "answer": ""}\n')
    source = ProblemSource(
        "hf",
        name=str(tmp_path),
        split="test",
        columns=Columns("question", "answer"),
        gold_pattern=r"####\s*(.+)",
    )
    loaded = load_problems([source])
    assert [(problem.prompt, problem.gold) for problem in loaded.problems] == [("a", "1")]
    assert [reject.line for reject in loaded.rejects] == [2]


def test_hugging_face_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"prompt": ["a"], "gold": ["1"]})})
    saved.save_to_disk(str(tmp_path / "set"))
    source = ProblemSource("hf", name=str(tmp_path / "set"))
    assert load_problems([source]).problems[0].prompt == "a"
    with pytest.raises(ProblemsError, match="no split `test`; there are: train"):
        load_problems([ProblemSource("hf", name=str(tmp_path / "set"), split="test")])


def test_hugging_face_folder_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(ProblemsError, match="cannot open dataset"):
        load_problems([ProblemSource("hf", name=str(tmp_path))])


# --- sources as a whole ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_missing_file_and_folder(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ProblemsError, match="no such problems file"):
        load_problems([ProblemSource(kind, path=str(tmp_path / "none"))])
    with pytest.raises(ProblemsError, match="is a folder"):
        load_problems([ProblemSource(kind, path=str(tmp_path))])


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    source = jsonl(tmp_path, b"{", {"prompt": ""})
    with pytest.raises(ProblemsError, match="not one usable problem in 2 rows; first: line 1, malformed_json"):
        load_problems([source])


def test_no_source() -> None:
    with pytest.raises(ProblemsError, match="no problem source given"):
        load_problems([])


def test_a_source_of_nothing_but_duplicates_is_no_error(tmp_path: Path) -> None:
    sources = [jsonl(tmp_path, GOOD, name="a.jsonl"), jsonl(tmp_path, GOOD, name="b.jsonl")]
    assert load_problems(sources).counts["b"].duplicates == 1


def test_two_sources_of_one_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="distinct labels"):
        load_problems([jsonl(tmp_path, GOOD), jsonl(tmp_path, GOOD)])


def test_settings_that_no_source_has() -> None:
    with pytest.raises(ValueError, match="no such setting of a problem source: paht"):
        ProblemSource.of({"type": "jsonl", "paht": "x"})


@pytest.mark.parametrize(
    ("kind", "location", "label"),
    [
        ("hf", "org/GSM8K-v1.1", "GSM8K-v1.1"),
        ("hf", "data/folder/", "folder"),
        ("jsonl", "data/train.jsonl.gz", "train"),
        ("csv", "my file.csv", "my-file"),
        ("builtin", "sums-2x1", "sums-2x1"),
    ],
)
def test_labels(kind: str, location: str, label: str) -> None:
    assert default_label(kind, location) == label


def test_rows_are_counted_where_that_is_cheap(tmp_path: Path) -> None:
    assert count_rows(jsonl(tmp_path, GOOD, b"", GOOD)) == (2, "lines of the file")
    assert count_rows(csv_source(tmp_path, b"prompt\na\nb\n"))[0] == 2
    assert count_rows(parquet_source(tmp_path, pa.table({"prompt": ["a"] * 5})))[0] == 5
    assert count_rows(ProblemSource("builtin", name="products-1x1"))[0] == 100
    assert count_rows(ProblemSource("hf", name="org/set", expected_rows=7)) == (7, "expected_rows")
    assert count_rows(ProblemSource("hf", name="org/set"))[0] is None


def test_rows_of_a_large_file_are_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = jsonl(tmp_path, *[GOOD] * 1000)
    monkeypatch.setattr("tasks.sources._COUNTED_WHOLE_BYTES", 10)
    monkeypatch.setattr("tasks.sources._PROBE_BYTES", 3500)
    rows, origin = count_rows(source)
    assert rows == pytest.approx(1000, abs=15)
    assert origin.startswith("estimated")


# --- the split -------------------------------------------------------------------------------------


def test_share_of_the_split() -> None:
    """1,000 prompts at 0.3: 300 expected, standard deviation 14.5."""
    held_out = sum(split_of(question, 0.3) == HELD_OUT for question in QUESTIONS)
    assert 256 < held_out < 344


def test_split_at_the_ends() -> None:
    assert {split_of(question, 0.0) for question in QUESTIONS} == {TRAIN}
    assert {split_of(question, 1.0) for question in QUESTIONS} == {HELD_OUT}


def test_a_larger_share_keeps_what_a_smaller_one_held_out() -> None:
    small = {question for question in QUESTIONS if split_of(question, 0.1) == HELD_OUT}
    large = {question for question in QUESTIONS if split_of(question, 0.3) == HELD_OUT}
    assert small < large


def test_split_is_golden() -> None:
    """Frozen: if this moves, every dataset's held-out questions move into training."""
    held_out = [number for number, question in enumerate(QUESTIONS[:20]) if split_of(question, 0.3) == HELD_OUT]
    assert held_out == [3, 6, 7, 15, 18, 19]


def test_validation_takes_from_training_alone() -> None:
    """The 20 questions above: held out as they were, and of the other 14 those with the highest hashes."""
    with_validation = [split_of(question, 0.3, 0.25) for question in QUESTIONS[:20]]
    assert [n for n, split in enumerate(with_validation) if split == HELD_OUT] == [3, 6, 7, 15, 18, 19]
    for_validation = {n for n, split in enumerate(with_validation) if split == VALIDATION}
    assert for_validation == {n for n in range(20) if prompt_hash(QUESTIONS[n]) >= 0.75 * 2**64}
    assert 0 < len(for_validation) < 14
    assert {split_of(question, 0.0, 1.0) for question in QUESTIONS} == {VALIDATION}
    assert {split_of(question, 0.6, 0.6) for question in QUESTIONS} == {HELD_OUT, VALIDATION}


def test_no_prompt_is_both_learned_and_for_validation(tmp_path: Path) -> None:
    """One source keeps all its questions for validation, another trains on half of them, with golds of its own."""
    mine = jsonl(tmp_path, *({"prompt": q, "gold": "1"} for q in QUESTIONS[:40]), name="mine.jsonl").path
    other = jsonl(tmp_path, *({"prompt": q.upper(), "gold": "2"} for q in QUESTIONS[20:60]), name="other.jsonl").path
    settings = {"type": "jsonl", "held_out": 0.3}
    splits = [
        load_problems([{**settings, "path": other, **more}, {**settings, "path": mine, "validation": 0.7}])
        for more in ({}, {"held_out": 0.5})
    ]
    for loaded in splits:
        of = {name: {normalise_prompt(p.prompt) for p in loaded.problems if p.split == name} for name in SPLITS}
        assert len(of[TRAIN] | of[VALIDATION] | of[HELD_OUT]) == 60
        assert sum(map(len, of.values())) == 60
        assert of[VALIDATION]


@pytest.mark.parametrize("other", ["what  is\n2 + 2?", "What is 2 + 2? ", "ＷＨＡＴ is 2 ＋ 2?"])
def test_spellings_of_one_question_share_a_split(other: str) -> None:
    assert normalise_prompt(other) == normalise_prompt("What is 2 + 2?")
    assert split_of(other, 0.5) == split_of("What is 2 + 2?", 0.5)


def test_adding_a_source_moves_no_problem(tmp_path: Path) -> None:
    first = [{"prompt": question} for question in QUESTIONS[:200]]
    second = [{"prompt": question} for question in QUESTIONS[150:400]]
    settings = {"type": "jsonl", "held_out": 0.3}
    a = {**settings, "path": jsonl(tmp_path, *first, name="a.jsonl").path}
    b = {**settings, "path": jsonl(tmp_path, *second, name="b.jsonl").path}
    alone = {problem.prompt: problem.split for problem in load_problems([a]).problems}
    together = {problem.prompt: problem.split for problem in load_problems([b, a]).problems}
    assert len(together) == 400
    assert all(together[prompt] == split for prompt, split in alone.items())


def test_a_benchmark_takes_its_questions_out_of_training(tmp_path: Path) -> None:
    """Wherever it stands in the recipe, and also where the gold is written differently."""
    rows = [{"prompt": "shared", "gold": "1.0"}, {"prompt": "own", "gold": "2"}]
    train = jsonl(tmp_path, *rows, name="train.jsonl")
    path = jsonl(tmp_path, {"prompt": "Shared", "gold": "1"}, name="benchmark.jsonl").path
    loaded = load_problems([train, ProblemSource("jsonl", path=path, held_out=1.0)])
    assert {(problem.prompt, problem.split) for problem in loaded.problems} == {
        ("Shared", HELD_OUT),
        ("shared", HELD_OUT),
        ("own", TRAIN),
    }
    assert loaded.counts["train"].held_out == 1


# --- built-in sets ---------------------------------------------------------------------------------


def test_one_digit_sums_are_all_there() -> None:
    rows = list(builtin_rows("sums-2x1"))
    expected = {f"Calculate {a} {sign} {b}." for a in range(10) for b in range(10) for sign in "+-"}
    assert {row["prompt"] for row in rows} == expected
    assert len(rows) == BUILTIN_SETS["sums-2x1"].size == 200
    golds = {row["prompt"]: row["gold"] for row in rows}
    assert golds["Calculate 2 - 8."] == "-6"
    assert golds["Calculate 9 + 9."] == "18"


@pytest.mark.parametrize("name", [name for name, known in BUILTIN_SETS.items() if known.domain == "math"])
def test_golds_are_right(name: str) -> None:
    """Worked out here from the question's own digits, not by the package that made it."""
    for problem in load_problems([ProblemSource("builtin", name=name, limit=100)]).problems:
        assert problem.gold == str(by_hand(problem.prompt))
        assert json.loads(problem.metadata)["family"] == name


def by_hand(prompt: str) -> int:
    first, *rest = prompt.removeprefix("Calculate ").removesuffix(".").split()
    result = int(first)
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = {"+": result + int(term), "-": result - int(term), "*": result * int(term)}[sign]
    return result


def test_a_larger_limit_only_adds() -> None:
    ten, twenty = (load_problems([ProblemSource("builtin", name="sums-2x2", limit=n)]).problems for n in (10, 20))
    assert twenty[:10] == ten
    assert len({problem.prompt for problem in twenty}) == 20


def test_first_questions_are_golden() -> None:
    """Frozen: `limit = 2` of an old recipe must mean the same problems tomorrow."""
    loaded = load_problems([ProblemSource("builtin", name="sums-3x1", limit=2)])
    assert [problem.prompt for problem in loaded.problems] == ["Calculate 4 - 1 - 7.", "Calculate 1 - 5 - 2."]


def test_unknown_set() -> None:
    with pytest.raises(ProblemsError, match="no built-in problem set `sums`; there are: sums-2x1"):
        load_problems([ProblemSource("builtin", name="sums")])
