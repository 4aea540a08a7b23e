"""What a recipe says about watching a training reaches the job, the evaluation of the teacher, and the picture."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows import artifacts
from flows.curves import as_png, as_svg, centred_means, drawn
from flows.evaluate import checkpoints, suite_of, validated
from flows.recipe import Recipe, parse_recipe
from flows.stages import Stage
from flows.wiring import training_job
from model.errors import ProblemsError, RecipeError
from model.records import EVALUATION_SCHEMA, Problem, from_table, to_table
from model.templates import PromptTemplate
from model.training.job import JOBS, Keep, job_from
from model.training.lines import read_lines
from tasks import follow
from tasks.catalog import connect
from tasks.engine import EngineSpec
from tasks.evaluate import Answer, Contestant, measure
from tasks.progress import ticking
from tasks.run import Run
from tasks.select import Rendering, select_validation
from tasks.store import EVALUATIONS, Dataset
from tasks.summary import teacher_on_validation
from tests.fake_endpoint import FakeEndpoint
from tests.model.training.tiny import save_tiny
from tests.tasks.small_dataset import problem, write_problems


class Plain:
    """A chat template that adds nothing."""

    chat_template = "plain"

    def apply_chat_template(self, conversation: Any, **_: Any) -> str:
        return f"asked: {conversation[-1]['content']} "


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two problems to learn from, two for validation (one has no gold), one held out."""
    dataset = Dataset.create(tmp_path / "data")
    blank = replace(problem(4, "validation"), gold=None)
    write_problems(dataset, [problem(0), problem(1), problem(2, "held_out"), problem(3, "validation"), blank])
    return Run(dataset, "run-1")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    folder = str(save_tiny(tmp_path / "tiny"))
    return parse_recipe(
        {
            "name": "watched",
            "teacher": {"type": "openai", "urls": ["http://127.0.0.1:9/v1"], "model": "t", "tokenizer": folder},
            "student": {"model": folder},
            "problems": [{"type": "builtin", "name": "sums-2x1", "held_out": 0.2, "validation": 0.1}],
            "template": {"stop": ["</answer>"]},
            "verify": {"checks": ["finish", "format", "math", "duplicate"]},
            "accept": {"require": ["format", "math|duplicate", "duplicate"]},
            "sft": {
                "validate_every": 10,
                "validation_limit": 9,
                "validation_samples": 8,
                "keep": "best",
                "peak_tflops": 2,
                "spike_ratio": 10,
                "keep_checkpoints": 3,
            },
            "evaluate": {"temperature": 0.5, "top_p": 0.9, "max_tokens": 77, "replicas": 3, "k": [1]},
        }
    )


def test_the_job_is_validated_as_the_recipe_evaluates(run: Run, recipe: Recipe) -> None:
    problems = select_validation.fn(run, Rendering(Plain(), PromptTemplate("plain", shots=(("1 + 1?", "2"),))))
    assert [row.prompt for row in from_table(pq.read_table(problems), Problem)] == ["asked: Calculate 3 + 1. "]
    values = training_job(recipe, run, "sft", problems, validation=problems)
    job = job_from(JOBS[values.pop("stage")], values)
    assert (job.validate_every, job.validation, job.validation_samples, job.keep) == (10, problems, 8, Keep.BEST)
    assert job.validation_limit == 9
    assert (job.validation_temperature, job.validation_top_p, job.validation_max_tokens) == (0.5, 0.9, 77)
    assert job.validation_stop == ("</answer>",)
    # What sees a shard of samples at once cannot judge one answer, as in an evaluation.
    assert (job.validation_checks, job.validation_require) == (("format", "math"), ("format", "math"))
    assert (job.trackers, job.peak_tflops) == (None, 2.0)
    assert (job.spike_ratio, job.keep_checkpoints) == (10.0, 3)


def test_without_problems_to_validate_on_the_remedy_is_said(tmp_path: Path) -> None:
    dataset = Dataset.create(tmp_path / "data")
    write_problems(dataset, [problem(0)])
    with pytest.raises(ProblemsError, match=r"kept for validation: raise `validation` on a \[\[problems\]\]"):
        select_validation.fn(Run(dataset, "r"), Rendering(Plain(), PromptTemplate("plain")))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"problems": [{"type": "builtin", "name": "sums-2x1"}]}, "set problems.N.validation"),
        ({"sft": {"keep": "best"}}, 'sft.keep = "best" needs sft.validate_every'),
        ({"sft": {"trackers": ["mlflow"]}}, "'tensorboard', 'wandb' or 'trackio'"),
        ({"grpo": {"spike_ratio": 0.5}}, "0.5 would skip usual steps: more than 1, or 0 for none"),
        (
            {"problems": [{"type": "builtin", "name": "sums-2x1", "held_out": 0.6, "validation": 0.5}]},
            "held_out = 0.6 and validation = 0.5 are more than all",
        ),
    ],
)
def test_a_recipe_that_cannot_be_watched_so_is_refused(recipe: Recipe, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_recipe(recipe.resolved() | changes)
    assert says in str(refused.value)


def test_the_teacher_is_measured_on_the_validation_problems_under_a_name_of_their_own(run: Run, recipe: Recipe) -> None:
    teacher = Contestant("teacher", 0, EngineSpec("t"), "r", PromptTemplate("plain"))
    suite = suite_of(recipe, run, ["format", "math"])
    [(who, own)] = validated(recipe, run, [(teacher, suite), (replace(teacher, model="student"), suite)])
    assert (who, [p.prompt for p in own.problems]) == (teacher, ["Calculate 3 + 1."])
    assert (own.replicas, own.k, own.temperature, own.top_p, own.max_tokens) == (8, (1, 8), 0.5, 0.9, 77)
    answers = [
        Answer(f"{n}{source}", f"p{source}", n, "teacher", 0, source, n == 0, "", "1", 5, "")
        for n in (0, 1)
        for source in "ab"
    ]
    rows = measure("key", answers, who, replace(own, replicas=2, k=(1, 2)))
    assert {(row.suite, row.metric): row.value for row in rows} == {
        ("validation", "pass@1"): 0.5,
        ("validation", "pass@2"): 1.0,
        ("validation", "cons@2"): 1.0,
    }
    run.dataset.write_shard(
        f"{EVALUATIONS}/key.parquet", to_table(rows, EVALUATION_SCHEMA), schema=EVALUATION_SCHEMA, fingerprint="key"
    )
    assert teacher_on_validation(connect(run.dataset)) == 0.5
    another = replace(own.problems[0], problem_id="~", prompt="Calculate 9 + 1.")
    write_problems(run.dataset, [another], "000001")
    for limit, count in ((0, 2), (1, 1)):
        limited = parse_recipe(recipe.resolved(), [f"sft.validation_limit={limit}"])
        assert len(validated(limited, run, [(teacher, suite)])[0][1].problems) == count
    unwatched = parse_recipe(recipe.resolved() | {"sft": {}})
    assert validated(unwatched, run, [(teacher, suite)]) == []


def test_the_teacher_is_measured_before_a_student_that_is_compared_with_it(
    stillhouse: Callable[..., subprocess.CompletedProcess[str]],
    write_recipe: Callable[..., Path],
    endpoint: FakeEndpoint,
    tmp_path: Path,
) -> None:
    """Also of a run that ends there, since nothing is accepted yet; a second one asks nothing again."""
    watched = ["problems.0.validation=0.2", "sft.enabled=true", "sft.validate_every=5", "sft.validation_samples=2"]
    words = [word for setting in watched for word in ("--set", setting)]
    for _ in range(2):
        run = stillhouse("run", write_recipe(endpoint.url), "--only", "problems,sft", *words)
        assert "not one sample is accepted" in run.stderr
        con = connect(tmp_path / "dataset")
        assert 0.5 < (teacher_on_validation(con) or 0.0) < 1.0  # it is right three times in four
        [(problems,)] = con.sql("select count(*) from problems where split = 'validation'").fetchall()
        assert len(endpoint.requests) == 2 * problems > 10


def test_a_student_is_evaluated_as_the_step_that_it_is_of(run: Run) -> None:
    """Kept are the weights of step 40; checkpoints of 30 and 50 are left, and 50 is no stage on the way to it."""
    folder = run.dataset.file("students/sft")
    for name in ("step-000030", "step-000050", "best-000040"):
        (folder / "checkpoints" / name / "model").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"steps": 60, "model_step": 40}))
    assert checkpoints(run, "sft") == [(30, folder / "checkpoints/step-000030/model"), (40, folder / "model")]
    (folder / "manifest.json").write_text(json.dumps({"steps": 60}))  # one of an earlier version
    assert [step for step, _ in checkpoints(run, "sft")] == [30, 50, 60]


STEPS = [{"step": n, "total_steps": 90, "loss": 2.0 / n, "mfu": 0.5, "skipped": 1} for n in range(1, 41)]
VALIDATIONS = [{"step": 0, "pass@1": 0.2, "problems": 5}, {"step": 20, "pass@1": 0.6, "cons@4": 0.7, "problems": 5}]


def test_the_picture_has_a_panel_for_what_there_is() -> None:
    validation, loss, mfu = drawn("sft", STEPS, VALIDATIONS, 0.75).axes
    assert [axes.get_title("left") for axes in (validation, loss, mfu)] == [
        "validation (5 problems)",
        "loss",
        "MFU (%)",
    ]
    labels = [text.get_text() for text in validation.get_legend().get_texts()]
    assert labels == ["pass@1", "cons@4", "base 0.20", "teacher 0.75", "best, step 20"]
    assert validation.get_ylim()[1] > 0.75
    own, mean = loss.get_lines()
    assert own.get_ydata()[:2].tolist() == [2.0, 1.0]
    assert mean.get_ydata()[1] == pytest.approx((2 + 1 + 2 / 3) / 3)
    assert loss.get_yscale() == "log"
    assert set(mfu.get_lines()[0].get_ydata()) == {50.0}
    assert [axes.get_title("left") for axes in drawn("sft", STEPS, [], None).axes] == ["loss", "MFU (%)"]
    assert centred_means([1.0, 2.0, 6.0, 0.0, 5.0], 2) == [1.0, 3.0, 2.8, pytest.approx(11 / 3), 5.0]


def test_a_picture_can_be_made_of_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    assert as_png(drawn("sft", [], [], None)).startswith(b"\x89PNG")
    assert b"no step is done yet" in as_svg(drawn("sft", [], [], None))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_what_is_no_number_has_no_place_on_an_axis() -> None:
    lines = [{"step": 1, "loss": float("nan"), "entropy": float("inf")}, {"step": 2, "loss": 3.0}]
    (loss,) = drawn("sft", lines, [], None).axes
    assert loss.get_lines()[0].get_xdata().tolist() == [2]


def test_many_steps_do_not_make_a_large_page() -> None:
    """20,000 noisy steps would be some 400 kB of lines for each metric."""
    noisy = [{"step": n, "loss": 1 + (n * 7919 % 1000) / 1000} for n in range(20_000)]
    assert len(as_svg(drawn("sft", noisy, [], None))) < 200_000


def test_curves_are_published_while_a_run_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for new steps after each interval; a server that is gone is said, and training goes on."""
    monkeypatch.setattr(follow, "PUBLISH_SECONDS", 0.0)
    folder = run.dataset.file(f"students/{Stage.SFT}")
    folder.mkdir(parents=True)
    published: list[str] = []
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda text, **_: published.append(text))

    def publish() -> None:
        artifacts.publish_curve(run.dataset, Stage.SFT)
        if len(published) == 2:
            raise ConnectionError("the server is gone")

    with ticking("train sft", None, "steps") as ticker, caplog.at_level("INFO", logger="stillhouse"):
        follower = follow.Follower(folder / "metrics.jsonl", ticker, publish)
        follower.poll()  # nothing is there yet
        for step in STEPS[:3]:
            (folder / "metrics.jsonl").write_text(json.dumps(step | {"completion_length": 7.0}) + "\n")
            (folder / "validation.jsonl").write_text(json.dumps(VALIDATIONS[1]) + "\n")
            follower.poll()
            follower.poll()
        assert ticker.note == "loss 0.667  length 7  mfu 0.5  pass@1 0.6 (step 20)"
    assert len(published) == 3
    assert published[0].startswith("![sft: metrics over steps](data:image/png;base64,iVBOR")
    assert "the curves are not shown (ConnectionError: the server is gone)" in caplog.text
