"""`longloom` as a process with a server of its own: what it prints, whom it answers, what it runs, and that no signal
leaves the server behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import list_runs
from longloom.storage.store import Store

COMMAND = str(Path(sys.executable).with_name("longloom"))
#: The machine may be busy: for giving up, nothing waits for it.
SECONDS = 200


@dataclass(frozen=True)
class Place:
    """A folder with inputs and a store that one run has filled."""

    folder: Path
    store: Store
    done: subprocess.CompletedProcess[str]


def environment(folder: Path) -> dict[str, str]:
    """Of a user without a Prefect of their own."""
    ours = ("PREFECT", "LONGLOOM", "PYTHONSAFEPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"HOME": str(folder), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("process")
    for name in ("orjson", "random", "selectors", "sitecustomize"):  # as a corpus may hold them
        (folder / f"{name}.py").write_text(f"open({str(folder / 'run')!r}, 'a').write({name!r})\n")
    done = subprocess.run(
        [COMMAND, "index", str(inputs / "corpus"), "--tokenizer", "bytes", "--json"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    return Place(folder, Store(folder / ".longloom"), done)


def test_standard_output_is_one_json_object(place: Place) -> None:
    assert place.done.returncode == 0, place.done.stderr
    assert place.done.stdout.count("\n") == 1
    ref = ArtifactRef.model_validate(json.loads(place.done.stdout)["index"])
    assert place.store.open(ref).is_dir()
    corpus, index = place.done.stderr.splitlines()
    assert corpus.startswith("+ corpus ")
    assert index.startswith("+ index ")


def test_no_file_of_the_folder_that_it_is_called_in_is_run(place: Place) -> None:
    """Neither here nor in its server, which is a module that Python is told to run."""
    assert not (place.folder / "run").exists(), (place.folder / "run").read_text()


def test_an_error_inside_of_a_task_is_one_line(place: Place) -> None:
    (place.folder / "bad.jsonl").write_text('{"id": "1", "text": "good"}\n{"id": "2", "txt": "bad"}\n')
    before = sorted(place.store.root.glob("artifacts/*/*"))
    done = subprocess.run(
        [COMMAND, "index", "bad.jsonl", "--tokenizer", "bytes"],
        cwd=place.folder,
        env=environment(place.folder),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("longloom: bad.jsonl, line 2: found no field 'text' (fields: id, txt), expected text")
    assert done.stderr.count("\n") == 1, done.stderr
    assert sorted(place.store.root.glob("artifacts/*/*")) == before
    assert list(place.store.root.glob("work/*")) == []


def preflight(origin: str, port: str) -> int:
    """What a browser is told that asks whether a page from there may send JSON."""
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    address = f"http://127.0.0.1:{port}/api/flow_runs/filter"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=asked, method="OPTIONS"), timeout=60) as it:
            return int(it.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_signals(place: Place, inputs: Path) -> None:
    """Ctrl-C, a SIGTERM, a hang-up and a SIGKILL, while another process holds the lock of the run's first stage."""
    signals = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP, "KILL": signal.SIGKILL}
    corpus = list_runs(place.store)[-1].stages["corpus"]
    processes = {}
    servers: dict[str, list[psutil.Process]] = {}
    try:
        with place.store.lock("corpus", corpus.key):
            for name in signals:
                with (place.folder / name).open("w") as output:
                    processes[name] = psutil.Popen(
                        [COMMAND, "index", str(inputs / "corpus"), "--tokenizer", "bytes"],
                        cwd=place.folder,
                        env=environment(place.folder),
                        start_new_session=True,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                if all("waits for another process" in (place.folder / name).read_text() for name in signals):
                    break
                time.sleep(0.2)
            for name, process in processes.items():
                servers[name] = process.children(recursive=True)
                (server,) = (line for line in (each.cmdline() for each in servers[name]) if "uvicorn" in line)
                assert preflight("https://example.org", server[server.index("--port") + 1]) == 400
                os.killpg(process.pid, signals[name])  # to the terminal's whole group, as Ctrl-C does
            codes = {name: process.wait(SECONDS) for name, process in processes.items()}
        assert codes == {"INT": 130, "TERM": 143, "HUP": 143, "KILL": -signal.SIGKILL}
        _, left = psutil.wait_procs([each for family in servers.values() for each in family], timeout=60)
        assert left == []
        for name in ("INT", "TERM", "HUP"):
            waits, last = (place.folder / name).read_text().splitlines()
            assert waits.startswith("~ corpus ")
            assert last == "longloom: interrupted; the next run continues with what is missing"
        assert sorted(run.state for run in list_runs(place.store)[:4]) == ["failed"] * 3 + ["interrupted"]
    finally:
        for each in [*processes.values(), *(server for family in servers.values() for server in family)]:
            if each.is_running():
                each.kill()
