"""The kernels' tests on the device, in a process of their own, and what failed among them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Failure(NamedTuple):
    """What failed, and why in one line."""

    name: str
    why: str


class Outcome(NamedTuple):
    """Counts of a run of pytest, and its failures; `finished` False: it was stopped, or broke."""

    passed: int
    skipped: int
    failures: list[Failure]


def start(root: Path, tests: Sequence[str], folder: Path, device: str) -> subprocess.Popen[bytes]:
    """Begin pytest on these tests of the checkout, with a worker a core where pytest-xdist is installed.

    Args:
        root: the checkout.
        tests: files or folders below it.
        folder: gets pytest.xml and pytest.log.
        device: what the tests run on.
    """
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={folder / 'pytest.xml'}"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(max(1, min(16, (os.cpu_count() or 2) - 1)))]
    environment = os.environ | {"LONGLOOM_TEST_DEVICE": device, "OMP_NUM_THREADS": "1"}
    with (folder / "pytest.log").open("wb") as log:
        return subprocess.Popen([*command, *tests], cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], folder: Path, limit: float) -> Outcome:
    """Wait for it, at most so many seconds."""
    try:
        status = process.wait(max(1.0, limit))
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
        return Outcome(0, 0, [Failure("pytest", f"did not end in {limit:.0f} s; {last_line(folder)}")])
    if not (folder / "pytest.xml").is_file():
        return Outcome(0, 0, [Failure("pytest", f"ended with status {status}; {last_line(folder)}")])
    outcome = read(folder / "pytest.xml")
    if status and not outcome.failures:
        outcome.failures.append(Failure("pytest", f"ended with status {status}; {last_line(folder)}"))
    return outcome


def read(report: Path) -> Outcome:
    """The outcome that pytest wrote as JUnit XML."""
    passed = skipped = 0
    failures = []
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [part for kind in ("failure", "error") for part in case.iter(kind)]
        if wrong:
            message = (wrong[0].get("message") or wrong[0].text or "").strip().splitlines() or [""]
            failures.append(Failure(f"{case.get('classname')}::{case.get('name')}", message[0][:200]))
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return Outcome(passed, skipped, failures)


def last_line(folder: Path) -> str:
    """The last line of what pytest printed."""
    lines = (folder / "pytest.log").read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "nothing was printed")[:200]
