"""Processes killed, two at once, a clock that jumps, a parameter too large."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from fault.commands import SECONDS, Row, artifacts, environment, finish, index, pytest_rows, start, wait
from longloom.storage.runs import list_runs
from longloom.storage.store import Store


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
