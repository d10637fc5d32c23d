"""What compose.yaml starts, for real: Prefect with PostgreSQL and Redis, at work, and with parts of it killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longloom.storage.runs import list_runs
from longloom.storage.store import Store

from ..waiting import SECONDS, wait_until
from .stack import Stack, missing, running

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture(scope="module")
def registered(stack: Stack) -> Stack:
    """Bootstrapped with everything that it can be told."""
    options = {
        "LONGLOOM_GPUS": "2",
        "LONGLOOM_RESULTS": str(stack.folder / "results"),
        "LONGLOOM_WEBHOOK": stack.webhook.url,
    }
    for _ in range(2):  # the second one changes nothing
        before = _everything(stack)
        done = stack.bootstrap(**options)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2000:] + stack.logs()
    assert _everything(stack) == before
    return stack


def _everything(stack: Stack) -> dict[str, Any]:
    """What a bootstrap makes, by name."""
    return {
        "pools": [(pool["id"], pool["name"]) for pool in stack.ask("work_pools/filter", {})],
        "queues": sorted((q["name"], q["concurrency_limit"]) for q in stack.ask("work_queues/filter", {})),
        "limits": [(e["id"], e["name"], e["limit"]) for e in stack.ask("v2/concurrency_limits/filter", {})],
        "deployments": sorted((d["id"], d["name"], d["work_queue_name"]) for d in stack.ask("deployments/filter", {})),
        "automations": sorted((a["id"], a["name"], a["enabled"]) for a in stack.ask("automations/filter", {})),
        "blocks": sorted((b["id"], b["name"]) for b in stack.ask("block_documents/filter", {})),
    }


def parameters(stack: Stack) -> dict[str, Any]:
    """Of a small run of `index`."""
    place = stack.folder / "corpus.txt"
    place.write_text("the quick brown fox " * 20)
    return {
        "corpus": {"sources": [str(place)]},
        "index": {"tokenizer": "bytes", "threads": 1, "memory_gib": 0.5},
        "store": str(stack.store),
    }


def test_nothing_is_told_without_the_password(stack: Stack) -> None:
    assert stack.status("health") == 200  # for probes
    assert stack.status("work_pools/longloom") == 401
    assert stack.status("admin/settings") == 401
    secret, stack.secrets["PREFECT_AUTH"] = stack.secrets["PREFECT_AUTH"], "admin:guess"
    try:
        done = stack.bootstrap()
    finally:
        stack.secrets["PREFECT_AUTH"] = secret
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_bootstrap_makes_pool_queues_limits_block_and_automations(registered: Stack) -> None:
    found = _everything(registered)
    assert [name for _, name in found["pools"]] == ["longloom"]
    assert found["queues"] == [("compute", 1), ("default", None), ("gpu", 2)]
    limits = {name: limit for _, name, limit in found["limits"] if not name.startswith("deployment:")}
    assert limits == {"longloom-gpu": 2}
    queues = {name: queue for _, name, queue in found["deployments"]}
    assert (queues["index"], queues["index-nightly"], queues["contamination"]) == ("compute",) * 3
    assert (queues["finetune"], queues["evaluate"], queues["pipeline"]) == ("gpu",) * 3
    assert (queues["judge"], queues["report"]) == ("default",) * 2
    assert [(name, on) for _, name, on in sorted(found["automations"], key=lambda one: one[1])] == [
        ("longloom: crash dead runs", True),
        ("longloom: tell of failures", True),
    ]
    (dead,) = (a for a in registered.ask("automations/filter", {}) if a["name"] == "longloom: crash dead runs")
    assert dead["trigger"]["within"] >= 3 * 180  # heartbeats
    assert registered.webhook.secret not in str(registered.ask("block_documents/filter", {}))


def test_the_limit_of_gpus_is_strict(registered: Stack) -> None:
    code = (
        "import time\nfrom longloom.tasks.stage import gpu_place\n"
        "with gpu_place():\n    print('held', flush=True)\n    input()"
    )

    def hold(limit: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=registered.client_environment() | {"LONGLOOM_GPU_LIMIT": limit},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    held, refused = hold("longloom-gpu"), hold("no-such-limit")
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == "held\n"
        assert registered.ask("v2/concurrency_limits/longloom-gpu")["active_slots"] == 1
        _, error = held.communicate("\n", timeout=SECONDS)
        assert held.returncode == 0, error
        assert registered.ask("v2/concurrency_limits/longloom-gpu")["active_slots"] == 0
        output, error = refused.communicate("\n", timeout=SECONDS)
        assert refused.returncode != 0
        assert "held" not in output
        assert "no-such-limit" in error
    finally:
        held.kill()
        refused.kill()


@contextlib.contextmanager
def under_way(stack: Stack, deployment: str = "index") -> Iterator[str]:
    """A run of an index that waits for a lock which this process holds; its index is to be built again."""
    store = Store(stack.store)
    ref = next(run.stages["index"] for run in list_runs(store) if "index" in run.stages)
    (store.artifact_folder("index", ref.key) / "manifest.json").unlink(missing_ok=True)
    with store.lock("index", ref.key):
        run = stack.run(deployment, parameters(stack))
        stack.wait(run, "RUNNING")
        wait_until(lambda: len(list_runs(store)[0].stages) == 1, stack.logs)  # it has its corpus
        yield run


def completed(stack: Stack, run: str) -> None:
    stack.wait(run, "COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    assert stack.state(run) == "COMPLETED", stack.logs()


def test_a_run_completes_and_its_results_go_to_the_block(registered: Stack) -> None:
    registered.start_worker(PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK="local-file-system/longloom")
    completed(registered, registered.run("index", parameters(registered)))
    assert any((registered.folder / "results").iterdir())


def test_a_run_outlives_the_server(registered: Stack) -> None:
    with under_way(registered) as run:
        registered.kill("server")
        registered.start_server()
    completed(registered, run)


def test_a_run_outlives_the_database(registered: Stack) -> None:
    with under_way(registered) as run:
        registered.kill("postgres")
        registered.start_postgres()
    completed(registered, run)


def test_what_runs_by_the_clock_is_refused_beside_itself(registered: Stack) -> None:
    with under_way(registered, "index-nightly") as first:
        second = registered.run("index-nightly", parameters(registered))
        registered.wait(second, "CANCELLED")
        assert registered.state(first) == "RUNNING"
    completed(registered, first)


def test_a_run_that_is_killed_with_its_worker_is_found_dead_told_of_and_can_go_on(registered: Stack) -> None:
    """With the windows of the shipped automation and of heartbeats made short: 10 minutes are long for a test."""
    (dead,) = (a for a in registered.ask("automations/filter", {}) if a["name"] == "longloom: crash dead runs")
    definition = {key: dead[key] for key in ("name", "description", "enabled", "trigger", "actions")}
    definition["trigger"]["within"] = 45
    registered.ask(f"automations/{dead['id']}", definition, method="PUT")
    # Services learn of the change at once or, after an outage of the database, within seconds; at their start surely.
    registered.processes["services"].terminate()
    registered.processes["services"].wait(SECONDS)
    registered.start_services()
    registered.kill("worker")
    registered.start_worker(PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30")
    with under_way(registered) as run:
        family = registered.processes["worker"].children(recursive=True)
        registered.kill("worker")
        for each in family:
            each.kill()
    registered.wait(run, "CRASHED")
    assert "continues with what is missing" in registered.ask(f"flow_runs/{run}")["state"]["message"]
    text = wait_until(lambda: next((one["text"] for one in registered.webhook.received), ""), registered.logs)
    assert text.startswith("longloom: index-bytes of index: Crashed. Not heard of")
    assert f"/runs/flow-run/{run}" in text

    registered.start_worker()
    completed(registered, registered.run("index", parameters(registered)))


def test_a_laptop_can_serve(registered: Stack) -> None:
    """`longloom serve`, in the worker's place."""
    registered.kill("worker")
    command = [str(Path(sys.executable).with_name("longloom")), "serve", "--queues", "compute"]
    registered.start("worker", [*command, "--store", str(registered.store)], registered.client_environment())
    completed(registered, registered.run("index", parameters(registered)))
    registered.processes["worker"].terminate()
    assert registered.processes["worker"].wait(60) == 0


def test_no_secret_is_in_the_store_a_log_or_an_answer(registered: Stack) -> None:
    """After all of the above; secrets are in the processes' environments alone."""
    password = registered.secrets["PREFECT_AUTH"].partition(":")[2]
    secrets = [*registered.secrets.values(), password, *registered.keys.values(), registered.webhook.secret]
    files = [path for place in (registered.store, registered.folder / "logs") for path in place.rglob("*")]
    texts = {str(path): path.read_bytes() for path in files if path.is_file()}
    assert len(texts) > 10
    for what in ("flow_runs", "task_runs", "logs", "deployments", "work_pools", "block_documents", "automations"):
        texts[what] = json.dumps(registered.ask(f"{what}/filter", {})).encode()
    assert len(texts["logs"]) > 1000
    assert [place for place, text in texts.items() if any(secret.encode() in text for secret in secrets)] == []
    settings = json.dumps(registered.ask("admin/settings"))
    shown = {name for name, secret in registered.secrets.items() if secret in settings}
    assert shown <= {"REDIS_PASSWORD"}  # Prefect takes the docket's address for no secret: SECURITY.md says so
