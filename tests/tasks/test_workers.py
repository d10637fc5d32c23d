"""Pieces of work by threads, processes and a Dask cluster: the same results, and a death costs its own piece."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dask.config
import pytest
from distributed import LocalCluster

from longloom.tasks import crew as module
from longloom.tasks import workers as workers_module
from longloom.tasks.workers import HERE, PROCESSES, THREADS, Workers, _Threads, is_address


def square(number: int) -> int:
    return number**2


def broken(number: int) -> int:
    raise ValueError(f"piece {number}")


def whoami(number: int) -> int:
    return os.getpid()


def fatal(place: tuple[Path, int, int]) -> int:
    """Leaves a mark; number 3 kills whoever comes to it, as often as it is told."""
    folder, number, kills = place
    marks = len(list(folder.glob(f"{number}-*")))
    (folder / f"{number}-{marks}").touch()
    if number == 3 and marks < kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def marks(folder: Path) -> dict[int, int]:
    """How often each number was begun."""
    found: dict[int, int] = {}
    for path in folder.iterdir():
        number = int(path.name.partition("-")[0])
        found[number] = found.get(number, 0) + 1
    return found


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Two workers in processes of their own, which are started anew when they die."""
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module", params=[THREADS, PROCESSES, "scheduler"])
def found(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Two of each kind; a cluster of this host is started by the stages' tests."""
    known = request.param in HERE
    with Workers(request.param if known else request.getfixturevalue("scheduler"), threads=2) as workers:
        yield workers


def test_results_are_in_order_and_a_fault_ends_nothing_else(found: Workers) -> None:
    assert list(found.map("piece", square, range(20))) == [number**2 for number in range(20)]
    with pytest.raises(ValueError, match="piece 0"):
        list(found.map("piece", broken, [0, 1]))
    others = set(found.map("piece", whoami, range(8)))
    assert (os.getpid() in others) == isinstance(found._hands, _Threads)
    assert len(others) <= 2


def test_a_death_costs_its_piece_and_a_second_one_is_told(found: Workers, tmp_path: Path) -> None:
    if isinstance(found._hands, _Threads):
        pytest.skip("threads do not die alone")
    futures = [found.submit(f"shard {number}", fatal, (tmp_path, number, 99)) for number in range(8)]
    with pytest.raises(RuntimeError, match=r"^shard 3: 2 (processes|Dask workers) died at it"):
        futures[3].result()
    assert [future.result() for number, future in enumerate(futures) if number != 3] == [0, 1, 2, 4, 5, 6, 7]
    assert marks(tmp_path) == dict.fromkeys(range(8), 1) | {3: 2}  # no other was begun again


def test_a_death_is_made_up_for(tmp_path: Path) -> None:
    """On a scheduler, too: test_scheduler.py."""
    with Workers(PROCESSES, threads=1) as found:
        assert list(found.map("shard", fatal, [(tmp_path, number, 1) for number in range(2, 5)])) == [2, 3, 4]
    assert marks(tmp_path) == {2: 1, 3: 2, 4: 1}


def lasting(place: tuple[Path, str]) -> None:
    """Writes a file of its own, says that it does, and does not end."""
    folder, kind = place
    hidden = folder / f".{os.getpid()}"
    hidden.touch()
    try:
        (folder / "begun").write_text(str(os.getpid()))
        if kind == "deaf":  # as in the middle of a sort, where no handler of Python's runs
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            hidden.unlink()
        threading.Event().wait()
    finally:
        hidden.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["listens", "deaf"])
def test_a_stop_waits_for_no_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Its process ends, tidies up where it can, and no other one begins what was left."""
    if kind == "deaf":
        monkeypatch.setattr(workers_module, "TIDYING", 0.1)
    place = (tmp_path, kind)
    with pytest.raises(KeyboardInterrupt), Workers(PROCESSES, threads=1) as found:  # noqa: PT012
        futures = [found.submit(f"shard {number}", lasting, place) for number in range(3)]
        while not (tmp_path / "begun").exists() or not (tmp_path / "begun").read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "begun").read_text()), 0)
    with pytest.raises(RuntimeError, match=r"^shard 0: not done, since the work that it is a part of has ended$"):
        futures[0].result(timeout=0)
    assert [future.cancelled() for future in futures[1:]] == [True, True]
    with pytest.raises(RuntimeError):
        found.submit("late", square, 1)


def test_a_process_that_is_told_to_end_costs_its_piece(tmp_path: Path) -> None:
    """As by one that is short of memory; between pieces, too."""
    with Workers(PROCESSES, threads=1) as found:
        first = found.submit("piece", whoami, 0).result()
        os.kill(first, signal.SIGTERM)
        second = found.submit("piece", whoami, 0).result()
        assert second != first
        future = found.submit("piece", lasting_once, tmp_path)
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(second, signal.SIGTERM)
        assert future.result() not in (first, second)


def lasting_once(folder: Path) -> int:
    """Does not end, but whoever comes after it does."""
    if (folder / "begun").exists():
        return os.getpid()
    (folder / "begun").touch()
    threading.Event().wait()
    return 0


def test_what_is_left_is_cancelled_at_the_end(scheduler: str) -> None:
    with Workers(scheduler, threads=1) as found:
        futures = [found.submit(f"piece {number}", square, number) for number in range(50)]
        crew = found._hands
        assert futures[0].result() == 0
    assert all(future.done() for future in futures)
    assert any(future.cancelled() for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        crew.submit("late", square, 1).result(timeout=30)


def test_a_cluster_without_a_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as cluster,
        Workers(cluster.scheduler_address, threads=1) as found,
        pytest.raises(RuntimeError, match=r"^dask tcp://.*: found no worker for 1 seconds, expected one$"),
    ):
        list(found.map("piece", square, [1]))


def test_a_scheduler_that_is_not_there_is_named() -> None:
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ValueError, match=r"dask tcp://127.0.0.1:9: no scheduler answers there"),
        Workers("tcp://127.0.0.1:9", threads=1),
    ):
        pass


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="threads: found 0, expected 1 or more"):
        Workers(THREADS, threads=0)
    with pytest.raises(ValueError, match="workers: found 'dusk', expected threads, processes, cluster or the address"):
        Workers("dusk", threads=1)
    assert is_address("tls://host:8786")
