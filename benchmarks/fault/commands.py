"""What the faults share: a row of the table, `longloom` as a process of its own, a small run, tests as a row."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longloom.storage.store import Store

ROOT = Path(__file__).resolve().parents[2]
LONGLOOM = str(Path(sys.executable).with_name("longloom"))
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


def wait(done: Callable[[], Any], message: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := done():
            return found
        time.sleep(0.2)
    raise AssertionError(message)
