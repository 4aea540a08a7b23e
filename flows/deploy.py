"""`stillhouse deploy`: registers every flow with the Prefect server of the current profile.

What is registered stands in deployments/prefect.yaml. This adds what that file cannot say: a process work pool
if there is none, runs that start in this checkout (so a recipe's relative paths mean the same as on the command
line), forms filled with a recipe, and the automation that marks zombie runs as crashed. Doing it again updates;
schedules made in the UI stay, unless prefect.yaml names some for that deployment. It starts neither server nor
worker, and copies no code: a worker on another machine needs the checkout under the same path.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml  # type: ignore[import-untyped]
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flows import load_flow_from_entrypoint
from prefect.runner.storage import LocalStorage
from prefect.schedules import Schedule
from prefect.settings import PREFECT_API_URL, get_current_settings
from prefect.utilities.callables import ParameterSchema
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from flows.forms import form
from flows.recipe import Recipe, load_recipe
from model.errors import StillhouseError, first_line

CHECKOUT = Path(__file__).resolve().parent.parent
PREFECT_FILE = CHECKOUT / "deployments" / "prefect.yaml"
ZOMBIES = "Stillhouse: mark zombie runs as crashed"
MISSED_HEARTBEATS = 3
PROBE_SECONDS = 60.0  # a healthy server schedules a new deployment within about 10 s

NO_SERVER = (
    "no Prefect server is set, so there is nothing to register with: start one with `prefect server start`, "
    "then `prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api` (`stillhouse run` needs no server)"
)


class PrefectServerError(StillhouseError):
    """The Prefect server of the current profile is not set, does not answer, or does not do its work."""

    retryable = False


class Pool(BaseModel):
    """The work pool of a deployment, and what its jobs get."""

    model_config = ConfigDict(extra="forbid")

    name: str
    job_variables: dict[str, Any] = Field(default_factory=dict)


class Deployment(BaseModel):
    """One entry of deployments/prefect.yaml, in Prefect's words."""

    model_config = ConfigDict(extra="forbid")

    name: str
    entrypoint: str
    description: str
    tags: list[str] = Field(default_factory=list)
    work_pool: Pool
    parameters: dict[str, Any] = Field(default_factory=dict)
    schedules: list[dict[str, Any]] = Field(default_factory=list)


def deploy_all(pool: str = "", check: bool = False) -> None:
    """Registers every flow, on the work pool of prefect.yaml or on `pool`, and says what to do next.

    With `check`, afterwards proves that the server's scheduler works (`check_scheduler`).
    Raises PrefectServerError: no server is set, or it does not answer.
    """
    console = Console(highlight=False, soft_wrap=True)
    deployments, recipe = read_deployments(PREFECT_FILE, pool)
    with connected() as client, _refusals_in_one_line():
        for name in dict.fromkeys(deployment.work_pool.name for deployment in deployments):
            ensure_pool(client, name)
        flows = [register(client, deployment, recipe) for deployment in deployments]
        ensure_zombie_automation(client, flows)
        for deployment in deployments:
            console.print(f"registered {deployment.entrypoint.rsplit('.')[-1]}/{deployment.name}")
        if check:
            console.print("self-check: waiting for a scheduled run …")
            console.print(f"self-check: a scheduled run appeared after {check_scheduler(client):.0f} s")
    console.print(_next_steps(deployments))


def read_deployments(file: Path, pool: str = "") -> tuple[list[Deployment], Recipe]:
    """The entries of prefect.yaml, on work pool `pool` if one is given, and the recipe that fills their forms."""
    if not file.is_file():
        raise PrefectServerError(f"{file} is not there: `stillhouse deploy` works from a checkout, not from a wheel")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    deployments = [Deployment.model_validate(entry) for entry in content["deployments"]]
    for deployment in deployments:
        deployment.work_pool.name = pool or deployment.work_pool.name
    return deployments, load_recipe(CHECKOUT / content["recipe"])


def connected() -> SyncPrefectClient:
    """A client of the current profile's server. Raises PrefectServerError if there is none or it is silent."""
    url = PREFECT_API_URL.value()
    if not url:
        raise PrefectServerError(NO_SERVER)
    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        remedy = "start it with `prefect server start`, or name another: `prefect config set PREFECT_API_URL=…`"
        raise PrefectServerError(
            f"the Prefect server at {url} does not answer ({first_line(error)}): {remedy}"
        ) from error
    return get_client(sync_client=True)


@contextmanager
def _refusals_in_one_line() -> Iterator[None]:
    """Prefect's own error repeats the whole request, recipe and schema included."""
    try:
        yield
    except PrefectHTTPStatusError as error:
        answer = error.response
        cause = f"{answer.status_code} for {answer.request.method} {answer.request.url.path}"
        raise PrefectServerError(
            f"the Prefect server refused the deployment ({cause}): {answer.text[:300]} "
            "Is it of another version? `prefect version` says what client and server are"
        ) from error


def ensure_pool(client: SyncPrefectClient, name: str) -> None:
    """Makes a work pool whose workers start runs as processes; one that is there stays as it is."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


def register(client: SyncPrefectClient, spec: Deployment, recipe: Recipe) -> uuid.UUID:
    """Creates or updates one deployment; returns the id of its flow."""
    deployment = RunnerDeployment.from_entrypoint(
        spec.entrypoint,
        name=spec.name,
        description=spec.description,
        tags=spec.tags,
        parameters={"recipe": recipe.resolved()} | spec.parameters,
        schedules=[Schedule(**entry) for entry in spec.schedules],
        work_pool_name=spec.work_pool.name,
        job_variables=spec.work_pool.job_variables,
    )
    deployment.storage = LocalStorage(str(CHECKOUT))  # runs start in this folder
    if not spec.schedules:
        deployment.model_fields_set.discard("schedules")  # else the empty list deletes those made in the UI
    schema = for_form(form(load_flow_from_entrypoint(spec.entrypoint)))
    deployment._parameter_openapi_schema = ParameterSchema(**schema)  # it has no other place for one
    deployment.apply()
    return client.read_deployment_by_name(deployment.full_name).flow_id


def for_form(schema: Any) -> Any:
    """A JSON schema in which Prefect's form shows unions as tabs: `anyOf` where pydantic writes `oneOf`.

    A value that is valid under one schema is valid under the other, since every member names its own `type`.
    """
    if isinstance(schema, list):
        return [for_form(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: for_form(value) for key, value in schema.items() if key != "discriminator"}
    return plain | {"anyOf": plain.pop("oneOf")} if "oneOf" in plain else plain


def ensure_zombie_automation(client: SyncPrefectClient, flows: Sequence[uuid.UUID]) -> None:
    """Creates or updates the automation that marks a run of `flows` crashed once its heartbeat has stopped.

    Prefect has none by default: a run whose process was killed together with its worker stays Running for ever.
    """
    found = client.read_automations_by_name(ZOMBIES)
    automation = zombie_automation(flows, heartbeat_seconds=get_current_settings().flows.heartbeat_frequency or 30)
    if found:
        client.update_automation(found[0].id, automation)
    else:
        client.create_automation(automation)


def zombie_automation(flows: Sequence[uuid.UUID], heartbeat_seconds: int) -> AutomationCore:
    """Crashed, when a run of `flows` has sent no heartbeat for three of them and has not ended or paused."""
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended")
    return AutomationCore(
        name=ZOMBIES,
        description="Made by `stillhouse deploy`. The data need no rescue: the next run makes what is missing.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={
                "prefect.resource.role": "flow",
                "prefect.resource.id": [f"prefect.flow.{flow}" for flow in flows],
            },
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ends)},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED_HEARTBEATS * heartbeat_seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"No heartbeat for {MISSED_HEARTBEATS * heartbeat_seconds} s: the run's process is gone.",
            )
        ],
    )


def check_scheduler(client: SyncPrefectClient, seconds: float = PROBE_SECONDS) -> float:
    """Proves that the server schedules: seconds until a probe deployment's first scheduled run appeared.

    The probe is due in a month, belongs to no work pool and is deleted again. Raises PrefectServerError if no run
    appears within `seconds`; the server's own log is the only other place that tells.
    """
    flow = client.create_flow_from_name("stillhouse-scheduler-probe")
    month = timedelta(days=30)
    schedule = IntervalSchedule(interval=month, anchor_date=datetime.now(UTC) + month)
    started = time.monotonic()
    probe = client.create_deployment(
        flow, f"probe-{uuid.uuid4().hex[:8]}", schedules=[DeploymentScheduleCreate(schedule=schedule)]
    )
    try:
        while not client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[probe]))):
            if time.monotonic() - started > seconds:
                raise PrefectServerError(
                    f"the Prefect server answers but scheduled no run within {seconds:.0f} s: look into its log, and "
                    "where it is installed run `pip install 'sqlalchemy<2.1'` (newer ones break its scheduler)"
                )
            time.sleep(0.5)
    finally:
        client.delete_deployment(probe)
        client.delete_flow(flow)
    return time.monotonic() - started


def _next_steps(deployments: Sequence[Deployment]) -> str:
    pool = deployments[0].work_pool.name
    lines = [
        "next:",
        f"  prefect worker start --pool {pool} --limit 1   (in this environment; one run at a time on this machine)",
        "  prefect deployment run factory/factory          (the demo's recipe; another one: the form in the UI)",
    ]
    if ui := get_current_settings().ui_url:
        lines.append(f"  {ui}/deployments")
    return "\n".join(lines)
