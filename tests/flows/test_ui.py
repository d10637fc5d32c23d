"""`longloom ui` and `serve` without a server of Prefect: passwords, one server a database, dead workers."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from longloom.flows import ui as module
from longloom.flows.ui import Service, crash_left_runs, serve

from ..waiting import SECONDS, wait_until
from .ui_process import environment

ROOT = Path(__file__).resolve().parents[2]


def test_bootstrap_without_a_server_is_one_clear_line(tmp_path: Path) -> None:
    for address, line in (("", "set PREFECT_API_URL"), ("http://127.0.0.1:9/api", "does not answer")):
        done = subprocess.run(
            [sys.executable, ROOT / "infra" / "bootstrap.py"],
            env=environment(tmp_path) | {"PREFECT_API_URL": address},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 2
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1


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
        wait_until(lambda: service.log.read_text() or service.process.poll(), service.log.read_text)
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
