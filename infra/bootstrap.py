"""Registers longloom with a running Prefect server: work pool, limits, and the deployments of prefect.yaml.

    PREFECT_API_URL=http://127.0.0.1:4200/api .venv/bin/python infra/bootstrap.py

Safe to repeat: definitions are brought up to date, while what is decided in the UI stays (limits, paused deployments,
schedules switched on or off or added). Flow runs start in the folder that this is called from: left alone, a process
worker gives each one a temporary folder and deletes it afterwards, with all that a relative path led to.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

DEFINITION = Path(__file__).resolve().parent.parent / "prefect.yaml"
POOL = "longloom"
#: Work queue -> runs at a time; made before anything can be queued, since a limit that does not exist means unlimited.
LIMITS = {"compute": 1}


def job_template(folder: Path) -> dict[str, Any]:
    """The template of a process worker's jobs, with the folder that flow runs start in."""
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["working_dir"]["default"] = str(folder)
    return template


async def ensure_pool(client: PrefectClient, folder: Path) -> None:
    """Makes the process work pool and its limited queues; another limit than ours stays, none at all does not."""
    try:
        await client.read_work_pool(POOL)
    except ObjectNotFound:
        pool = WorkPoolCreate(
            name=POOL,
            type=ProcessWorker.type,
            description="Flow runs of longloom, each in a process of its own.",
            base_job_template=job_template(folder),
        )
        await client.create_work_pool(pool)
    else:
        await client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=job_template(folder)))
    for name, limit in LIMITS.items():
        try:
            queue = await client.read_work_queue_by_name(name, POOL)
        except ObjectNotFound:
            await client.create_work_queue(name, concurrency_limit=limit, work_pool_name=POOL)
        else:
            if queue.concurrency_limit is None:
                await client.update_work_queue(queue.id, concurrency_limit=limit)


async def deployments(client: PrefectClient) -> list[DeploymentResponse]:
    """The deployments that the pool runs."""
    return await client.read_deployments(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])))


def deploy() -> None:
    """Hands prefect.yaml to Prefect's own command, so that the file means here what it means everywhere.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEFINITION)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"prefect deploy ended with {done.returncode}:\n{done.stdout}{done.stderr}")


async def restore(client: PrefectClient, before: DeploymentResponse) -> None:
    """Puts back what was decided in the UI and `prefect deploy` has overwritten."""
    after = await client.read_deployment(before.id)
    if before.paused:
        await client.update_deployment(before.id, DeploymentUpdate(paused=True))
    kept = {schedule.id for schedule in after.schedules}
    named = {schedule.slug: schedule for schedule in after.schedules if schedule.slug}
    for schedule in before.schedules:
        if schedule.slug in named:
            now = named[schedule.slug]
            if now.active != schedule.active:
                await client.update_deployment_schedule(before.id, now.id, active=schedule.active)
        elif schedule.id not in kept:
            added = DeploymentScheduleCreate(
                schedule=schedule.schedule, active=schedule.active, parameters=schedule.parameters, slug=schedule.slug
            )
            await client.create_deployment_schedules(before.id, [added])


async def bootstrap(folder: Path) -> int:
    """Brings the server up to date.

    Args:
        folder: where flow runs start.

    Returns:
        The number of deployments.

    Raises:
        ConnectionError: the server does not answer.
    """
    async with get_client() as client:
        if error := await client.api_healthcheck():
            raise ConnectionError(f"{client.api_url} does not answer: {error}")
        await ensure_pool(client, folder)
        before = await deployments(client)
        deploy()
        for deployment in before:
            await restore(client, deployment)
        return len(await deployments(client))


def main() -> int:
    """Exit code 2 when there is no server to talk to."""
    url = get_current_settings().api.url
    if not url:
        print("bootstrap: no server; set PREFECT_API_URL, or run `longloom ui`, which starts one", file=sys.stderr)
        return 2
    try:
        count = asyncio.run(bootstrap(Path.cwd()))
    except ConnectionError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 2
    print(f"{url}: work pool {POOL}, {count} deployments")
    return 0


if __name__ == "__main__":
    sys.exit(main())
