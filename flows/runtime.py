"""What must be set before Prefect is imported, and what every flow does at its start and end."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from longloom.storage.remote import local_folder

#: Set unless the user set them. Telemetry is off in what we start; a cold ephemeral database takes 20-27 s to come up,
#: more than Prefect's patience. And a server on SQLite has some of dozens of runs at once wait for up to 60 s, or
#: answers 503, or 500 where its 15 connections are taken: runs wait longer than it does, since a request given up and
#: sent again would make a second flow run, and try again for four minutes, not one (2, 4, 8 ... s).
#: Processes that we start look for no modules in the folder that they start in: it may be a corpus, with a random.py.
_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_CLIENT_MAX_RETRIES": "7",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
    "PREFECT_API_REQUEST_TIMEOUT": "180",
    "PYTHONSAFEPATH": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
#: The server of one run: what `prefect.server.api.server.SubprocessASGIServer` sets, and no blocks. Those take a second
#: each time, no run needs them, and a server that is there to stay (`longloom ui`) registers them.
_SERVER = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}


def prepare(store: str | Path) -> None:
    """Sets the environment's defaults. Call before importing Prefect.

    Runs without a server keep Prefect's database beside the artifacts, so that `longloom ui` shows them later; a
    server or a profile of the user's own is left alone.

    Args:
        store: the store's folder or address.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    own = "PREFECT_API_URL" in os.environ or (Path.home() / ".prefect" / "profiles.toml").exists()
    if not own:
        home = Path(os.environ.setdefault("PREFECT_HOME", str(local_folder(store) / "prefect")))
        home.mkdir(parents=True, exist_ok=True)  # SQLite opens a file, not the folders above it


def quiet() -> None:
    """For the command line: Prefect's log lines and tracebacks give way to one line a stage and one an error."""
    for logger in (
        "",
        "INTERNAL_",
        "ROOT_",
    ):  # the root's for Prefect's services, whose loggers are not below `prefect`
        os.environ.setdefault(f"PREFECT_LOGGING_{logger}LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # forty lines for a cluster that comes and goes
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers follows it too
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # peft asks transformers by a name that is to go; nothing that a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def start_server(*imports: str) -> None:
    """Starts the server that Prefect would start for a run, unless one of the user's own is set; and imports Prefect.

    Prefect starts its server within the first call of a flow, and imports all of it into this process as well. Here it
    starts first, and what a run needs is imported while it does: half the time of a run that has nothing to do.

    In a process group of its own: a Ctrl-C goes to every process of the terminal's group, and Prefect waits for minutes
    for a server that has gone before the run could tell it about its end. It is stopped when this process exits; on
    Linux the kernel does that where this process is killed. Call it from the main thread, whose death the kernel goes
    by, after `prepare`.

    Args:
        imports: modules that the run will need, slow ones.

    Raises:
        RuntimeError: the server ended, or did not answer in time.
    """
    server = None if _may_be_configured() else _Server()
    for name in ("prefect.artifacts", "prefect.flow_engine", "prefect.task_engine", *imports):
        importlib.import_module(name)
    if server is None:
        from prefect.context import refresh_global_settings_context
        from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, get_current_settings

        if PREFECT_API_URL.value() or not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
            return
        os.environ.update(get_current_settings().to_environment_variables(exclude_unset=True))  # of a profile
        server = _Server()
        refresh_global_settings_context()
    server.wait()


def _may_be_configured() -> bool:
    """Whether anything could tell Prefect of a server; to ask Prefect itself takes a second."""
    if any(os.environ.get(name) for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")):
        return True
    if "PREFECT_HOME" not in os.environ or any(name.endswith("_EPHEMERAL_ENABLED") for name in os.environ):
        return True
    files = (Path(os.environ["PREFECT_HOME"], "profiles.toml"), Path("prefect.toml"), Path(".env"))
    project = Path("pyproject.toml")
    return any(file.exists() for file in files) or (project.exists() and b"tool.prefect" in project.read_bytes())


class _Server:
    """Prefect's API on a free port of the loopback interface; this process's Prefect is told of it."""

    def __init__(self) -> None:
        home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
        home.mkdir(parents=True, exist_ok=True)
        # Two servers that make or update one database at once end each other: only one starts until that is done.
        self._lock = FileLock(home / "longloom-start.lock")
        self._made = home / f"longloom-started-{importlib.metadata.version('prefect')}"
        if not self._made.exists():
            self._lock.acquire()
        self._start()
        atexit.register(self._stop)  # before Prefect registers what it still has to tell the server

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
        # Where uvicorn looks for modules first, by default in the folder that it starts in.
        command += ["--app-dir", str(importlib.metadata.distribution("prefect").locate_file(""))]
        address = f"http://127.0.0.1:{port}"
        # Its API is for this run, not for pages that a browser of this host shows, whom Prefect lets in by default.
        own = {**_SERVER, "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address}
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **own},
            process_group=0,
            preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
        )
        self._address = f"{address}/api"
        os.environ["PREFECT_API_URL"] = self._address

    def wait(self) -> None:
        """Until it answers."""
        patience = float(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"Prefect's server ended with code {self._process.returncode} while it started")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self._address}/health", timeout=5):
                break
            time.sleep(0.05)
        else:
            raise RuntimeError(f"Prefect's server did not answer within {patience:.0f} s")
        if not self._made.exists():
            self._made.touch()
        self._lock.release()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _die_with_parent() -> Callable[[], object]:
    """For a child between fork and exec: a SIGTERM when its parent dies."""
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1
    return functools.partial(prctl, set_parent_death_signal, int(signal.SIGTERM))
