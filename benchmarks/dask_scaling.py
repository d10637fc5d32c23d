"""Two Dask workers against one, on the index of a corpus and on the gradients of a coreset.

    python benchmarks/dask_scaling.py --store .longloom --json results.json

STORE holds a run of the demo, whose gradients are taken again. The corpus is the standard library's sources, as often
as --megabytes takes, each time with other line ends so that no text is there twice. Two schedulers are started by hand
on the loopback interface, with one worker of one thread and with two; a round asks each for the same. The first is not
counted: workers import what they need. A ratio is the median of the rounds', and is told only of equal bytes. JSON that
is there keeps the parts that were not measured now.

The run's own process reads, writes shards and waits beside the workers: with as many cores as workers it takes from
them, so `busy` tells its processor time by the time of the run with two.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import machine

from longloom.storage.manifest import Manifest
from longloom.storage.parquet import ShardWriter
from longloom.storage.store import Store
from longloom.tasks.coreset import features
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams import build as index
from longloom.tasks.workers import connect

BASE = Path(__file__).resolve().parents[1] / "tasks" / "training" / "base"
#: Rows of a shard of gradients here: the demo's pool would be two shards a checkpoint, which two workers share badly.
ROWS = 128
SECONDS = 120


@contextlib.contextmanager
def scheduler(workers: int, folder: Path) -> Iterator[str]:
    """The address of one with as many workers of one thread."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    commands = [["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]]
    commands += [["worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]] * workers
    processes = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{workers}-{number}.log").open("wb") as log:
                whole = [sys.executable, "-m", "dask", *command]
                environment = os.environ | single
                processes.append(subprocess.Popen(whole, env=environment, stdout=log, stderr=log, cwd=folder))
        with connect(address) as client:
            client.wait_for_workers(workers, timeout=SECONDS)
        yield address
    finally:
        for process in processes[::-1]:
            process.kill()
            process.wait()


def write_corpus(folder: Path, megabytes: float) -> None:
    """The standard library's sources, again and again."""
    folder.mkdir()
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py"))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    left = megabytes * 1e6
    with ShardWriter(folder, "documents", SCHEMA, rows_per_shard=65_536) as writer:
        for number, text in enumerate(itertools.cycle(texts)):
            if left <= 0:
                return
            row = {"id": str(number), "source": "stdlib", "text": text.replace("\n", f" # {number}\n")}
            writer.write([row])
            left -= len(str(row["text"]))


def digest(folder: Path) -> str:
    """Of all files with their names."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


def compare(build: Callable[[Path, str], Any], addresses: list[str], folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a build by one worker and by two, in turns.

    Raises:
        SystemExit: they wrote different bytes.
    """
    seconds: list[list[float]] = [[], []]
    busy: list[float] = []
    digests = set()
    for number in range(rounds + 1):
        for which, address in enumerate(addresses):
            out = folder / "out"
            out.mkdir()
            begin, own = time.monotonic(), time.process_time()
            build(out, address)
            taken, own = time.monotonic() - begin, time.process_time() - own
            digests.add(digest(out))
            shutil.rmtree(out)
            print(f"{which + 1} workers: {taken:.1f} s{'' if number else ' (not counted)'}", file=sys.stderr)
            if number:
                seconds[which].append(taken)
                busy += [own / taken] if which else []
    if len(digests) > 1:
        raise SystemExit("one worker and two wrote different bytes")
    return {
        "ratio": statistics.median(one / two for one, two in zip(*seconds, strict=True)),
        "one": seconds[0],
        "two": seconds[1],
        "busy": statistics.median(busy),
    }


def of_kind(store: Store, kind: str, digest: str = "") -> tuple[Manifest, Path]:
    """The newest artifact of a kind, or the one of a digest."""
    found = [one for one in store.manifests() if one.kind == kind and one.digest.startswith(digest)]
    if not found:
        raise SystemExit(f"{store.root}: holds no {kind}; expected a run of the demo")
    newest = max(found, key=lambda one: one.created)
    return newest, store.artifact_folder(kind, newest.key)


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=["index", "gradients"], default=["index", "gradients"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    features.SHARD_ROWS = ROWS
    store = Store(given.store)
    made, _ = of_kind(store, "features")
    model, pool, warmup = (of_kind(store, name, made.parents[name])[1] for name in ("model", "instructions", "warmup"))
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        corpus = folder / "corpus"
        if "index" in given.parts:
            write_corpus(corpus, given.megabytes)
        addresses = [stack.enter_context(scheduler(count, folder)) for count in (1, 2)]

        def by_index(out: Path, workers: str) -> None:
            options = {"threads": 1, "memory_gib": 2, "shard_tokens": 4_000_000}
            index.build(corpus, BASE, out, **options, workers=workers)

        def by_gradients(out: Path, workers: str) -> None:
            options = {name: made.parameters[name] for name in ("dimension", "seed", "max_length", "adam")}
            features.build(
                *(model, pool, warmup, out),
                **options,
                bias_correction=made.parameters["bias_correction"],
                device="cpu",
                threads=1,
                workers=workers,
            )

        parts: dict[str, tuple[Callable[[Path, str], Any], dict[str, Any]]] = {
            "index": (by_index, {"megabytes": given.megabytes}),
            "gradients": (by_gradients, {"examples": made.counts["examples"]}),
        }
        kept = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
        results = kept | {"machine": machine()}
        for name in given.parts:
            build, size = parts[name]
            results[name] = size | compare(build, addresses, folder, given.rounds)
    text = json.dumps(results, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
