"""compose.yaml without Docker: PostgreSQL and Redis from the system's packages, Prefect from this environment, on
loopback, with the settings that stand in compose.yaml."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import yaml

from ..waiting import SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
#: An innermost one.
VARIABLE = re.compile(r"\$\{(\w+)(?::[?-]([^${}]*))?\}")


def missing() -> str:
    """What is not there to run it; empty if nothing is."""
    found = [name for name in ("initdb", "postgres", "redis-server") if binary(name) is None]
    found += [name for name in ("prefect_redis", "asyncpg") if importlib.util.find_spec(name) is None]
    hint = "Debian: apt-get install postgresql redis-server; pip install -e '.[server]'"
    return f"no {', '.join(found)} ({hint})" if found else ""


def binary(name: str) -> str | None:
    """Debian keeps PostgreSQL's commands off the PATH."""
    places = os.pathsep.join([os.environ.get("PATH", ""), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    return shutil.which(name, path=places)


def interpolate(value: str, given: dict[str, str]) -> str:
    """As Compose does: `${NAME:-default}`, whose default may hold another one."""
    while (inner := VARIABLE.sub(lambda found: given.get(found[1]) or found[2] or "", value)) != value:
        value = inner
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Listener:
    """What a webhook posts to."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        mine = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                mine.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.secret = secrets.token_hex(12)
        self.url = f"http://127.0.0.1:{self._server.server_port}/{self.secret}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Stack:
    """The processes, each in a session of its own, so that none dies with another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.data = Path(tempfile.mkdtemp(prefix="longloom-postgres-"))  # where PostgreSQL's own user can reach it
        self.secrets = {name: secrets.token_hex(16) for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD")}
        self.secrets["PREFECT_AUTH"] = f"admin:{secrets.token_hex(16)}"
        #: In the environment of runs.
        self.keys = {name: secrets.token_hex(16) for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")}
        self.postgres_port, self.redis_port, self.port = free_port(), free_port(), free_port()
        self.processes: dict[str, psutil.Popen] = {}
        self.webhook = Listener()

    # ---- environments

    def _resolve(self, value: str) -> str:
        """A value of compose.yaml, with this stack's secrets, hosts and ports."""
        value = interpolate(value, self.secrets)
        value = value.replace("@postgres:5432", f"@127.0.0.1:{self.postgres_port}")
        value = value.replace("@redis:6379", f"@127.0.0.1:{self.redis_port}")
        return value.replace("http://server:4200", f"http://127.0.0.1:{self.port}")

    def _plain(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "LONGLOOM_"))}
        quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "OMP_NUM_THREADS": "1"}
        return kept | quiet | {"PREFECT_HOME": str(self.folder / "prefect"), "HF_HUB_OFFLINE": "1"}

    def server_environment(self) -> dict[str, str]:
        return self._plain() | {key: self._resolve(value) for key, value in COMPOSE["x-server"].items()}

    def client_environment(self) -> dict[str, str]:
        client = {key: self._resolve(value) for key, value in COMPOSE["x-client"].items()}
        own = {"LONGLOOM_STORE": str(self.store), "PREFECT_WORKER_QUERY_SECONDS": "2"}
        return self._plain() | client | self.keys | own

    # ---- processes

    def start(self, name: str, command: list[str], environment: dict[str, str], *, user: str | None = None) -> None:
        """Starts or starts again a process that stays; its output goes to `<folder>/logs`."""
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            self.processes[name] = psutil.Popen(
                command,
                cwd=self.data if user else self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **({"user": user} if user else {}),
            )

    def prefect(self, name: str, *arguments: str, environment: dict[str, str]) -> None:
        self.start(name, [sys.executable, "-m", "prefect", *arguments], environment)

    def start_postgres(self) -> None:
        user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        if not any(self.data.iterdir()):
            password = self.data.with_suffix(".password")
            password.write_text(self.secrets["POSTGRES_PASSWORD"])
            for place in (self.data, password):
                if user:
                    shutil.chown(place, user)
            options = ["--username=prefect", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync"]
            command = [str(binary("initdb")), *options, str(self.data)]
            subprocess.run(command, user=user, check=True, capture_output=True, cwd="/")
            password.unlink()
        options = [f"-p{self.postgres_port}", "-clisten_addresses=127.0.0.1", f"-cunix_socket_directories={self.data}"]
        self.start("postgres", [str(binary("postgres")), "-D", str(self.data), *options], self._plain(), user=user)
        wait_until(lambda: self._listens(self.postgres_port), self.logs)

    def start_redis(self) -> None:
        options = ["--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        password = ["--requirepass", self.secrets["REDIS_PASSWORD"]]
        self.start("redis", [str(binary("redis-server")), *options, *password], self._plain())
        wait_until(lambda: self._listens(self.redis_port), self.logs)

    def start_server(self) -> None:
        environment = self.server_environment()
        options = ["--host", "127.0.0.1", "--port", str(self.port)]
        self.prefect("server", "server", "start", "--no-services", *options, environment=environment)
        wait_until(self.healthy, self.logs)

    def start_services(self) -> None:
        self.prefect("services", "server", "services", "start", environment=self.server_environment())

    def start_worker(self, **more: str) -> None:
        arguments = COMPOSE["services"]["worker-cpu"]["command"][1:-1]  # but its port for health checks
        self.prefect("worker", *arguments, environment=self.client_environment() | more)

    def create_database(self) -> None:
        """The database itself, which PostgreSQL's image makes, and its tables."""
        environment = self.server_environment()
        code = (
            "import asyncio, asyncpg, sys\n"
            "async def main():\n"
            "    found = await asyncpg.connect(sys.argv[1], database='postgres')\n"
            "    await found.execute('CREATE DATABASE prefect')\n"
            "asyncio.run(main())"
        )
        address = environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"].replace("+asyncpg", "")
        subprocess.run([sys.executable, "-c", code, address], check=True, timeout=SECONDS, env=self._plain())
        command = [sys.executable, "-m", *COMPOSE["services"]["migrate"]["command"]]
        subprocess.run(command, check=True, timeout=SECONDS, env=environment, capture_output=True)

    def bootstrap(self, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "infra" / "bootstrap.py")],
            env=self.client_environment() | more,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def kill(self, name: str) -> None:
        """SIGKILL to the process alone; of PostgreSQL, whose own end with it, until they have."""
        own = self.processes[name].children() if name == "postgres" else []
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by itself
            self.processes[name].kill()
        self.processes[name].wait(30)
        psutil.wait_procs(own, timeout=30)

    def close(self) -> None:
        for process in [*self.processes.values()][::-1]:
            family = [process]
            with contextlib.suppress(psutil.NoSuchProcess):
                family += process.children(recursive=True)
            for each in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        self.webhook.close()
        shutil.rmtree(self.data, ignore_errors=True)

    # ---- asking

    @staticmethod
    def _listens(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def healthy(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("health", authorised=False) is True)
        return False

    def ask(self, path: str, content: Any = None, *, method: str = "", authorised: bool = True) -> Any:
        """A request to the server's API; POST where there is content."""
        headers = {"Content-Type": "application/json"}
        if authorised:
            headers["Authorization"] = "Basic " + base64.b64encode(self.secrets["PREFECT_AUTH"].encode()).decode()
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}",
            data,
            headers,
            method=method or ("GET" if data is None else "POST"),
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def status(self, path: str) -> int:
        """HTTP status of a request without a password."""
        try:
            self.ask(path, authorised=False)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def run(self, deployment: str, parameters: dict[str, Any]) -> str:
        """Asks for a run; its id."""
        (found,) = self.ask("deployments/filter", {"deployments": {"name": {"any_": [deployment]}}})
        return str(self.ask(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"])

    def state(self, run: str) -> str:
        return str(self.ask(f"flow_runs/{run}")["state_type"])

    def wait(self, run: str, *states: str) -> None:
        """Until a run is in one of these states; a server that is down is asked again."""

        def there() -> bool:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                return self.state(run) in states
            return False

        wait_until(there, self.logs)

    def logs(self) -> str:
        files = sorted(self.folder.glob("logs/*.log"))
        return "\n".join(f"== {path.name}\n" + path.read_text(errors="replace")[-4000:] for path in files)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """The whole of it, but the worker."""
    stack = Stack(folder)
    try:
        stack.start_postgres()
        stack.start_redis()
        stack.create_database()
        stack.start_server()
        stack.start_services()
        yield stack
    finally:
        stack.close()
