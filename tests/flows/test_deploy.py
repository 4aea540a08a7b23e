"""`stillhouse deploy` against a real Prefect server: deployments with forms, a run by a real worker, the self-check."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.deploy import (
    CHECKOUT,
    PREFECT_FILE,
    ZOMBIES,
    PrefectServerError,
    check_scheduler,
    deploy_all,
    for_form,
    read_deployments,
    zombie_automation,
)
from flows.recipe import Recipe, load_recipe
from tasks.catalog import connect
from tests.fake_endpoint import FakeEndpoint
from tests.flows.conftest import own_prefect_server

Command = Callable[..., subprocess.CompletedProcess[str]]
FLOWS = ("factory", "audit", "generate", "distil", "refine", "evaluate", "rerun")
MONTH = timedelta(days=30)


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Iterator[str]:
    """A server of its own: where runs of other tests write, SQLite refuses some of a deployment's long writes at once,
    and Prefect's client tries again for a minute and more."""
    with own_prefect_server(tmp_path_factory.mktemp("server") / "prefect", shared_folder) as url:
        yield url


@pytest.fixture
def client(prefect_api: str, tmp_path: Path) -> Iterator[SyncPrefectClient]:
    """A client of this server."""
    with (
        temporary_settings({PREFECT_API_URL: prefect_api, PREFECT_HOME: tmp_path / "prefect-home"}),
        get_client(sync_client=True) as connected,
    ):
        yield connected


def test_every_flow_has_a_form_and_a_worker_runs_what_is_submitted(
    stillhouse: Command,
    client: SyncPrefectClient,
    write_recipe: Callable[..., Path],
    endpoint: FakeEndpoint,
    tmp_path: Path,
) -> None:
    deployed = stillhouse("deploy", "--check", "--pool", "test-deploy")
    assert deployed.returncode == 0, deployed.stderr
    assert "a scheduled run appeared" in deployed.stdout
    assert client.read_work_pool("test-deploy").type == "process"
    registered = {name: client.read_deployment_by_name(f"{name}/{name}") for name in FLOWS}
    for deployment in registered.values():
        _has_a_form(deployment)

    recipe = load_recipe(write_recipe(endpoint.url, problems=30)).resolved()
    with pytest.raises(PrefectHTTPStatusError, match="Validation failed"):
        client.create_flow_run_from_deployment(registered["factory"].id, parameters={"recipe": recipe | {"seed": -1}})
    run = client.create_flow_run_from_deployment(registered["factory"].id, parameters={"recipe": recipe})
    log = _work_once(client, "test-deploy", tmp_path / "elsewhere")
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.name == "Completed", log
    kinds = {artifact.key: artifact.type for artifact in client.read_artifacts()}
    expected = {"dataset-funnel": "table", "dataset-samples": "markdown", "dataset-evaluations": "table"}
    assert expected.items() <= kinds.items()
    assert _accepted(tmp_path / "dataset") > 0
    assert any(line.message.startswith("generate: ") for line in client.read_logs() if line.name == "stillhouse")


def test_deploying_again_updates_and_keeps_schedules_made_elsewhere(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy_all()
    first = client.read_deployment_by_name("rerun/rerun")
    by_hand = IntervalSchedule(interval=MONTH, anchor_date=datetime.now(UTC) + MONTH)
    client.create_deployment_schedules(first.id, [(by_hand, True)])
    deploy_all()
    assert "prefect worker start --pool stillhouse" in capsys.readouterr().out
    again = client.read_deployment_by_name("rerun/rerun")
    assert (again.id, again.parameters) == (first.id, first.parameters)
    assert [entry.schedule for entry in again.schedules] == [by_hand]
    assert len(client.read_automations_by_name(ZOMBIES)) == 1


def test_a_server_that_schedules_nothing_is_found_out(client: SyncPrefectClient) -> None:
    """No run can appear within no time, which is what a broken scheduler looks like; the probe is removed."""
    with pytest.raises(PrefectServerError, match="scheduled no run within 0 s"):
        check_scheduler(client, seconds=0)
    with pytest.raises(PrefectHTTPStatusError, match="404"):
        client.read_flow_by_name("stillhouse-scheduler-probe")


@pytest.mark.parametrize(
    ("url", "remedy"), [("", "prefect config set PREFECT_API_URL="), ("http://127.0.0.1:9/api", "does not answer")]
)
def test_without_a_server_there_is_one_line_and_code_2(cli: Command, url: str, remedy: str, tmp_path: Path) -> None:
    done = cli("deploy", PREFECT_API_URL=url, PREFECT_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("PrefectServerError: ")
    assert remedy in done.stderr
    assert "prefect server start" in done.stderr
    assert done.stderr.count("\n") == 1


def test_prefect_yaml_names_every_flow_once_on_the_pool_that_was_asked_for() -> None:
    deployments, recipe = read_deployments(PREFECT_FILE, pool="other")
    assert [deployment.entrypoint for deployment in deployments] == [f"flows.{name}.{name}" for name in FLOWS]
    assert {deployment.work_pool.name for deployment in deployments} == {"other"}
    assert recipe.name == "demo"


def test_a_zombie_has_missed_three_heartbeats_of_one_of_our_flows() -> None:
    flow = uuid.UUID(int=1)
    trigger = zombie_automation([flow], heartbeat_seconds=30).trigger
    assert trigger.within == timedelta(seconds=90)
    assert trigger.match_related.get("prefect.resource.id") == [f"prefect.flow.{flow}"]


def test_unions_become_what_the_form_shows_as_tabs() -> None:
    """pydantic: oneOf with a discriminator; Prefect's form knows anyOf only. All else stays."""
    a, b = {"$ref": "#/definitions/A"}, {"$ref": "#/definitions/B"}
    pydantic = {"type": "array", "items": {"oneOf": [a, b], "discriminator": {"propertyName": "type"}}}
    assert for_form(pydantic) == {"type": "array", "items": {"anyOf": [a, b]}}


def _has_a_form(deployment: DeploymentResponse) -> None:
    """The recipe's sentences and its unions are in the schema, the demo's recipe fills it, runs start here."""
    sections = deployment.parameter_openapi_schema["definitions"]
    assert sections["GenerateSection"]["properties"]["replicas"]["description"] == "Samples per problem."
    teachers = sections["Recipe"]["properties"]["teacher"]["anyOf"]
    assert [teacher["$ref"].split("/")[-1] for teacher in teachers] == ["VLLMTeacher", "OpenAITeacher"]
    assert Recipe.model_validate(deployment.parameters["recipe"]).name == "demo"
    folder = {"prefect.deployments.steps.set_working_directory": {"directory": str(CHECKOUT)}}
    assert deployment.pull_steps == [folder]


def _work_once(client: SyncPrefectClient, pool: str, folder: Path) -> str:
    """A real worker, started in an unrelated folder, does what is due and ends; returns its log."""
    folder.mkdir()
    env = os.environ | {"PREFECT_API_URL": str(client.api_url), "PREFECT_HOME": str(folder / "prefect-home")}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--run-once", "--limit", "1"]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def _accepted(dataset: Path) -> int:
    (rows,) = connect(dataset).execute("select count(*) from accepted").fetchone() or (0,)
    return int(rows)
