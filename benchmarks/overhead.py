"""What the pipeline costs beyond its pure functions: a run with nothing to do, a stage of half a minute, 500 shards.

    python benchmarks/overhead.py --store .longloom/overhead --json benchmarks/results/overhead.json

The run with nothing to do is `longloom pipeline` as a command, after one that filled the store (minutes, once); the
least of three. The stage does a fixed work (SHA-256 over and over, 64 MiB of output in 64 files) as a function and as a
stage of a flow, in turns, after one flow that makes Prefect import what it needs. Each part runs in processes of its
own; nothing else should run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine

from longloom.flows.runtime import prepare, quiet, start_server
from longloom.storage.stats import Stats
from longloom.storage.store import Store

LONGLOOM = str(Path(sys.executable).with_name("longloom"))
FILES = 64
FILE_BYTES = 1 << 20
#: Task runs of the part `memory`, and after how many of them it is read.
SHARDS = 500
EVERY = 100


def work(out: Path, rounds: int, progress: Any = None) -> Stats:
    """The pure function: `rounds` hashes of FILE_BYTES for each file."""
    block = bytes(FILE_BYTES)
    for number in range(FILES):
        digest = b""
        for _ in range(rounds):
            digest = hashlib.sha256(block + digest).digest()
        (out / f"file-{number:03d}").write_bytes((digest * (FILE_BYTES // len(digest)))[:FILE_BYTES])
        if progress is not None:
            progress(number + 1, FILES)
    return Stats(counts={"bytes": FILES * FILE_BYTES})


def rounds_for(seconds: float) -> int:
    """So many rounds of `work` take about these seconds here."""
    block = bytes(FILE_BYTES)
    started = time.perf_counter()
    for _ in range(50):
        hashlib.sha256(block + b"").digest()
    return max(1, round(seconds / FILES / ((time.perf_counter() - started) / 50)))


def timed(command: list[str]) -> float:
    """Seconds of a command that must end well."""
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - started


def noop(store: str) -> dict[str, Any]:
    """Seconds of commands on a store that has everything."""
    filled = timed([LONGLOOM, "pipeline", "--store", store])
    commands = {
        "import of the commands": [sys.executable, "-c", "import longloom.flows.cli"],
        "import of a flow": [sys.executable, "-c", "import longloom.flows.pipeline"],
        "runs": [LONGLOOM, "runs", "--store", store],
        "compare": [LONGLOOM, "compare", "latest", "latest", "--store", store],
        "pipeline": [LONGLOOM, "pipeline", "--store", store],
    }
    taken = {name: [round(timed(command), 2) for _ in range(3)] for name, command in commands.items()}
    return {
        "first run, seconds": round(filled, 1),
        "least of three, seconds": {name: min(values) for name, values in taken.items()},
        "all": taken,
        "pipeline within 10 s": min(taken["pipeline"]) <= 10.0,
    }


def one_stage(folder: Path, seconds: float, times: int) -> dict[str, Any]:
    """The same work as a function and as a stage, in turns."""
    from prefect import flow

    from longloom.tasks.stage import Work, stage

    @stage("overhead", version=1)
    def overhead(work_: Work, *, rounds: int, turn: int) -> Stats:
        return work(work_.out, rounds, work_.progress)

    @flow(name="overhead")
    def run(rounds: int, turn: int) -> None:
        overhead(Store(folder / "store"), rounds=rounds, turn=turn)

    run(1, -1)  # imports
    rounds = rounds_for(seconds)
    taken: dict[str, list[float]] = {"function": [], "flow": []}
    for turn in range(times):
        out = folder / f"out-{turn}"
        out.mkdir()
        started = time.perf_counter()
        work(out, rounds)
        taken["function"].append(time.perf_counter() - started)
        started = time.perf_counter()
        run(rounds, turn)
        taken["flow"].append(time.perf_counter() - started)
    ratio = statistics.median(taken["flow"]) / statistics.median(taken["function"]) - 1
    return {
        "seconds": {name: [round(value, 2) for value in values] for name, values in taken.items()},
        "overhead, %": round(100 * ratio, 2),
        "within 5%": ratio <= 0.05,
    }


def memory(folder: Path) -> dict[str, Any]:
    """MiB resident of a flow process after every so many of its shards."""
    import psutil
    from prefect import flow

    from longloom.tasks.stage import Work, stage

    @stage("shard", version=1)
    def shard(work_: Work, *, number: int) -> Stats:
        (work_.out / "data").write_text(str(number))
        return Stats(counts={"bytes": 1})

    resident = []

    @flow(name="shards")
    def shards() -> None:
        store = Store(folder / "store")
        for number in range(SHARDS):
            shard(store, label=str(number), number=number)
            if (number + 1) % EVERY == 0:
                resident.append(round(psutil.Process().memory_info().rss / 2**20, 1))

    started = time.perf_counter()
    shards()
    return {
        "MiB after each hundred shards": resident,
        "ms a shard": round(1000 * (time.perf_counter() - started) / SHARDS, 1),
        "growth over the last 400, MiB": round(resident[-1] - resident[0], 1),
    }


def child(part: str, folder: Path, seconds: float, times: int) -> dict[str, Any]:
    """A part that needs Prefect, in this process."""
    prepare(folder)
    quiet()
    start_server()
    return one_stage(folder, seconds, times) if part == "stage" else memory(folder)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--store", default=".longloom/overhead", help="of the run with nothing to do; filled when new")
    parser.add_argument("--parts", nargs="+", choices=["noop", "stage", "memory"], default=["noop", "stage", "memory"])
    parser.add_argument("--seconds", type=float, default=40.0, help="of the stage")
    parser.add_argument("--times", type=int, default=3, help="turns of the stage")
    parser.add_argument("--json", type=Path, default=here / "results" / "overhead.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["LONGLOOM_QUIET"] = "1"
    if options.child:
        (part,) = options.parts
        found = child(part, Path(options.child), options.seconds, options.times)
        (Path(options.child) / "result.json").write_text(json.dumps(found))
        return
    results: dict[str, Any] = {"machine": machine()}
    for part in options.parts:
        if part == "noop":
            results[part] = noop(options.store)
        else:
            with tempfile.TemporaryDirectory(prefix="longloom-overhead-") as folder:
                own = ["--parts", part, "--seconds", str(options.seconds), "--times", str(options.times)]
                timed([sys.executable, __file__, *own, "--child", folder])
                results[part] = json.loads((Path(folder) / "result.json").read_text())
        print(part, json.dumps(results[part], indent=1), flush=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
