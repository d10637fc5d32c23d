"""The whole of Prefect, for real: server, deployments, worker, a schedule that fires, and the page of its run.

One server serves the module. It is started as a user starts it, and everything below it is gone at the end.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from longloom.flows import ui as module
from longloom.flows.params_pipeline import PipelineParams
from longloom.flows.ui import Service, crash_left_runs, serve
from longloom.storage.runs import list_runs
from longloom.storage.store import Store

ROOT = Path(__file__).resolve().parents[2]
COMMAND = str(Path(sys.executable).with_name("longloom"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1400,1600"),
)
DEFINED = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
#: The machine may be busy: these are limits for giving up, nothing waits for them.
SECONDS_TO_START = 300
SECONDS_TO_RUN = 300


@dataclass(frozen=True)
class Ui:
    """A running `longloom ui`."""

    process: psutil.Popen
    address: str
    store: Store

    @cached_property
    def token(self) -> dict[str, str]:
        """What the server asks of who changes something, and tells nobody of another origin."""
        client = str(uuid.uuid4())
        return {
            "Prefect-Csrf-Client": client,
            "Prefect-Csrf-Token": self._send("GET", f"csrf-token?client={client}", None)["token"],
        }

    def post(self, path: str, content: dict[str, Any] | list[Any]) -> Any:
        return self._send("POST", path, content)

    def patch(self, path: str, content: dict[str, Any]) -> Any:
        return self._send("PATCH", path, content)

    def get(self, path: str) -> Any:
        return self._send("GET", path, None)

    def _send(self, method: str, path: str, content: Any) -> Any:
        data = None if content is None else json.dumps(content).encode()
        headers = {"Content-Type": "application/json"} | ({} if data is None else self.token)
        request = urllib.request.Request(f"{self.address}/api/{path}", data, headers, method=method)
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                # SQLite was locked, nothing was written: the server asks to come again, as it does with its own client.
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(1.0)

    def deployment(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = self.post("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        (one,) = found
        return one

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-6000:] for path in self.store.root.glob("logs/*.log"))


def wait_until(done: Callable[[], Any], seconds: float, message: Callable[[], str]) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := done():
            return found
        time.sleep(1.0)
    raise AssertionError(message())


def environment(folder: Path) -> dict[str, str]:
    ours = ("PREFECT_", "LONGLOOM_", "PYTHONSAFEPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    folder = tmp_path_factory.mktemp("ui")
    for name in ("duckdb", "orjson", "pickle", "random", "selectors", "sitecustomize"):  # as a corpus may hold them
        (folder / f"{name}.py").write_text(f"open({str(folder / 'run')!r}, 'a').write({name!r})\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = folder / "output"
    with output.open("wb") as file:
        process = psutil.Popen(
            [COMMAND, "ui", "--store", "store", "--port", str(port)],
            cwd=folder,
            env=environment(folder),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Ui(process, f"http://127.0.0.1:{port}", Store(folder / "store"))
    try:
        wait_until(
            lambda: "Ctrl-C" in output.read_text() or process.poll() is not None,
            SECONDS_TO_START,
            lambda: output.read_text() + running.logs(),
        )
        assert process.poll() is None, output.read_text()
        assert running.address in output.read_text().splitlines()
        yield running
    finally:
        family = family_of(process)
        if process.is_running():
            process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(family, timeout=30)
        for each in alive:
            each.kill()


def family_of(process: psutil.Process) -> list[psutil.Process]:
    """The process and everything below it, in whatever session."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def write_model(folder: Path) -> None:
    """A Llama of random weights with one layer, and a tokenizer of bytes; without importing torch here."""
    folder.mkdir()
    width, vocabulary = 16, 260
    rng = np.random.default_rng(0)
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    shapes |= {f"{layer}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
    shapes |= {f"{layer}mlp.{name}_proj.weight": (width, width) for name in ("gate", "up", "down")}
    shapes |= {f"{layer}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|end|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "chat_template": "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_inputs(folder: Path) -> PipelineParams:
    """A corpus, a model, instructions and evaluation records, as small as can be, and the parameters that name them."""
    folder.mkdir()
    words = ["alpha", "beta", "gamma", "delta"]
    write_model(folder / "model")
    (folder / "corpus.txt").write_text("\n".join(" ".join(words[i % 4 :]) for i in range(200)))
    with (folder / "instructions.jsonl").open("w") as file:
        for i in range(20):
            word = words[i % 4]
            messages = [{"role": "user", "content": f"say {word} {i}"}, {"role": "assistant", "content": word}]
            file.write(json.dumps({"messages": messages}) + "\n")
    records = folder / "records"
    (records / "config").mkdir(parents=True)
    record = {"input": "?", "length": 3, "dataset": "copy", "language": "en", "all_classes": None}
    with (records / "copy.jsonl").open("w") as file:
        for i, word in enumerate(words):
            file.write(json.dumps(record | {"context": f"word: {word}", "answers": [word], "_id": str(i)}) + "\n")
    tables = {"prompt": "{context}\nword:", "maxlen": 4, "metric": "qa_f1", "chat": False}
    for name, value in tables.items():
        (records / "config" / f"dataset2{name}.json").write_text(json.dumps({"copy": value}))
    return PipelineParams.model_validate(
        {
            "corpus": {"sources": ["inputs/corpus.txt"]},
            "index": {"tokenizer": "bytes", "threads": 1, "memory_gib": 0.5, "shard_tokens": 2000},
            "model": {"source": "inputs/model"},
            "instructions": {"sources": ["inputs/instructions.jsonl"]},
            "coreset": {"methods": ["random"], "share": 0.2, "max_length": 64},
            "finetune": {"epochs": 1, "max_length": 64, "batch": 4},
            "evaluate": {"suite": "records", "data": "inputs/records", "policies": ["full"]},
            "sweep": [],
            "needle": False,
            "full_pool": False,
        }
    )


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
    (run, *_) = wait_until(lambda: ui.post("flow_runs/filter", scheduled), SECONDS_TO_RUN, ui.logs)
    ui.patch(f"deployments/{deployment['id']}/schedules/{made['id']}", {"active": False})

    def ended() -> dict[str, Any] | None:
        now: dict[str, Any] = ui.get(f"flow_runs/{run['id']}")
        return now if now["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    found: dict[str, Any] = wait_until(ended, SECONDS_TO_RUN, ui.logs)
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
    assert CHROMIUM is not None
    address = f"{ui.address}/v2/runs/flow-run/{scheduled_run['id']}?tab=Artifacts"
    options = [*CHROMIUM_OPTIONS, f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom"]
    expected = ("Completed", scheduled_run["name"], "scores-base-records-full", "report-pipeline", "index: 1 in all")

    def page() -> str:
        with (tmp_path / "dom").open("w+") as file:
            browser = psutil.Popen(
                [CHROMIUM, *options, address], stdout=file, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                browser.wait(timeout=120)
            finally:
                for each in family_of(browser):
                    each.kill()
            file.seek(0)
            return file.read()

    missing: list[str] = []

    def all_there() -> bool:
        text = page()  # whole or, on a busy machine, before the last answers of the server
        missing[:] = [part for part in expected if part not in text]
        return not missing

    wait_until(all_there, SECONDS_TO_RUN, lambda: f"{missing} not on the page {address}")


def bootstrap(ui: Ui, root: Path) -> str:
    """Runs the bootstrap of a checkout; what it said."""
    done = subprocess.run(
        [sys.executable, root / "infra" / "bootstrap.py"],
        env=environment(ui.store.root.parent) | {"PREFECT_API_URL": f"{ui.address}/api"},
        cwd=ui.store.root.parent,
        capture_output=True,
        text=True,
        timeout=SECONDS_TO_RUN,
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


def test_bootstrap_without_a_server_is_one_clear_line(tmp_path: Path) -> None:
    for address, line in (("", "set PREFECT_API_URL"), ("http://127.0.0.1:9/api", "does not answer")):
        done = subprocess.run(
            [sys.executable, ROOT / "infra" / "bootstrap.py"],
            env=environment(tmp_path) | {"PREFECT_API_URL": address},
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_START,
            check=False,
        )
        assert done.returncode == 2
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_runs_of_a_killed_worker_free_their_place(ui: Ui) -> None:
    dead = {"parameters": {"first": "a", "second": "b"}, "state": {"type": "RUNNING", "name": "Running"}}
    run = ui.post(f"deployments/{ui.deployment('compare')['id']}/create_flow_run", dead)
    assert crash_left_runs(f"{ui.address}/api") >= 1
    state = ui.get(f"flow_runs/{run['id']}")["state"]
    assert state["type"] == "CRASHED"
    assert "continues with what is missing" in state["message"]


@pytest.mark.parametrize("tokens", [True, False])
def test_a_server_with_a_password_is_told_it(tokens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it asks for tokens or not."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200 if tokens else 422, {"token": "warp"})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            known = self.headers["Prefect-Csrf-Token"] == "warp" and self.headers["Prefect-Csrf-Client"]
            self._answer(403 if tokens and not known else 200, [{"id": "1"}] if "filter" in self.path else {})

        def _answer(self, code: int, content: Any) -> None:
            user, _, secret = self.headers["Authorization"].partition(" ")
            code = code if (user, base64.b64decode(secret)) == ("Basic", b"weaver:w4rp") else 401
            asked.append(f"{code} {self.path.partition('?')[0]}")
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *arguments: Any) -> None: ...

    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "weaver:w4rp")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert crash_left_runs(f"http://127.0.0.1:{server.server_port}/api") == 1
    finally:
        server.shutdown()
        server.server_close()
    first = "200" if tokens else "422"
    assert asked == [f"{first} /api/csrf-token", "200 /api/flow_runs/filter", "200 /api/flow_runs/1/set_state"]


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


def test_one_serves_a_database_whatever_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where a user's own database lies if nothing else is said
    with module._alone({}):
        for named in ({}, {"PREFECT_HOME": str(tmp_path / ".prefect")}, {"PREFECT_HOME": "~/.prefect"}):
            with pytest.raises(ValueError, match="another `longloom ui` serves its database already") as caught:
                module._alone(named).__enter__()
            assert str(caught.value).startswith(f"PREFECT_HOME {tmp_path}/.prefect: ")
        with module._alone({"PREFECT_HOME": str(tmp_path / "other")}):
            pass
    with module._alone({}):
        pass


def test_a_password_of_a_server_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://weaver:w4rp@prefect.example.org/api")
    with pytest.raises(ValueError, match=r"^PREFECT_API_URL is prefect\.example\.org/api: register with") as caught:
        serve(str(tmp_path), port=0)
    assert "w4rp" not in str(caught.value)


WORKER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("started", flush=True)
time.sleep(600)
"""


def test_what_a_dead_worker_started_is_ended(tmp_path: Path) -> None:
    (tmp_path / "prefect.py").write_text(WORKER)
    service = Service("worker", [], {**os.environ, "PYTHONPATH": str(tmp_path)}, tmp_path)
    try:
        wait_until(lambda: service.log.read_text() or service.process.poll(), 60, service.log.read_text)
        service.check()
        (flow_run,) = service.process.children(recursive=True)
        service.process.kill()
        service.process.wait()
        with pytest.raises(RuntimeError, match="the worker ended with code -9: started"):
            service.check()
        assert flow_run.is_running()
    finally:
        service.stop()
    assert psutil.wait_procs([flow_run], timeout=5)[1] == []


def test_interrupt_stops_everything(ui: Ui) -> None:
    family = family_of(ui.process)
    assert len(family) >= 3  # itself, the server, the worker
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(timeout=120) == 0
    _, alive = psutil.wait_procs(family[1:], timeout=5)
    assert [" ".join(each.cmdline()) for each in alive] == []
