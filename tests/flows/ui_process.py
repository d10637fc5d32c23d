"""`longloom ui` as a process of its own, and its server's API."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from longloom.storage.store import Store

from ..waiting import SECONDS, wait_until

COMMAND = str(Path(sys.executable).with_name("longloom"))


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
        deadline = time.monotonic() + SECONDS
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


def environment(folder: Path) -> dict[str, str]:
    ours = ("PREFECT_", "LONGLOOM_", "PYTHONSAFEPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


@contextlib.contextmanager
def running_ui(folder: Path) -> Iterator[Ui]:
    """`longloom ui` as a user starts it, with a store in the folder; everything below it is gone at the end."""
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
