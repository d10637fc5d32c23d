"""The whole of Prefect, for real: server, deployments, worker, a schedule that fires, and the page of its run.

One server serves the module. It is started as a user starts it, and everything below it is gone at the end.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from longloom.flows import ui as module
from longloom.flows.params_pipeline import PipelineParams
from longloom.flows.ui import crash_left_runs, serve
from longloom.storage.runs import list_runs

from ..browser import CHROMIUM, Browser
from ..waiting import SECONDS, wait_until
from .small_inputs import write_inputs
from .ui_process import Ui, environment, family_of, running_ui

ROOT = Path(__file__).resolve().parents[2]
DEFINED = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with running_ui(tmp_path_factory.mktemp("ui")) as running:
        yield running


@pytest.fixture(scope="module")
def scheduled_run(ui: Ui) -> dict[str, Any]:
    """A run of the deployment `pipeline` that its schedule started, completed."""
    parameters = write_inputs(ui.store.root.parent / "inputs")
    deployment = ui.deployment("pipeline")
    schedule = {
        "slug": "test",
        "schedule": {"interval": 20, "anchor_date": (datetime.now(UTC) + timedelta(seconds=5)).isoformat()},
        "active": True,
        "parameters": {"params": parameters.model_dump(mode="json")},
    }
    (made,) = ui.post(f"deployments/{deployment['id']}/schedules", [schedule])
    scheduled = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}},
        "sort": "START_TIME_ASC",
    }
    (run, *_) = wait_until(lambda: ui.post("flow_runs/filter", scheduled), ui.logs)
    ui.patch(f"deployments/{deployment['id']}/schedules/{made['id']}", {"active": False})

    def ended() -> dict[str, Any] | None:
        now: dict[str, Any] = ui.get(f"flow_runs/{run['id']}")
        return now if now["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    found: dict[str, Any] = wait_until(ended, ui.logs)
    return found


def test_deployments_have_the_whole_form_and_schedules_that_are_switched_off(ui: Ui) -> None:
    found = ui.post("deployments/filter", {})
    assert {deployment["name"] for deployment in found} == {entry["name"] for entry in DEFINED}
    assert {deployment["work_pool_name"] for deployment in found} == {"longloom"}
    switches = {(d["name"], s["slug"]): s["active"] for d in found for s in d["schedules"]}
    weekly = ("evaluate-weekly", "trace-weekly", "pipeline-weekly", "replicate-weekly")
    assert switches == {("index-nightly", "nightly"): False} | {(name, "weekly"): False for name in weekly}
    alone = {d["name"]: d["concurrency_options"]["collision_strategy"] for d in found if d["concurrency_options"]}
    assert alone == dict.fromkeys((name for name, _ in switches), "CANCEL_NEW")
    assert all(deployment["path"] is None and not deployment["pull_steps"] for deployment in found)

    form = ui.deployment("pipeline")["parameter_openapi_schema"]
    defaults = PipelineParams()
    assert form["properties"]["params"]["default"] == defaults.model_dump(mode="json")
    assert form["properties"]["store"]["default"] == str(ui.store.root)
    for name, field in PipelineParams.model_fields.items():
        shown = form["definitions"]["PipelineParams"]["properties"][name]
        assert shown["default"] == json.loads(defaults.model_dump_json())[name]
        if "$ref" not in shown:
            assert shown["description"] == field.description
            continue
        nested = form["definitions"][shown["$ref"].rsplit("/", 1)[-1]]["properties"]
        expected = type(getattr(defaults, name)).model_fields
        assert {key: value["description"] for key, value in nested.items()} == {
            key: value.description for key, value in expected.items()
        }


def test_a_scheduled_run_completes_with_its_artifacts(ui: Ui, scheduled_run: dict[str, Any]) -> None:
    assert scheduled_run["state_type"] == "COMPLETED", ui.logs()
    assert scheduled_run["auto_scheduled"] is True
    assert scheduled_run["work_queue_name"] == "compute"
    mine = {"flow_runs": {"id": {"any_": [scheduled_run["id"]]}}}
    tasks = {task["name"]: task["state_type"] for task in ui.post("task_runs/filter", mine)}
    assert {"corpus", "index", "instructions", "coreset-random", "finetune-random", "report"} <= set(tasks)
    assert set(tasks.values()) == {"COMPLETED"}

    artifacts = ui.post("artifacts/filter", mine)
    progress = [entry for entry in artifacts if entry["type"] == "progress"]
    assert any(entry["description"].startswith("index: ") for entry in progress)
    assert {entry["data"] for entry in progress} == {100}
    tables = [json.loads(entry["data"]) for entry in artifacts if entry["type"] == "table"]
    assert [(rows[0]["task"], rows[0]["samples"]) for rows in tables] == [("copy", 4)] * (2 + 5)  # and retrieval
    (report,) = (entry for entry in artifacts if entry["key"] == "report-pipeline")
    assert "| copy |" in report["data"]

    record = list_runs(ui.store)[-1]  # newest first; a second scheduled run may have begun
    assert (record.flow, record.state) == ("pipeline", "completed")
    assert record.stages["index"].counts["documents"] == 1
    assert (ui.store.open(record.stages["index"]) / "index.json").is_file()
    assert (ui.store.open(record.stages["report"]) / "index.html").is_file()


def test_no_file_of_the_folder_that_paths_refer_to_is_run(ui: Ui, scheduled_run: dict[str, Any]) -> None:
    """Not by the server, the bootstrap, the worker, its run, nor the processes of that, which sort the shards."""
    folder = ui.store.root.parent
    assert scheduled_run["state_type"] == "COMPLETED"  # its sources are relative to the folder
    assert not (folder / "run").exists(), (folder / "run").read_text()
    pool = ui.get("work_pools/longloom")["base_job_template"]["variables"]["properties"]
    assert pool["env"]["default"] == {"LONGLOOM_FOLDER": str(folder), "PYTHONSAFEPATH": "1"}
    assert pool["working_dir"]["default"] is None


def test_a_page_of_another_origin_can_change_nothing(ui: Ui) -> None:
    host = ui.address.removeprefix("http://")

    def ask(method: str, headers: dict[str, str]) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection(host, timeout=60)
        deployment = {"deployments": {"name": {"any_": ["report"]}}}
        connection.request(method, "/api/deployments/filter", json.dumps(deployment), headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, answer.headers["Access-Control-Allow-Origin"]

    def preflight(origin: str) -> tuple[int, str | None]:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        return ask("OPTIONS", {"Origin": origin, **asked})

    for own in (ui.address, ui.address.replace("127.0.0.1", "localhost")):
        assert preflight(own) == (200, own)
        assert ask("POST", {"Origin": own, "Content-Type": "application/json", **ui.token}) == (200, own)
    foreign = {"Origin": "https://example.org"}
    assert preflight(foreign["Origin"]) == (400, None)
    # Without a preflight, as a form or a text; the last one a server would take for JSON.
    for kind in ({"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}, {}):
        assert ask("POST", foreign | kind) == (403, None)


@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)")
def test_the_page_of_the_run_shows_it(ui: Ui, scheduled_run: dict[str, Any], tmp_path: Path) -> None:
    expected = ["Completed", scheduled_run["name"], "scores-base-records-full", "report-pipeline", "index: 1 in all"]
    browser = Browser(tmp_path / "chromium")
    try:
        browser.open(f"{ui.address}/v2/runs/flow-run/{scheduled_run['id']}?tab=Artifacts")
        browser.until(f"{json.dumps(expected)}.every(text => document.body.innerText.includes(text))")
    finally:
        browser.close()


def bootstrap(ui: Ui, root: Path) -> str:
    """Runs the bootstrap of a checkout; what it said."""
    done = subprocess.run(
        [sys.executable, root / "infra" / "bootstrap.py"],
        env=environment(ui.store.root.parent) | {"PREFECT_API_URL": f"{ui.address}/api"},
        cwd=ui.store.root.parent,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_bootstrap_can_be_repeated_and_keeps_what_was_decided_in_the_ui(ui: Ui, tmp_path: Path) -> None:
    before = ui.deployment("evaluate-weekly")
    (weekly,) = before["schedules"]
    at = f"deployments/{before['id']}"
    own = {"cron": "30 4 * * 2", "timezone": "Europe/Berlin", "day_or": True}
    limited = {"evaluate": {"limit": 2}}
    ui.patch(f"{at}/schedules/{weekly['id']}", {"active": True, "schedule": own, "parameters": limited})
    ui.post(f"{at}/schedules", [{"schedule": {"cron": "0 5 1 1 *", "timezone": "UTC"}, "active": False}])
    parameters = {"evaluate": {"suite": "needle", "limit": 3}}
    ui.patch(at, {"parameters": parameters})
    pipeline = ui.deployment("pipeline-weekly")
    ui.patch(f"deployments/{pipeline['id']}/schedules/{pipeline['schedules'][0]['id']}", {"active": True})
    ui.patch(f"deployments/{ui.deployment('index')['id']}", {"paused": True})
    (dead,) = ui.post("automations/filter", {})
    ui.patch(f"automations/{dead['id']}", {"enabled": False})
    queue = ui.get("work_pools/longloom/queues/compute")
    assert queue["concurrency_limit"] == 1
    ui.patch("work_pools/longloom/queues/compute", {"concurrency_limit": 3})

    def schedules(name: str) -> set[tuple[str | None, str, str, bool]]:
        return {
            (s["slug"], s["schedule"]["cron"], s["schedule"]["timezone"], s["active"])
            for s in ui.deployment(name)["schedules"]
        }

    def check() -> None:
        after = ui.deployment("evaluate-weekly")
        assert after["id"] == before["id"]
        assert schedules("evaluate-weekly") == {
            ("weekly", own["cron"], own["timezone"], True),
            (None, "0 5 1 1 *", "UTC", False),
        }
        assert [s["parameters"] for s in after["schedules"] if s["slug"]] == [limited]
        assert after["parameters"] == parameters
        assert ui.deployment("index")["paused"] is True
        assert [(a["id"], a["enabled"]) for a in ui.post("automations/filter", {})] == [(dead["id"], False)]
        assert ui.get("work_pools/longloom/queues/compute")["concurrency_limit"] == 3

    assert f"{len(DEFINED)} deployments" in bootstrap(ui, ROOT)
    check()
    traced = {"trace": {"data": ["run:latest:evaluation/base/longbench/full"]}}
    assert ui.deployment("trace-weekly")["parameters"] == traced
    assert schedules("pipeline-weekly") == {("weekly", "0 4 * * 0", "UTC", True)}

    # Another prefect.yaml: what it changes counts where the UI has decided nothing else.
    (tmp_path / "infra").mkdir()
    for name in ("bootstrap.py", "automations.py"):
        shutil.copy(ROOT / "infra" / name, tmp_path / "infra")
    text = (ROOT / "prefect.yaml").read_text()
    for old, new in (("0 3 * * 6", "0 1 * * 6"), ("0 4 * * 0", "0 1 * * 0"), ("base/longbench", "base/needle")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "prefect.yaml").write_text(text)
    bootstrap(ui, tmp_path)
    check()
    assert schedules("pipeline-weekly") == {("weekly", "0 1 * * 0", "UTC", True)}
    assert ui.deployment("trace-weekly")["parameters"] == {
        "trace": {"data": ["run:latest:evaluation/base/needle/full"]}
    }


def test_runs_of_a_killed_worker_free_their_place(ui: Ui) -> None:
    dead = {"parameters": {"first": "a", "second": "b"}, "state": {"type": "RUNNING", "name": "Running"}}
    run = ui.post(f"deployments/{ui.deployment('compare')['id']}/create_flow_run", dead)
    assert crash_left_runs(f"{ui.address}/api") >= 1
    state = ui.get(f"flow_runs/{run['id']}")["state"]
    assert state["type"] == "CRASHED"
    assert "continues with what is missing" in state["message"]


@pytest.mark.parametrize(("change", "line"), [("port", "--port"), ("store", "another `longloom ui`")])
def test_what_is_in_use_is_one_clear_line(
    ui: Ui, change: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another store too: it is the database that one of them alone may serve."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", environment(ui.store.root.parent)["PREFECT_HOME"])
    monkeypatch.setattr(module.signal, "signal", lambda *handler: None)  # those of pytest stay
    port = int(ui.address.rsplit(":", 1)[1]) if change == "port" else 0
    with pytest.raises(ValueError, match=line) as caught:
        serve(str(tmp_path), port=port)
    assert len(str(caught.value).splitlines()) == 1


def test_interrupt_stops_everything(ui: Ui) -> None:
    family = family_of(ui.process)
    assert len(family) >= 3  # itself, the server, the worker
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(timeout=120) == 0
    _, alive = psutil.wait_procs(family[1:], timeout=5)
    assert [" ".join(each.cmdline()) for each in alive] == []
