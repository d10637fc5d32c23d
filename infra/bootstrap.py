"""Registers longloom with a running Prefect server: work pool, limits, deployments of prefect.yaml, automations.

    PREFECT_API_URL=http://127.0.0.1:4200/api .venv/bin/python infra/bootstrap.py

Safe to repeat: definitions are brought up to date, while what is decided in the UI stays (limits, parameters, paused
deployments, schedules changed, added, or switched on or off, automations switched off). A worker starts each run in an
empty folder, out of the way of files that Python would take for modules; relative paths of its parameters refer to the
folder that this is called from (longloom.flows.folder).

The environment may hold:

    LONGLOOM_FOLDER   the folder that relative paths refer to, in place of the one that this is called from
    LONGLOOM_GPUS     number of GPUs: what runs models then waits in the queue `gpu`, for workers with one
    LONGLOOM_RESULTS  folder or address (s3://bucket/prefix) for the results of Prefect's tasks: the block `longloom`
    LONGLOOM_WEBHOOK  address that is told of failed runs
    LONGLOOM_S3_BLOCK name of a secret block for the AWS_* of this environment: endpoint, region and keys of a store on
                      S3. Each flow run gets them from there; without it, from the environment of its worker
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    GlobalConcurrencyLimitCreate,
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

sys.path.append(str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH takes it away

import automations

DEFINITION = Path(__file__).resolve().parent.parent / "prefect.yaml"
POOL = "longloom"
#: Work queue -> runs at a time; made before anything can be queued, since a limit that does not exist means unlimited.
LIMITS = {"compute": 1}
GPU_QUEUE = "gpu"
#: The limit of stages at once that use a GPU, whatever runs they are of; workers that have one set LONGLOOM_GPU_LIMIT.
GPU_LIMIT = "longloom-gpu"
#: The tag of deployments that use all cores but never a GPU.
CPU_TAG = "cpu"
#: Of a schedule, what is set in prefect.yaml or in the UI.
FIELDS = ("schedule", "active", "parameters")
#: The variable that holds `definition` of our deployments as of the last bootstrap.
DEPLOYED = "longloom_deployed"


def job_template(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The template of a process worker's jobs, with what flow runs find set.

    No working directory: then a run starts in an empty temporary one, which the worker deletes afterwards.

    Args:
        folder: that relative paths refer to.
        environment: more to set.
    """
    template = ProcessWorker.get_default_base_job_template()
    own = {"LONGLOOM_FOLDER": str(folder), "PYTHONSAFEPATH": "1"}
    template["variables"]["properties"]["env"]["default"] = own | environment
    return template


def number_of_gpus() -> int:
    """Of LONGLOOM_GPUS; 0 when it is not set.

    Raises:
        ValueError: it is no such number.
    """
    found = os.environ.get("LONGLOOM_GPUS", "").strip() or "0"
    if not found.isdecimal():
        raise ValueError(f"LONGLOOM_GPUS is {found!r}, expected a number of GPUs")
    return int(found)


async def ensure_keys(client: PrefectClient, block: str) -> dict[str, str]:
    """Makes the secret block of this environment's AWS_*.

    Returns:
        What a run finds set: references to the block, which the worker looks up when it starts the run.

    Raises:
        ValueError: there are no keys.
    """
    found = {name: value for name, value in os.environ.items() if name.startswith("AWS_") and value}
    if "AWS_SECRET_ACCESS_KEY" not in found:
        raise ValueError(f"LONGLOOM_S3_BLOCK is {block!r}: AWS_SECRET_ACCESS_KEY is not set, expected keys to keep")
    await Secret(value=found).save(block, overwrite=True, client=client)
    return {name: f"{{{{ prefect.blocks.secret.{block}.{name} }}}}" for name in sorted(found)}


async def ensure_pool(client: PrefectClient, folder: Path, limits: dict[str, int], environment: dict[str, str]) -> None:
    """Makes the process work pool and its limited queues; another limit than ours stays, none at all does not."""
    try:
        await client.read_work_pool(POOL)
    except ObjectNotFound:
        pool = WorkPoolCreate(
            name=POOL,
            type=ProcessWorker.type,
            description="Flow runs of longloom, each in a process of its own.",
            base_job_template=job_template(folder, environment),
        )
        await client.create_work_pool(pool)
    else:
        await client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=job_template(folder, environment)))
    for name, limit in limits.items():
        try:
            queue = await client.read_work_queue_by_name(name, POOL)
        except ObjectNotFound:
            await client.create_work_queue(name, concurrency_limit=limit, work_pool_name=POOL)
        else:
            if queue.concurrency_limit is None:
                await client.update_work_queue(queue.id, concurrency_limit=limit)


async def ensure_gpu_limit(client: PrefectClient, gpus: int) -> None:
    """Makes the limit; one that is there stays. It is asked for strictly: without it, stages fail."""
    try:
        await client.read_global_concurrency_limit_by_name(GPU_LIMIT)
    except ObjectNotFound:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=gpus))


async def ensure_results(client: PrefectClient, place: str) -> None:
    """Makes the block `longloom` for results, and the place itself.

    Its key is not in the block: fsspec finds it in the environment of who uses it (AWS_ACCESS_KEY_ID and the like).
    """
    if "://" in place:
        import fsspec

        filesystem, path = fsspec.url_to_fs(place)
        filesystem.makedirs(path, exist_ok=True)
        await RemoteFileSystem(basepath=place).save(automations.BLOCK, overwrite=True, client=client)
    else:
        folder = Path(place).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        await LocalFileSystem(basepath=str(folder)).save(automations.BLOCK, overwrite=True, client=client)


async def deployments(client: PrefectClient) -> list[DeploymentResponse]:
    """The deployments that the pool runs."""
    return await client.read_deployments(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])))


def deploy() -> None:
    """Hands prefect.yaml to Prefect's own command, so that the file means here what it means everywhere.

    From an empty folder: the command imports the flows, and looks for modules in the folder that it is called in first.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEFINITION)]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)  # of a file in this folder, too
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            command,
            cwd=empty,
            env=os.environ | settings | {"PYTHONSAFEPATH": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"prefect deploy ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def definition(deployment: DeploymentResponse) -> dict[str, str]:
    """What prefect.yaml and the UI both set of a deployment: digests by name, short enough for a variable's value."""
    values: dict[str, Any] = {"parameters": deployment.parameters}
    for schedule in deployment.schedules:
        if schedule.slug:
            told = schedule.model_dump(mode="json", include=set(FIELDS))
            values |= {f"{schedule.slug}/{field}": told[field] for field in FIELDS}
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
        for name, value in values.items()
    }


async def read_deployed(client: PrefectClient) -> dict[str, Any]:
    """The deployments as the last bootstrap defined them: `definition` by name; empty before the first one."""
    found = await client.read_variable_by_name(DEPLOYED)
    return found.value if found and isinstance(found.value, dict) else {}


async def write_deployed(client: PrefectClient, found: list[DeploymentResponse]) -> None:
    """Keeps what `prefect deploy` has just made of our deployments; others may be in the pool as well."""
    ours = [each for each in found if (each.entrypoint or "").startswith("longloom.")]
    value: dict[str, Any] = {each.name: definition(each) for each in ours}
    if await client.read_variable_by_name(DEPLOYED):
        await client.update_variable(VariableUpdate(name=DEPLOYED, value=value))
    else:
        await client.create_variable(VariableCreate(name=DEPLOYED, value=value))


async def restore(
    client: PrefectClient, before: DeploymentResponse, after: DeploymentResponse, deployed: dict[str, str]
) -> None:
    """Puts back what was decided in the UI and `prefect deploy` has overwritten.

    Args:
        before, after: the deployment around `prefect deploy`.
        deployed: its `definition` after the last one. What still equals it was not decided in the UI: there, a changed
            prefect.yaml counts.
    """
    was = definition(before)
    decided = {name for name, digest in was.items() if digest != deployed.get(name)}
    if "parameters" in decided and before.parameters != after.parameters:
        await client.update_deployment(before.id, DeploymentUpdate(parameters=before.parameters))
    if before.paused:
        await client.update_deployment(before.id, DeploymentUpdate(paused=True))
    kept = {schedule.id for schedule in after.schedules}
    named = {schedule.slug: schedule for schedule in after.schedules if schedule.slug}
    for schedule in before.schedules:
        if schedule.slug in named:
            now = named[schedule.slug]
            own = {field: getattr(schedule, field) for field in FIELDS if f"{schedule.slug}/{field}" in decided}
            if any(getattr(now, field) != value for field, value in own.items()):
                await client.update_deployment_schedule(before.id, now.id, **own)
        elif schedule.id not in kept:
            added = DeploymentScheduleCreate(
                schedule=schedule.schedule, active=schedule.active, parameters=schedule.parameters, slug=schedule.slug
            )
            await client.create_deployment_schedules(before.id, [added])


async def send_to_gpus(client: PrefectClient, deployment: DeploymentResponse) -> None:
    """Moves a deployment that runs models to the queue of workers with a GPU."""
    if deployment.work_queue_name in LIMITS and CPU_TAG not in deployment.tags:
        moved = DeploymentUpdate(work_pool_name=POOL, work_queue_name=GPU_QUEUE)
        await client.update_deployment(deployment.id, moved)


async def bootstrap(folder: Path) -> int:
    """Brings the server up to date.

    Args:
        folder: that relative paths of flow runs refer to.

    Returns:
        The number of deployments.

    Raises:
        ConnectionError: the server does not answer, or not to us.
        ValueError: LONGLOOM_GPUS is no number.
    """
    gpus = number_of_gpus()
    async with get_client() as client:
        if error := await client.api_healthcheck():
            raise ConnectionError(f"{client.api_url} does not answer: {error}")
        try:
            block = os.environ.get("LONGLOOM_S3_BLOCK", "").strip()
            keys = await ensure_keys(client, block) if block else {}
            await ensure_pool(client, folder, LIMITS | ({GPU_QUEUE: gpus} if gpus else {}), keys)
        except PrefectHTTPStatusError as error:
            if error.response.status_code != 401:
                raise
            raise ConnectionError(f"{client.api_url} asks for another PREFECT_API_AUTH_STRING") from None
        if gpus:
            await ensure_gpu_limit(client, gpus)
        if results := os.environ.get("LONGLOOM_RESULTS", "").strip():
            await ensure_results(client, results)
        before, deployed = await deployments(client), await read_deployed(client)
        deploy()
        found = await deployments(client)
        after = {deployment.id: deployment for deployment in found}
        for deployment in before:
            await restore(client, deployment, after[deployment.id], deployed.get(deployment.name, {}))
        await write_deployed(client, found)
        for deployment in found if gpus else ():
            await send_to_gpus(client, deployment)
        ids = sorted(deployment.id for deployment in found)
        await automations.ensure(client, automations.dead_runs(ids))
        if webhook := os.environ.get("LONGLOOM_WEBHOOK", "").strip():
            told = await automations.ensure_webhook(client, webhook)
            await automations.ensure(client, automations.failures(ids, told))
        return len(found)


def main() -> int:
    """Exit code 2 when there is no server to talk to."""
    url = get_current_settings().api.url
    if not url:
        print("bootstrap: no server; set PREFECT_API_URL, or run `longloom ui`, which starts one", file=sys.stderr)
        return 2
    try:
        folder = Path(os.environ.get("LONGLOOM_FOLDER") or ".").expanduser().absolute()
        count = asyncio.run(bootstrap(folder))
    except (ConnectionError, ValueError) as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 2
    parts = urlsplit(url)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # no password of an address
    print(f"{shown}: work pool {POOL}, {count} deployments")
    return 0


if __name__ == "__main__":
    sys.exit(main())
