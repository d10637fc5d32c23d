"""Faults tried on whole processes, a row each: what was done, the state found, what was lost. `make faults`.

    python benchmarks/faults.py --out benchmarks/results/faults.md [--only disk clock]

What tests/ tries already (every step of a build killed or without room, the stack of compose.yaml with parts killed) is
run from there and told of; the rest is tried here on stores of its own, with the command line as a user has it. A row
whose expectation fails says FAILED and why, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine

from longloom.storage.runs import list_runs
from longloom.storage.stats import Stats
from longloom.storage.store import Store

ROOT = Path(__file__).resolve().parents[1]
LONGLOOM = str(Path(sys.executable).with_name("longloom"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: For giving up; nothing waits for it.
SECONDS = 900


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fault: str
    done: str
    found: str
    lost: str = "nothing"


def environment(**more: str) -> dict[str, str]:
    """Of a user without a Prefect of their own, with one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "LONGLOOM_"))}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def start(folder: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """`longloom ...` in a folder, in a process group of its own."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [LONGLOOM, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment(**more), text=True, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Its standard error, once it ended with `code`."""
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == code, f"ended with {process.returncode}, expected {code}: {error[-2000:]}"
    return error


def index(folder: Path, *options: str) -> list[str]:
    """Arguments of a small run of two stages; its corpus is made here."""
    corpus = folder / "corpus.txt"
    if not corpus.exists():
        corpus.write_text("\n".join(f"line {number} of a small corpus" for number in range(2000)))
    return ["index", "corpus.txt", "--tokenizer", "bytes", "--store", "store", *options]


def artifacts(store: Store) -> dict[str, str]:
    """Kind -> digest of what can be read and is whole."""
    return {folder.parent.name: store.verify(folder).digest for folder in store.root.glob("artifacts/*/*")}


def pytest_rows(fault: str, done: str, *nodes: str) -> Row:
    """A row of tests: how many passed."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *nodes],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS * 2,
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-2000:]
    last = ran.stdout.strip().splitlines()[-1].strip("= ")
    assert "skipped" not in last, f"not tried here: {last}"
    return Row(fault, done, f"{nodes[0].partition('::')[0]}: {last.partition(' in ')[0]}")


# ---- processes


def flow_killed(folder: Path) -> Row:
    """SIGKILL of the process of a run in its second stage."""
    whole = folder / "whole"
    whole.mkdir()
    finish(start(whole, *index(whole)))
    expected = artifacts(Store(whole / "store"))
    store = Store(folder / "store")
    arguments = index(folder)
    key = next((whole / "store" / "artifacts" / "index").iterdir()).name
    with store.lock("index", key):
        process = start(folder, *arguments)
        wait(lambda: any("corpus" in run.stages for run in list_runs(store)), "the run has no corpus")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(SECONDS)
    state = list_runs(store)[0].state
    assert state == "interrupted", state
    text = finish(start(folder, *arguments))
    assert "= corpus" in text, text
    assert "+ index" in text, text
    assert artifacts(store) == expected
    return Row(
        "SIGKILL of a flow process",
        "killed in its second stage, run again",
        "run `interrupted`; then the first stage unchanged, the second built, digests as without the kill",
    )


def stack(folder: Path) -> Row:
    """Parts of compose.yaml's stack killed under runs."""
    return pytest_rows(
        "SIGKILL of the server, PostgreSQL, a worker with its run",
        "each killed under a run, on loopback with PostgreSQL and Redis",
        "tests/infra/test_stack.py",
    )


def builds(folder: Path) -> Row:
    """Every step of a build."""
    return pytest_rows(
        "SIGKILL or a full disk at every step of a build",
        "fresh, resumed and replacing builds, before each change of the store",
        "tests/tasks/test_stage.py::test_a_build_may_end_at_any_step",
    )


def wait(done: Callable[[], Any], message: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := done():
            return found
        time.sleep(0.2)
    raise AssertionError(message)


# ---- storage


def disk_full(folder: Path) -> Row:
    """A file system of 8 MiB, for the store without Prefect's database."""
    place = folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "longloom-faults", place], check=True)
    try:
        corpus = folder / "big.txt"
        corpus.write_text("\n".join(f"line {number} of a corpus that does not fit" for number in range(150_000)))
        arguments = ["index", str(corpus), "--tokenizer", "bytes", "--store", str(place / "store")]
        own = {"PREFECT_HOME": str(folder / "prefect")}
        text = finish(start(folder, *arguments, **own), 2)
        (line,) = [line for line in text.splitlines() if line.startswith("longloom: ")]
        assert "disk full" in line, line
        store = Store(place / "store")
        assert "index" not in artifacts(store)
        subprocess.run(["mount", "-o", "remount,size=512m", place], check=True)
        text = finish(start(folder, *arguments, **own))
        assert "+ index" in text, text
        assert {"corpus", "index"} <= artifacts(store).keys()
    finally:
        subprocess.run(["umount", place], check=True)
    return Row(
        "disk full (ENOSPC of a small tmpfs)",
        "an index that does not fit; then again with room",
        f"exit 2, `{line.replace(str(folder), '...')}`; then built",
    )


def bit_flipped(folder: Path) -> Row:
    """One bit of a published file, its times kept as they were by nobody: a plain write."""
    finish(start(folder, *index(folder)))
    store = Store(folder / "store")
    before = artifacts(store)
    file = max(store.root.glob("artifacts/index/*/*"), key=lambda path: path.stat().st_size)
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        (byte,) = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))
    doctor = start(folder, "doctor", "--store", "store")
    told, _ = doctor.communicate(timeout=SECONDS)
    assert doctor.returncode == 1, told
    assert file.name in told, told
    text = finish(start(folder, *index(folder)))
    assert "= corpus" in text, text
    assert "+ index" in text, text
    assert artifacts(store) == before
    return Row(
        "an artifact with one bit flipped",
        f"in the index's {file.name}; doctor, then the run again",
        "doctor names the file, exit 1; only this stage is built again, the same digest",
    )


def twice_at_once(folder: Path) -> Row:
    """Two processes, one key."""
    store = Store(folder / "store")
    arguments = index(folder)
    both = [start(folder, *arguments) for _ in range(2)]
    texts = [finish(process) for process in both]
    built = sum(text.count("+ index") for text in texts)
    found = sum(text.count("= index") for text in texts)
    assert (built, found) == (1, 1), texts
    assert [run.state for run in list_runs(store)] == ["completed"] * 2
    return Row("two runs of one stage at once", "two processes on a new store", "one builds, the other finds it")


def thousands(folder: Path) -> Row:
    """5,000 artifacts and 300 runs beside two runs with reports."""
    store = Store(folder / "store")
    refs = []
    for number in range(5000):
        key = f"{number:032x}"
        work = store.begin("report" if number < 2 else "thing", key, resume=False)
        (work / "report.json").write_text(_SMALL_REPORT)
        common: dict[str, Any] = {"parents": {}, "runtime": {}, "seconds": 1.0, "code": "", "environment": {}}
        kind = "report" if number < 2 else "thing"
        options = {"stage": kind, "version": 1, "kind": kind, "key": key, "parameters": {"number": number}}
        refs.append(store.publish(work, Stats(counts={"things": 1}), **options, **common))
    from longloom.storage.runs import RunLog

    for number in range(300):
        with RunLog(store, "pipeline", {}) as log:
            log.run.stages = {f"stage/{place}": refs[place] for place in range(60)} | {"report": refs[number % 2]}
            log.add("last", refs[2])
    first, second = (run.id for run in list_runs(store)[:2])
    took = {
        "import": least([sys.executable, "-c", "import longloom.flows.cli"], folder),
        "runs": least([LONGLOOM, "runs", "--store", "store"], folder),
        "compare": least([LONGLOOM, "compare", first, second, "--store", "store"], folder),
    }
    return Row(
        "5,000 artifacts and 300 runs in the store",
        "`runs` and `compare`, the quicker of three",
        f"runs {took['runs']:.2f} s, compare {took['compare']:.2f} s (of both, importing the commands"
        f" {took['import']:.2f} s)",
    )


_SCORE = {"suite": "s", "task": "t", "metric": "m", "model": "a", "policy": "full", "score": 1.0, "full_score": 1}
_SMALL_REPORT = json.dumps({"title": "none", "evaluation": {"scores": [_SCORE]}, "manifests": {}})


def least(command: list[str], folder: Path) -> float:
    """Seconds, the least of three."""
    taken = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)
        taken.append(time.monotonic() - started)
    return min(taken)


# ---- many at once


@contextlib.contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """`prefect server start` on SQLite, with the settings of `longloom ui`; its address."""
    import socket
    import urllib.request

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
    import urllib.request

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


def fifty_runs(folder: Path) -> Row:
    """50 flow runs of 25 indexes, all at once in one process, against one server on SQLite."""
    for number in range(25):
        (folder / f"corpus-{number}.txt").write_text(f"corpus number {number}\n" * 50)
    with prefect_server(folder) as address:
        own = environment(PREFECT_API_URL=f"{address}/api", LONGLOOM_QUIET="1", PREFECT_LOGGING_LEVEL="CRITICAL")
        done = subprocess.run(
            [sys.executable, "-c", FIFTY, str(folder)], env=own, capture_output=True, text=True, timeout=SECONDS * 2
        )
        assert done.returncode == 0, done.stderr[-2000:]
        states = [run["state_type"] for run in ask(address, "flow_runs")]
    store = Store(folder / "store")
    assert states == ["COMPLETED"] * 50, states
    assert [run.state for run in list_runs(store)] == ["completed"] * 50
    assert len(list(store.root.glob("artifacts/index/*"))) == 25
    return Row(
        "50 flow runs at once",
        "50 threads, each of 25 indexes asked for twice, one server on SQLite",
        "50 Completed in the UI and `completed` in the store; 25 indexes, each built once",
    )


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
def shards():
    store = Store(sys.argv[1])
    for number in range(500):
        shard(store, label=str(number), number=number)
        if number % 100 == 99:
            print(psutil.Process().memory_info().rss >> 20, flush=True)

shards()
"""


def five_hundred_shards(folder: Path) -> Row:
    """500 task runs in one flow run: the flow process's memory, and how long its page takes to open."""
    with prefect_server(folder) as address:
        own = environment(PREFECT_API_URL=f"{address}/api", LONGLOOM_QUIET="1", PREFECT_LOGGING_LEVEL="CRITICAL")
        code = [sys.executable, "-c", SHARDS, str(folder / "store")]
        done = subprocess.run(code, env=own, capture_output=True, text=True, timeout=SECONDS * 2)
        assert done.returncode == 0, done.stderr[-2000:]
        resident = [int(line) for line in done.stdout.split()]
        (run,) = ask(address, "flow_runs")
        # The server takes task runs' events one by one, after the flow has gone on; the last few are told as it ends.
        wait(
            lambda: sum(task["state_type"] == "COMPLETED" for task in ask(address, "task_runs")) >= 495,
            "the server does not know that the shards are completed",
        )
        page = "no chromium here"
        if CHROMIUM is not None:
            seconds = opened(f"{address}/v2/runs/flow-run/{run['id']}", folder, run["name"])
            page = f"its page opens in {seconds:.1f} s"
    assert resident[-1] - resident[0] < 40, resident
    megabytes = ", ".join(map(str, resident))
    return Row(
        "a flow run with 500 shards",
        "500 task runs one after another; its page in Chromium",
        f"flow process after each hundred: {megabytes} MiB; {page}",
    )


def opened(address: str, folder: Path, expected: str) -> float:
    """Seconds that a page takes beyond an empty one, the least of three."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={folder / 'chromium'}", "--virtual-time-budget=5000", "--dump-dom"]

    def once(page: str) -> tuple[float, str]:
        started = time.monotonic()
        done = subprocess.run([str(CHROMIUM), *flags, page], capture_output=True, text=True, timeout=120)
        return time.monotonic() - started, done.stdout

    once("about:blank")  # makes its profile
    empty = min(once("about:blank")[0] for _ in range(3))
    shown = [once(address) for _ in range(3)]
    assert any(expected in text for _, text in shown), "the page does not name the run"
    return min(seconds for seconds, text in shown if expected in text) - empty


# ---- the rest


def clock(folder: Path) -> Row:
    """Set back between runs and while one goes on."""
    return pytest_rows(
        "a clock that jumps",
        "back and forth by a minute to a day, between runs and in one",
        "tests/storage/test_runs.py::test_the_newest_run_is_the_latest_though_the_clock_is_set_back",
        "tests/storage/test_fingerprint.py",
    )


BIG = """
import sys
sys.argv = ["longloom", "index", *["./" * 40 + "corpus.txt"] * 12_000, "--tokenizer", "bytes", "--store", "store"]
from longloom.flows.cli import main
main()
"""


def big_parameter(folder: Path) -> Row:
    """A list of sources of 1 MB."""
    index(folder)
    done = subprocess.run(
        [sys.executable, "-c", BIG], cwd=folder, env=environment(), capture_output=True, text=True, timeout=SECONDS
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2, (done.returncode, done.stderr[-500:])
    assert len(lines) == 1, lines
    return Row("a parameter of 1 MB", "12,000 sources on the command line", f"exit 2, `{lines[0][:160]}`")


FAULTS: dict[str, Callable[[Path], Row]] = {
    "flow": flow_killed,
    "builds": builds,
    "stack": stack,
    "disk": disk_full,
    "bit": bit_flipped,
    "twice": twice_at_once,
    "fifty": fifty_runs,
    "thousands": thousands,
    "shards": five_hundred_shards,
    "clock": clock,
    "parameter": big_parameter,
}


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| fault | what was done | state found | lost |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in (row.fault, row.done, row.found, row.lost))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the table goes too")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    options = parser.parse_args()
    rows, failed = [], 0
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix=f"longloom-faults-{name}-") as folder:
            try:
                rows.append(FAULTS[name](Path(folder)))
            except Exception as error:
                traceback.print_exc()
                failed += 1
                text = " ".join(str(error).split())[:200]
                rows.append(Row(name, (FAULTS[name].__doc__ or "").strip(), f"FAILED: {text}", "unknown"))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    found = machine()
    day = datetime.date.today().isoformat()
    heading = (
        "# Faults tried\n\nWritten by `make faults` (`benchmarks/faults.py`), "
        f"{day}, {found['cores']} cores, {found['processor']}.\n\n"
    )
    if options.out is not None:
        options.out.write_text(heading + table(rows), encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
