"""Faults of the place where artifacts lie: full, damaged, crowded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fault.commands import LONGLOOM, SECONDS, Row, artifacts, environment, finish, index, start
from longloom.storage.runs import RunLog, list_runs
from longloom.storage.stats import Stats
from longloom.storage.store import Store


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
