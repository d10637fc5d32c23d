"""What must be set before Prefect is imported, and what every flow does at its start and end."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

#: Set unless the user set them. Telemetry is off in what we start; a cold ephemeral database takes 20-27 s to come up,
#: more than Prefect's patience.
_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def prepare(store: str | Path) -> None:
    """Sets the environment's defaults. Call before importing Prefect.

    Runs without a server keep Prefect's database beside the artifacts, so that `longloom ui` shows them later; a
    server or a profile of the user's own is left alone.

    Args:
        store: the store's folder.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    own = "PREFECT_API_URL" in os.environ or (Path.home() / ".prefect" / "profiles.toml").exists()
    if not own:
        home = Path(os.environ.setdefault("PREFECT_HOME", str(Path(store).expanduser().absolute() / "prefect")))
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
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers follows it too
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # peft asks transformers by a name that is to go; nothing that a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def start_server() -> None:
    """Starts the server that Prefect would start for a run, unless one of the user's own is set.

    In a process group of its own: a Ctrl-C goes to every process of the terminal's group, and Prefect waits for minutes
    for a server that has gone before the run could tell it about its end. Prefect stops it when this process exits; on
    Linux the kernel does where this process is killed. Call it from the main thread, whose death the kernel goes by.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED

    if PREFECT_API_URL.value() or not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        return
    from prefect.server.api.server import SubprocessASGIServer

    ordinary = subprocess.Popen
    die_too = _die_with_parent() if sys.platform == "linux" else None
    subprocess.Popen = functools.partial(ordinary, process_group=0, preexec_fn=die_too)  # type: ignore[assignment, misc]
    try:
        SubprocessASGIServer().start()
    finally:
        subprocess.Popen = ordinary  # type: ignore[misc]


def _die_with_parent() -> Callable[[], object]:
    """For a child between fork and exec: a SIGTERM when its parent dies."""
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1
    return functools.partial(prctl, set_parent_death_signal, int(signal.SIGTERM))
