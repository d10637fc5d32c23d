"""Many flow runs, and many task runs, against one Prefect server; its pages in Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fault.commands import SECONDS, Row, environment, wait
from longloom.storage.runs import list_runs
from longloom.storage.store import Store
from tests.browser import CHROMIUM, Browser
from tests.infra.stack import running


@contextlib.contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """`prefect server start` on SQLite, with the settings of `longloom ui`; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    own = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false"}
    own |= {"PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_SERVER_API_PORT": str(port), "DO_NOT_TRACK": "1"}
    own |= {"PREFECT_API_URL": f"{address}/api", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [str(Path(sys.executable).with_name("prefect")), "server", "start"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment(**own), stdout=log, stderr=log, start_new_session=True)

    def healthy() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/health", timeout=5):
            return True
        return False

    try:
        wait(healthy, "the server did not start")
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ask(address: str, what: str, **content: Any) -> Any:
    """All rows of the server's answer."""
    found: list[Any] = []
    while True:
        body = json.dumps({**content, "limit": 200, "offset": len(found)}).encode()
        request = urllib.request.Request(f"{address}/api/{what}/filter", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            rows = json.load(answer)
        found += rows
        if len(rows) < 200:
            return found


FIFTY = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from longloom.flows.runtime import prepare

prepare(Path(sys.argv[1]) / "store")  # as every command does
from longloom.flows.index import build_index
from longloom.flows.params import CorpusParams, IndexParams

def one(number):
    place = Path(sys.argv[1]) / f"corpus-{number % 25}.txt"
    corpus = CorpusParams(sources=[str(place)])
    index = IndexParams(tokenizer="bytes", threads=1, memory_gib=0.5)
    return build_index(corpus, index, store=str(Path(sys.argv[1]) / "store")).digest

with ThreadPoolExecutor(50) as pool:
    digests = list(pool.map(one, range(50)))
assert digests[:25] == digests[25:]
"""


FIFTY_DONE = "50 threads of one process, each of 25 indexes asked for twice, one server"
FIFTY_FOUND = "50 Completed in the UI and `completed` in the store; 25 indexes, each built once"


def fifty_runs(folder: Path) -> Row:
    """50 flow runs of 25 indexes, all at once in one process, against one server on SQLite."""
    with prefect_server(folder) as address:
        _fifty(folder, environment(PREFECT_API_URL=f"{address}/api"), lambda: ask(address, "flow_runs"))
    return Row("50 flow runs at once, on SQLite", FIFTY_DONE, FIFTY_FOUND)


def fifty_on_postgres(folder: Path) -> Row:
    """The same against the server of infra/compose.yaml: PostgreSQL and Redis, services apart."""
    with running(folder) as stack:
        _fifty(folder, stack.client_environment(), lambda: stack.ask("flow_runs/filter", {"limit": 200}))
    return Row("50 flow runs at once, on PostgreSQL", FIFTY_DONE, FIFTY_FOUND)


def _fifty(folder: Path, variables: dict[str, str], flow_runs: Callable[[], list[dict[str, Any]]]) -> None:
    for number in range(25):
        (folder / f"corpus-{number}.txt").write_text(f"corpus number {number}\n" * 50)
    quiet = {"LONGLOOM_QUIET": "1", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    command = [sys.executable, "-c", FIFTY, str(folder)]
    done = subprocess.run(command, env=variables | quiet, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    states = Counter(run["state_type"] for run in flow_runs())
    assert states == {"COMPLETED": 50}, states
    store = Store(folder / "store")
    assert [run.state for run in list_runs(store)] == ["completed"] * 50
    assert len(list(store.root.glob("artifacts/index/*"))) == 25


SHARDS = """
import sys, psutil
from prefect import flow
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import stage

@stage("shard", version=1)
def shard(work, *, number):
    (work.out / "data").write_text(str(number) * 1000)
    return Stats(counts={"bytes": 1000})

@flow(name="shards")
def shards(count: int):
    store = Store(sys.argv[1])
    for number in range(count):
        shard(store, label=str(number), number=number)
        if number % 100 == 99:
            print(psutil.Process().memory_info().rss >> 20, flush=True)

shards(500)
shards(1)  # for comparison
"""


def five_hundred_shards(folder: Path) -> Row:
    """500 task runs in one flow run: the flow process's memory, and how long its page takes to open beside one's."""
    with prefect_server(folder) as address:
        own = environment(PREFECT_API_URL=f"{address}/api", LONGLOOM_QUIET="1", PREFECT_LOGGING_LEVEL="CRITICAL")
        code = [sys.executable, "-c", SHARDS, str(folder / "store")]
        done = subprocess.run(code, env=own, capture_output=True, text=True, timeout=SECONDS * 2)
        assert done.returncode == 0, done.stderr[-2000:]
        resident = [int(line) for line in done.stdout.split()]
        long, short = sorted(ask(address, "flow_runs"), key=lambda run: run["created"])
        # The server takes task runs' events one by one, after the flow has gone on; the last few are told as it ends.
        wait(
            lambda: sum(task["state_type"] == "COMPLETED" for task in ask(address, "task_runs")) >= 495,
            "the server does not know that the shards are completed",
        )
        page = "no chromium here"
        if CHROMIUM is not None:
            runs = ((long, "500 Task runs"), (short, "1 Task run"))
            seconds = opened([(f"{address}/v2/runs/flow-run/{run['id']}", run["name"], told) for run, told in runs])
            page = "its page shows them after {:.1f} s, that of a run of one shard after {:.1f} s".format(*seconds)
    assert resident[-1] - resident[0] < 40, resident
    megabytes = ", ".join(map(str, resident))
    return Row(
        "a flow run with 500 shards",
        "500 task runs one after another; its page in Chromium",
        f"flow process after each hundred: {megabytes} MiB; {page}",
    )


def opened(pages: Sequence[tuple[str, str, str]]) -> list[float]:
    """Seconds from asking for a page until it shows two texts, the least of three in one browser.

    Args:
        pages: address and texts of each.
    """
    with tempfile.TemporaryDirectory(prefix="longloom-chromium-", ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile))
        try:
            return [min(_seconds(browser, *page) for _ in range(3)) for page in pages]
        finally:
            browser.close()


def _seconds(browser: Any, address: str, *expected: str) -> float:
    browser.open("about:blank")
    started = time.monotonic()
    browser.open(address)
    browser.until(f"{json.dumps(expected)}.every(text => document.body.innerText.includes(text))")
    return time.monotonic() - started
