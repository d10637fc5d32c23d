"""Index and gradients on a scheduler with TLS and workers that were started by hand and are killed in mid-shard."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import dask.config
import pytest

from longloom.storage.parquet import ShardWriter
from longloom.tasks.coreset import features
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams import build as index
from longloom.tasks.workers import Workers

ROOT = Path(__file__).resolve().parents[3]
#: The machine may be busy: for giving up, nothing waits for it.
SECONDS = 180


@dataclass(frozen=True)
class Stack:
    """A scheduler's address, where workers stall, and the worker that declares a GPU."""

    address: str
    stalls: Path
    gpu: int


def environment(certificates: Path) -> dict[str, str]:
    """Dask's own, as infra/compose.yaml sets it."""
    found = {
        "DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME": "tls",
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true",
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(certificates / "ca.pem"),
    }
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        found[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = str(certificates / "dask.pem")
        found[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(certificates / "dask-key.pem")
    return found


def wait_for(found: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three workers, of which the index and the gradients kill one each; none is started anew."""
    folder = tmp_path_factory.mktemp("dask")
    stalls, certificates = folder / "stalls", folder / "tls"
    stalls.mkdir()
    script = ROOT / "infra" / "certificates.py"
    subprocess.run([sys.executable, str(script), str(certificates)], check=True, capture_output=True)
    settings = environment(certificates)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tls://127.0.0.1:{probe.getsockname()[1]}"
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> int:
        with (folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
            inherited = {key: value for key, value in os.environ.items() if not key.startswith("DASK_")}
            variables = inherited | settings | {"LONGLOOM_TEST_STALL": str(stalls), "PYTHONPATH": str(ROOT)}
            processes.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=folder))
        return processes[-1].pid

    try:
        start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2])
        options = ["--no-nanny", "--nthreads", "1", "--preload", str(Path(__file__).with_name("stall.py"))]
        options += ["--local-directory", str(folder)]
        start("one", "worker", address, *options)
        start("two", "worker", address, *options)
        gpu = start("three", "worker", address, *options, "--resources", "GPU=1")
        for name in ("one", "two", "three"):
            log = folder / f"{name}.log"
            wait_for(lambda log=log: "Registered to:" in log.read_text(), f"{name} is not there")
        names = {name: name.removeprefix("DASK_").lower().replace("__", ".") for name in settings}
        with dask.config.set({names[name]: value for name, value in settings.items()}):
            yield Stack(address, stalls, gpu)
    finally:
        for process in processes[::-1]:
            process.kill()
            process.wait()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_in_mid_shard(stack: Stack, name: str, build: Callable[[], object], *others: str) -> None:
    """Runs a build that stalls at the file `name`, and kills the worker that does; `others` are of the same shard."""
    before = set(stack.stalls.iterdir())
    (stack.stalls / f"{name}.stall").touch()
    told = stack.stalls / f"{name}.pid"
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(build)
        wait_for(lambda: done.done() or (told.exists() and told.read_text() != ""), "no worker came to the shard")
        assert told.exists(), done.exception()
        os.kill(int(told.read_text()), signal.SIGKILL)
        done.result(SECONDS)
    marks = [path.name.rpartition("-") for path in set(stack.stalls.iterdir()) - before]
    begun = Counter(shard for shard, _, pid in marks if pid.isdigit())
    assert {shard: times for shard, times in begun.items() if times > 1} == dict.fromkeys([name, *others], 2)


def pids(workers: Workers) -> set[int]:
    """Whose they are; `os.getpid` as it is, since this module would have workers import torch."""
    return {future.result() for future in [workers.submit("piece", os.getpid) for _ in range(12)]}


def test_pieces_for_a_gpu_go_to_who_declares_one(stack: Stack) -> None:
    with Workers(stack.address, threads=1, gpu=True) as found:
        assert found.gpu
        assert pids(found) == {stack.gpu}
    with Workers(stack.address, threads=1) as found:
        assert not found.gpu
        assert len(pids(found)) == 3


def test_a_worker_that_is_killed_at_an_index_shard(stack: Stack, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    texts = [f"{'the loom weaves ' * (number % 4)}{number}" for number in range(12)]
    with ShardWriter(corpus, "documents", SCHEMA, rows_per_shard=5) as writer:
        writer.write([{"id": f"d{number}", "source": "s", "text": text} for number, text in enumerate(texts)])

    def build(name: str, workers: str) -> None:
        (tmp_path / name).mkdir()
        index.build(corpus, None, tmp_path / name, threads=1, memory_gib=1, shard_tokens=60, workers=workers)

    build("alone", "threads")
    kill_in_mid_shard(stack, "there-table.2", lambda: build("there", stack.address))
    assert contents(tmp_path / "there") == contents(tmp_path / "alone")


def test_a_worker_that_is_killed_at_a_shard_of_gradients(
    toy, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SHARD_ROWS", 4)

    def build(name: str, workers: str) -> None:
        (tmp_path / name).mkdir()
        options = {"dimension": 48, "seed": 3, "max_length": 40, "adam": True, "bias_correction": False}
        features.build(
            *(toy.model, toy.instructions, toy.warmup, tmp_path / name),
            **options,
            device="cpu",
            threads=1,
            workers=workers,
        )

    build("alone", "threads")
    shard = next((tmp_path / "alone").glob("checkpoint-*/*1.npy"))
    losses = f"work-{shard.parent.name}-{shard.name.removeprefix('rows-')}"
    kill_in_mid_shard(stack, f"{shard.parent.name}-{shard.name}", lambda: build("there", stack.address), losses)
    assert contents(tmp_path / "there") == contents(tmp_path / "alone")
