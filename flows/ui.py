"""`longloom ui`: a Prefect server over the store's runs, the deployments, and a worker for them, until Ctrl-C.

Three processes of Prefect's own commands, each in a session of its own, so that a Ctrl-C reaches this process alone
and everything is stopped in order. Imports no Prefect.
"""

from __future__ import annotations

import base64
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
from filelock import FileLock, Timeout

from longloom.flows.folder import check_folder
from longloom.storage.store import Store

HOST = "127.0.0.1"
BOOTSTRAP = Path(__file__).resolve().parent.parent / "infra" / "bootstrap.py"
POOL = "longloom"
#: A new database takes 20 to 27 seconds on an idle machine.
SECONDS_TO_START = 180.0
SECONDS_TO_STOP = 10.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Service:
    """One long-running Prefect command, with its output in a file."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], logs: Path) -> None:
        self.name = name
        self._started: set[psutil.Process] = set()
        self.log = logs / f"{name}.log"
        with self.log.open("wb") as output:
            self.process = psutil.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises RuntimeError if the command has ended."""
        code = self.process.poll()
        if code is not None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
            raise RuntimeError(f"the {self.name} ended with code {code}: {last}; see {self.log}")
        self._look()

    def _look(self) -> None:
        """Remembers what the command started: once it has died, nothing tells whose that was."""
        self._started = {process for process in self._started if process.is_running()}
        with contextlib.suppress(psutil.NoSuchProcess):
            self._started.update(self.process.children(recursive=True))

    def stop(self) -> None:
        """Ends the command and all that it started: flow runs run in sessions of their own and would outlive it."""
        self._look()
        family = [*self._started, self.process]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(family, timeout=SECONDS_TO_STOP)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def serve(store: str, *, port: int) -> None:
    """Serves the UI until Ctrl-C, a SIGTERM, or the terminal closes.

    Call after `runtime.prepare`, which says where Prefect's database lies, and not after `runtime.quiet`: the logs of
    the runs are for the UI.

    Args:
        store: the store's folder: the default of the deployments' `store`, and where logs go.
        port: of the server, on the loopback interface.

    Raises:
        ValueError: the port is taken; another one uses Prefect's database; a server of the user's own is set; there is
            no folder LONGLOOM_FOLDER.
        FileNotFoundError: no prefect.yaml beside the package (it is part of the repository, not of the wheel).
        RuntimeError: the server or the worker ended, or did not start.
    """
    check_folder()
    place = Store(store)
    environment = _environment(place, port)
    logs = place.root / "logs"
    logs.mkdir(exist_ok=True)
    for number in STOP_SIGNALS:
        signal.signal(number, interrupt)
    with contextlib.suppress(KeyboardInterrupt), _alone(environment), contextlib.ExitStack() as running:
        say(f"starting the Prefect server on port {port}; a new database takes half a minute")
        server = Service("server", ["server", "start"], environment, logs)
        running.callback(server.stop)
        _wait_for(server, environment["PREFECT_API_URL"] + "/health")
        done = subprocess.run([sys.executable, str(BOOTSTRAP)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{BOOTSTRAP.name} ended with code {done.returncode}: {done.stderr.strip()}")
        crash_left_runs(environment["PREFECT_API_URL"])
        worker = Service("worker", ["worker", "start", "--pool", POOL, "--name", POOL], environment, logs)
        running.callback(worker.stop)
        print(f"http://{HOST}:{port}", flush=True)
        say(f"deployments are registered, a worker waits for runs; logs in {logs}; Ctrl-C stops everything")
        while True:
            server.check()
            worker.check()
            time.sleep(1.0)


def _environment(store: Store, port: int) -> dict[str, str]:
    """Of the server, the bootstrap and the worker; checked first, so that nothing starts in vain."""
    if not BOOTSTRAP.is_file():
        raise FileNotFoundError(f"{BOOTSTRAP}: no such file; the UI is started from a checkout of the repository")
    given = os.environ.get("PREFECT_API_URL")
    if given:
        shown = given.rpartition("@")[2]  # no password of an address
        raise ValueError(f"PREFECT_API_URL is {shown}: register with that server by `python {BOOTSTRAP}`, or unset it")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"--port {port}: cannot be used ({error}); choose another one") from None
    return {
        # Marking late runs fills SQLite with writes until it answers "database is locked", and does nothing else.
        "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Who runs a deployment runs commands. Prefect's defaults let every page do so that this host's browser shows.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port},http://localhost:{port}",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        **os.environ,
        "LONGLOOM_STORE": store.address,
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        # As settings, not as options of the command: the UI's own idea of the address comes from them.
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
    }


@contextlib.contextmanager
def _alone(environment: Mapping[str, str]) -> Iterator[None]:
    """Two of us on one database would take each other's runs for dead; stores may share one (`runtime.prepare`)."""
    home = Path(environment.get("PREFECT_HOME", "~/.prefect")).expanduser()
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / "longloom-ui.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"PREFECT_HOME {home}: another `longloom ui` serves its database already; stop that one, or name another "
            "folder"
        ) from None
    with lock:
        yield


def crash_left_runs(api: str) -> int:
    """Marks the runs that an earlier worker was killed in: left as running, they hold their queue's only place forever.

    Args:
        api: address of a server whose pool has no worker now.

    Returns:
        How many there were.
    """
    headers = _headers(api)
    left = _post(
        f"{api}/flow_runs/filter",
        headers,
        {
            "work_pools": {"name": {"any_": [POOL]}},
            "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}},
        },
    )
    message = "Its worker was stopped. Run it again: it continues with what is missing."
    for run in left:
        state = {"type": "CRASHED", "name": "Crashed", "message": message}
        _post(f"{api}/flow_runs/{run['id']}/set_state", headers, {"state": state, "force": True})
    return len(left)


def _headers(api: str) -> dict[str, str]:
    """What the server wants to see: its password where there is one, and a token, which pages of others cannot read."""
    headers = {"Content-Type": "application/json"}
    if password := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
    client = str(uuid.uuid4())
    request = urllib.request.Request(f"{api}/csrf-token?client={client}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return headers | {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": json.load(answer)["token"]}
    except urllib.error.HTTPError as error:
        if error.code != 422:  # the answer of a server that asks for no token
            raise
        return headers


def _post(address: str, headers: Mapping[str, str], content: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(content).encode(), dict(headers))
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _wait_for(server: Service, address: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        server.check()
        with contextlib.suppress(urllib.error.URLError, TimeoutError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not answer within {SECONDS_TO_START:.0f} s; see {server.log}")


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handles the signals that mean: stop, in order."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # once: an impatient second one must not leave processes behind
    raise KeyboardInterrupt


def say(message: str) -> None:
    """Progress; standard output holds the address alone."""
    print(message, file=sys.stderr, flush=True)
