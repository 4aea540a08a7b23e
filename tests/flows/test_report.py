"""The report is one page that stands alone, says what the dataset says, and shows hostile text as text."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flows import page as pages
from flows import report
from flows.report import page, suites, write_report
from model.errors import RecipeError, SamplerError, StoreError
from model.records import PlannedSample, problem_id
from tasks import durable
from tasks.attempts import attempt
from tasks.catalog import connect, run_sql
from tasks.store import Dataset
from tasks.summary import CURRENT
from tasks.work import GENERATE
from tests.tasks.small_dataset import evaluate, generate, judge, make_dataset, plan, problem, write_problems

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = "\n<script>alert(1)</script></pre></details></textarea><!-- ]]> {{ 7 * 7 }} &lt; \x00 \x1b[31m"
LONG = "<b>" + "x" * (1 << 20)


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, text by element, and whether all tags are closed."""

    def __init__(self, html: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.pieces: dict[str, list[str]] = {}
        self.text = ""
        self.feed(html.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.pieces.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        for tag in set(self.open):
            self.pieces[tag][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"no comments are written: {data}")

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def rows(self) -> list[list[str]]:
        """Texts of the cells of every table row, in order."""
        cells = iter(" ".join(cell.split()) for cell in self.pieces["td"])
        found: list[list[str]] = []
        for tag, _ in self.elements:
            if tag == "tr":
                found.append([])
            elif tag == "td":
                found[-1].append(next(cells))
        return [row for row in found if row]


def text_of(row: PlannedSample) -> str | None:
    return {0: HOSTILE, 1: LONG}.get(row.replica)


def bind(dataset: Dataset, **more: Any) -> None:
    recipe = {"name": "a <recipe>", "accept": {"require": ["math"]}, "evaluate": {"confidence": 0.9}}
    dataset.bind({}, recipe | more)


def make(path: Path) -> Dataset:
    """Three problems of four samples: two right, one wrong, one in error; one shard failed before it went well."""
    dataset = make_dataset(path)
    bind(dataset)
    said = {0: "pass", 1: "fail", 2: "error", 3: "pass"}
    for shard in plan(dataset, replicas=4, shard_size=4):
        generate(dataset, shard, text=text_of)
        judge(dataset, shard, "math", lambda row: said[row.replica], reasons={"fail": "not_equal"})
    with pytest.raises(ValueError, match="refused"), attempt(dataset, "generate", 0, "run"):
        raise ValueError("refused <img src=x>\nsecond line")
    return dataset


def teach(dataset: Dataset) -> None:
    """A student that validated, and three evaluated models of which one is not the recipe's."""
    folder = dataset.file("students/sft")
    folder.mkdir(parents=True)
    steps = [json.dumps({"step": n, "total_steps": 2, "loss": 1 / n}) for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join([*steps, '{"step": 3, "lo']))
    validations = [{"step": 0, "pass@1": 0.25, "problems": 4}, {"step": 2, "pass@1": 0.5, "problems": 4}]
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, validations)))
    evaluate(dataset, "k0", "teacher", 0, "all", 0.5)
    evaluate(dataset, "k1", "sft", 2, "all", 0.25, 1)
    evaluate(dataset, "k2", "<b>own</b>", 0, "all", 0.625, 2)
    evaluate(dataset, "k3", "teacher", 0, "validation", 0.75, 3)
    dataset.write_text(CURRENT, json.dumps({"keys": ["k0", "k1"], "require": ["math"]}))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A dataset without a student, for this test alone."""
    return make(tmp_path / "data set")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset with a student, which no test changes."""
    dataset = make(tmp_path_factory.mktemp("report") / "data set")
    teach(dataset)
    return dataset


@pytest.fixture(scope="module")
def found(taught: Dataset) -> Page:
    """The page of it."""
    return Page(page(taught.path))


def test_an_empty_dataset_says_so(tmp_path: Path) -> None:
    dataset = Dataset.create(tmp_path / "data")
    bind(dataset)
    text = Page(page(dataset.path)).text
    for said in ("Nothing is generated yet, and no problems are loaded", "No student is trained", "No model is evalu"):
        assert said in text
    write_problems(dataset, [problem(0)])
    assert "no problems are loaded" not in Page(page(dataset.path)).text


def test_the_page_says_what_the_dataset_says(found: Page) -> None:
    assert "a <recipe>" in found.text
    assert "no run is working on it" in found.text
    assert ["math error 3, not_equal 3", "6", "", "50.0 %", "6"] in found.rows()
    assert ["math", "error", "3", "", "25.0 %"] in found.rows()
    assert ["sums", "3", "12", "66.7 %", "0", "3", "0", ""] in found.rows()
    assert ["accepted", "6", "5", "5", "5", "5", "30"] in found.rows()
    assert ["generate", "ValueError: refused <img src=x>", "1", "1"] in [row[:4] for row in found.rows()]


def test_evaluations_stand_with_interval_and_picture(found: Page) -> None:
    assert "their 90 % intervals" in found.text
    shown = [row for row in found.rows() if row[-2:] == ["5", "10"]]
    assert [row[:3] for row in shown] == [
        ["teacher, shown worked turns", "", "50.0 [40.0, 60.0]"],
        ["after SFT on accepted samples step 2", "", "25.0 [15.0, 35.0]"],
        ["<b>own</b>", "", "62.5 [52.5, 72.5]"],
    ]
    # The axis of the recipe's own ends at 60 %, that of the other at 80 %.
    styles = found.attributes("style")
    assert {"left: 66.67%; width: 33.33%", "left: 83.33%", "left: 25.00%; width: 33.33%", "left: 41.67%"} <= set(styles)
    assert "left: 78.12%" in styles
    assert (
        found.text.index("after SFT") < found.text.index("Other models and earlier steps") < found.text.index("<b>own")
    )


def test_curves_come_with_their_lines_to_compare_with(found: Page) -> None:
    [source] = found.attributes("src")
    head, _, picture = source.partition(",")
    assert head == "data:image/svg+xml;base64"
    svg = base64.b64decode(picture).decode()
    for label in ("sft: step 2 of 2", "validation (4 problems)", "base 0.25", "teacher 0.75", ">loss<"):
        assert label in svg


def test_before_the_first_whole_evaluation_what_is_measured_is_shown(dataset: Dataset) -> None:
    text = Page(page(dataset.path)).text
    assert "No student is trained yet." in text
    assert "No model is evaluated yet." in text
    evaluate(dataset, "k1", "sft", 2, "all", 0.25, 1)
    text = Page(page(dataset.path)).text
    assert "after SFT on accepted samples" in text
    assert "Other models" not in text


def test_the_page_stands_alone(found: Page) -> None:
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in found.elements}
    assert all(source.startswith("data:image/svg+xml;base64,") for source in found.attributes("src"))
    ids = found.attributes("id")
    assert len(ids) == len(set(ids))
    assert {f"#{name}" for name in ids} == set(found.attributes("href"))
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in found.attributes("content")
    assert not any("url(" in style for style in [*found.pieces["style"], *found.attributes("style")])


def test_hostile_text_is_shown_as_text(found: Page) -> None:
    shown = HOSTILE.replace("\x00", "␀").replace("\x1b", "␛")
    assert "\n" + shown in found.pieces["pre"]  # a browser drops the first line feed of a `pre`
    assert "\n" + LONG[: pages.LONGEST_TEXT] in found.pieces["pre"]
    assert f"{len(LONG) - pages.LONGEST_TEXT:,} more characters are left out here." in found.text
    assert not {"script", "textarea", "b", "recipe"} & {tag for tag, _ in found.elements}


def test_what_no_file_can_hold_is_replaced(tmp_path: Path) -> None:
    """JSON can name half a character; so can a recipe's text."""
    dataset = make_dataset(tmp_path / "data")
    record = {"format": 1, "identity": {}, "recipe": {"name": "half \ud800 </title>"}}
    dataset.write_text("recipe.json", json.dumps(record))
    assert "half \ufffd </title>: report" in Page(page(dataset.path)).pieces["title"]


def test_a_password_in_an_address_is_not_handed_on(dataset: Dataset) -> None:
    bind(dataset, teacher={"urls": ["https://me:secret@host/v1", "https://host/v1?at=a@b"]})
    text = Page(page(dataset.path)).text
    assert "https://…@host/v1" in text
    assert "https://host/v1?at=a@b" in text
    assert "secret" not in text


def test_nor_one_in_an_error_of_an_attempt(dataset: Dataset) -> None:
    told = SamplerError("https://me:secret@host/v1 answered HTTP 401")
    with pytest.raises(SamplerError), attempt(dataset, GENERATE, 0, "run-1"):
        raise told
    text = Page(page(dataset.path)).text
    assert "https://…@host/v1 answered HTTP 401" in text
    assert "secret" not in text


def test_every_query_on_the_page_can_be_asked(taught: Dataset, found: Page) -> None:
    con = connect(taught)
    asked = [shlex.split(text) for text in found.pieces["pre"] if text.startswith("\nstillhouse sql")]
    assert len(asked) > 9
    for program, verb, folder, query in asked:
        assert (program, verb, folder) == ("stillhouse", "sql", str(taught.path))
        run_sql(con, query)
    for query in report.QUERIES.values():
        run_sql(con, query)
    rows = run_sql(con, report.QUERIES["reasons"]).to_pylist()
    assert {(row["reason"], row["samples"]) for row in rows} == {("error", 3), ("not_equal", 3)}


def test_a_dataset_that_grows_is_read_as_it_is(dataset: Dataset) -> None:
    """Three of six shards are planned only, and a run holds the dataset."""
    fourth = replace(problem(3), prompt="<i>", problem_id=problem_id("math", "<i>", "4"))
    write_problems(dataset, [problem(0), problem(1), problem(2), fourth])
    plan(dataset, replicas=6, shard_size=4)
    with dataset.lock("run-2"), attempt(dataset, "generate", 3, "run-2"):
        found = Page(page(dataset.path))
    assert "a run is working on it, so it grows" in found.text
    [generated] = [row for row in found.rows() if row[:2] == ["generate", "6"]]
    assert generated[2:5] == ["3", "1", "2"]


def test_nothing_but_the_page_is_written(dataset: Dataset, tmp_path: Path) -> None:
    teach(dataset)
    before = checksums(dataset.path)
    assert write_report(dataset.path) == dataset.path / "report.html"
    after = checksums(dataset.path)
    assert after.pop("report.html")
    assert after == before
    elsewhere = tmp_path / "new" / "page.html"
    assert write_report(dataset.path, elsewhere) == elsewhere
    assert [path.name for path in elsewhere.parent.iterdir()] == ["page.html"]


def test_a_report_replaces_no_file_of_the_dataset(dataset: Dataset) -> None:
    for name in ("recipe.json", "problems/000000.parquet"):
        with pytest.raises(RecipeError, match="among the dataset's own files"):
            write_report(dataset.path, dataset.file(name))


def test_a_page_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "page.html"
    durable.write_beside(target, b"whole")
    with pytest.raises(StoreError, match="choose another folder"):
        durable.write_beside(tmp_path, b"a folder is no file")

    def full(_scratch: Path, target: Path) -> None:
        raise StoreError(f"the disk is full: {target}")

    monkeypatch.setattr(durable, "publish", full)
    with pytest.raises(StoreError):
        durable.write_beside(target, b"half")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"page.html": b"whole"}


def test_the_command_prints_where_the_page_is(dataset: Dataset) -> None:
    def command(*words: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "flows.cli", "report", *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    done = command(dataset.path)
    assert (done.returncode, done.stdout.strip()) == (0, str(dataset.path / "report.html"))
    assert (dataset.path / "report.html").read_bytes().startswith(b"<!doctype html>\n<html")
    refused = command(dataset.path, "--out", dataset.path / "recipe.json")
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert line.startswith("RecipeError: --out")


def test_metrics_and_axis_of_a_suite() -> None:
    """Metrics by kind and number; the axis ends at the next tenth above the highest interval."""

    def row(suite: str, metric: str, high: float) -> dict[str, Any]:
        return {"model": "m", "step": 0, "suite": suite, "metric": metric, "value": 0.0, "low": 0.0, "high": high}

    hard, everything = suites(
        [row("hard", "cons@8", 0.2), row("hard", "pass@16", 0.01), row("hard", "pass@2", 0.3), row("all", "pass@1", 1)]
    )[::-1]
    assert (everything.name, everything.shown, everything.end) == ("all", "pass@1", 1.0)
    assert (hard.metrics, hard.shown, hard.end) == (["pass@2", "pass@16", "cons@8"], "pass@2", 0.3)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (pages.count(1104), "1,104"),
        (pages.count(23_872_000), "23.9 M"),
        (pages.count(None), "–"),
        (pages.percent(0.5081), "50.8 %"),
        (pages.percent(None), "–"),
        (pages.duration(9.31), "9.31 s"),
        (pages.duration(130), "2 min 10 s"),
        (pages.duration(3840), "1 h 4 min"),
        (pages.cut("abcdef", 4), ("abcd", 2)),
        (pages.cell(1234.5), "1,234"),
        (pages.is_figures([{"a": "3 of 4 (75 %)"}, {"a": ""}], "a"), True),
        (pages.is_figures([{"a": "3 left"}], "a"), False),
    ],
)
def test_figures_as_they_are_printed(shown: object, said: object) -> None:
    assert shown == said


def checksums(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
