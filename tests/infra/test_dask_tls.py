"""Dask as compose.yaml and the Helm values configure it: who shows no certificate of its authority is not let in, and
who asks over HTTP hears of nothing but its health.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from ..waiting import wait_until
from .stack import COMPOSE, ROOT, free_port

#: Asks the cluster for 2 ** 5, as a flow run would: by its address alone.
CLIENT = (
    "import sys\nfrom distributed import Client\n"
    "if __name__ == '__main__':\n"
    "    with Client(sys.argv[1], timeout=20) as client:\n        print(client.submit(pow, 2, 5).result(timeout=60))"
)


class Cluster(NamedTuple):
    address: str
    processes: dict[str, psutil.Popen]


def plain() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("DASK_")}


def settings(certificates: Path, *, inline: bool = False) -> dict[str, str]:
    """Those of compose.yaml, with this folder; inline, the text of the files for their names, as in Kubernetes."""
    found = {}
    for key, value in COMPOSE["x-dask"].items():
        place = certificates / Path(value).name
        found[key] = (place.read_text() if inline else str(place)) if value.startswith("/certificates/") else value
    return found


def make(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, str(ROOT / "infra" / "certificates.py"), str(folder)], check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def cluster(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and a worker as compose.yaml starts them; their TLS is configured by the environment alone."""
    folder = tmp_path_factory.mktemp("dask")
    port = free_port()
    found = f"tls://127.0.0.1:{port}"
    options = COMPOSE["services"]["dask-worker"]["command"][3:]
    commands = {
        "scheduler": ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        "worker": ["worker", found, *options, "--local-directory", str(folder)],
    }
    processes: dict[str, psutil.Popen] = {}
    try:
        for name, arguments in commands.items():
            environment = plain() | settings(certificates, inline=name == "worker")
            with (folder / f"{name}.log").open("wb") as log:
                processes[name] = psutil.Popen(
                    [sys.executable, "-m", "dask", *arguments], env=environment, stdout=log, stderr=log, cwd=folder
                )
            log_of = folder / f"{name}.log"
            ready = "Scheduler at:" if name == "scheduler" else "Registered to:"
            wait_until(lambda log_of=log_of, ready=ready: ready in log_of.read_text(), log_of.read_text, 120)
        yield Cluster(found, processes)
    finally:
        for process in [*processes.values()][::-1]:
            for each in [*process.children(recursive=True), process]:
                each.kill()


@pytest.fixture
def address(cluster: Cluster) -> str:
    return cluster.address


def ask(address: str, environment: dict[str, str], code: str = CLIENT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, address],
        env=plain() | environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize("inline", [False, True], ids=["files", "text"])
def test_who_has_the_certificate_is_served(address: str, certificates: Path, inline: bool) -> None:
    done = ask(address, settings(certificates, inline=inline))
    assert (done.returncode, done.stdout) == (0, "32\n"), done.stderr


def test_who_has_another_one_or_none_is_not(address: str, certificates: Path, tmp_path: Path) -> None:
    foreign = settings(make(tmp_path / "theirs"))
    only_authority = {key: value for key, value in settings(certificates).items() if "CLIENT" not in key}
    for environment in (foreign, only_authority, {}):
        done = ask(address, environment)
        assert done.returncode != 0
        assert done.stdout == ""
    assert ask(address.replace("tls://", "tcp://"), {}).returncode != 0


def status(port: int, path: str) -> int:
    """Of an answer over HTTP; 0 where nothing speaks that."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status
    return 0


@pytest.mark.parametrize("name", ["scheduler", "worker"])
def test_over_http_there_is_health_alone(cluster: Cluster, name: str) -> None:
    """Else it shows workers, logs and call stacks to anybody, and --no-dashboard takes only the plots away."""
    family = [cluster.processes[name], *cluster.processes[name].children(recursive=True)]
    listening = {
        each.laddr.port for one in family for each in one.net_connections("tcp") if each.status == psutil.CONN_LISTEN
    }
    (port,) = (port for port in listening if status(port, "/health") == 200)
    pages = ["/", "/status", "/info/main/workers.html", "/info/logs.html", "/json/counts.json", "/metrics"]
    assert [page for page in pages if status(port, page) != 404] == []


def test_the_worker_has_no_memory_limit(cluster: Cluster, certificates: Path) -> None:
    """At 95 % of one it would be killed."""
    code = CLIENT.replace(
        "client.submit(pow, 2, 5).result(timeout=60)",
        "[one['memory_limit'] for one in client.scheduler_info()['workers'].values()]",
    )
    done = ask(cluster.address, settings(certificates), code)
    assert done.stdout == "[0]\n", done.stderr
