"""`longloom serve`: this machine works for a Prefect server of one's own, until Ctrl-C. Imports no Prefect."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from longloom.flows.folder import check_folder
from longloom.flows.ui import BOOTSTRAP, POOL, STOP_SIGNALS, Service, interrupt, say
from longloom.storage.store import Store

#: Of the pool, as the bootstrap makes them. A worker that names another one would make that, without a limit.
QUEUES = ("default", "compute", "gpu")


def serve(store: str, *, queues: Sequence[str]) -> None:
    """Registers the deployments and works on their runs until Ctrl-C, a SIGTERM, or the terminal closes.

    Relative paths of runs refer to LONGLOOM_FOLDER, by default to the folder that it is called in. Other machines may
    serve too: the server gives each run to one of them.

    Args:
        store: of the runs that name none; for several machines a folder that all of them see.
        queues: of the pool; all of them when there are none.

    Raises:
        ValueError: no server is named, or an unknown queue, or a folder that is not there.
        FileNotFoundError: no prefect.yaml beside the package (it is part of the repository, not of the wheel).
        RuntimeError: the server refused, or the worker ended.
    """
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        raise ValueError("PREFECT_API_URL is not set: set it to a server's address, or start one with `longloom ui`")
    if unknown := set(queues) - set(QUEUES):
        raise ValueError(f"--queues {min(unknown)}: no such queue, expected {', '.join(QUEUES)}")
    if not BOOTSTRAP.is_file():
        raise FileNotFoundError(f"{BOOTSTRAP}: no such file; runs are served from a checkout of the repository")
    check_folder()
    place = Store(store)
    environment = {**os.environ, "LONGLOOM_STORE": place.address}
    logs = place.root / "logs"
    logs.mkdir(exist_ok=True)
    for number in STOP_SIGNALS:
        signal.signal(number, interrupt)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as running:
        done = subprocess.run([sys.executable, str(BOOTSTRAP)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"{BOOTSTRAP.name} ended with code {done.returncode}")
        chosen = [word for queue in queues for word in ("--work-queue", queue)]
        # Machines that share a store's folder share its logs.
        worker = Service(
            f"worker-{socket.gethostname()}", ["worker", "start", "--pool", POOL, *chosen], environment, logs
        )
        running.callback(worker.stop)
        host = urlsplit(address).netloc.rpartition("@")[2]  # no password of an address
        say(f"deployments are registered with {host}, this machine waits for runs; logs in {logs}; Ctrl-C stops it")
        while True:
            worker.check()
            time.sleep(1.0)
