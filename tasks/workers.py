"""Who does a stage's independent pieces: threads, processes, a Dask cluster of this host, or a scheduler's workers.

One parameter says it, `workers`. A piece computes the same bytes wherever it is done, so it is no part of a key.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS, PROCESSES, CLUSTER = HERE = ("threads", "processes", "cluster")

#: Processes that may die at a piece; of Dask's workers, too.
DEATHS = 2
#: Seconds in which a stopped process tidies up; one that is in the middle of a sort does not hear of it, and is killed.
TIDYING = 2.0

_LOG = logging.getLogger(__name__)


def is_address(workers: str) -> bool:
    """Whether they are the workers of a scheduler that runs already.

    Raises:
        ValueError: they are none that this knows.
    """
    if workers in HERE:
        return False
    if ":" not in workers:
        raise ValueError(f"workers: found {workers!r}, expected {', '.join(HERE)} or the address of a Dask scheduler")
    return True


class _Hands(Protocol):
    def submit(self, name: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]: ...
    def close(self) -> None: ...


class Workers:
    """A context manager that has pieces of work done. What is sent beyond this process must be picklable.

    A process or a Dask worker that dies costs the piece that it was at, which is done again by another one. If that
    dies too, the piece's future raises a RuntimeError that names the piece. On leaving, what has not begun is left;
    processes of this one that are still at a piece are stopped, threads come to its end.

    Args:
        workers: threads or processes of this one; cluster, a Dask cluster on this host for as long as this lasts; or
            the address of a Dask scheduler, whose workers see the store under the same path. TLS is Dask's own
            configuration's, or its environment's.
        threads: pieces at a time on this host; a Dask scheduler's workers know themselves.
        whole: a piece is one that uses all threads of its Dask worker.
        gpu: a piece uses a GPU where there is one: on this host one piece at a time then; of a scheduler's workers
            those that declare the resource GPU, if there are any.

    Attributes:
        remote: a scheduler's.
        dask: that, or a Dask cluster of this host.
        gpu: whether there is one; known once entered.

    Raises:
        ValueError: `threads` below 1, or others unknown; and on entering: no scheduler answers, or Dask is not there.
    """

    def __init__(self, workers: str, *, threads: int, whole: bool = False, gpu: bool = False) -> None:
        if threads < 1:
            raise ValueError(f"threads: found {threads}, expected 1 or more")
        self.remote = is_address(workers)
        self.dask = self.remote or workers == CLUSTER
        self.gpu = gpu
        self._workers = workers
        self._threads = threads
        self._whole = whole
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Workers:
        with contextlib.ExitStack() as stack:
            self._hands = self._start(stack)
            stack.callback(self._hands.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def submit(self, name: str, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Has `function(*arguments)` done; `name` is the piece's, for users."""
        return self._hands.submit(name, function, *arguments)

    def map(self, name: str, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """`function` of each item, in their order; after a fault, what has not begun is not begun.

        Args:
            name: of all pieces; each gets its number.
        """
        futures = [self.submit(f"{name} {number}", function, item) for number, item in enumerate(items)]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def _start(self, stack: contextlib.ExitStack) -> _Hands:
        if not self.remote:
            self.gpu = self.gpu and _gpu_here()
            if self._workers == THREADS:
                return _Threads(self._threads)
            at_once = 1 if self.gpu else self._threads
            if self._workers == PROCESSES:
                return _Processes(at_once)
        from longloom.tasks.crew import GPU, Crew

        target: Any = self._workers
        if not self.remote:
            target = stack.enter_context(_local_cluster(at_once, {GPU: 1.0} if self.gpu else {}))
        client = stack.enter_context(connect(target))
        if self.remote and self.gpu:
            found = client.scheduler_info(n_workers=-1)["workers"].values()
            self.gpu = any(worker["resources"].get(GPU, 0) >= 1 for worker in found)
        return Crew(client, self._workers, whole=self._whole, gpu=self.gpu)


def _gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


def _local_cluster(count: int, resources: dict[str, float]) -> Any:
    """A context manager. Memory is bounded by the stages, not by Dask, which would kill."""
    try:
        from distributed import LocalCluster
    except ModuleNotFoundError:
        raise ValueError(f"workers {CLUSTER}: needs the extra dask: pip install 'longloom[dask]'") from None
    return LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=count,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": ":0"},  # of the server that is there all the same
        memory_limit=0,
        resources=resources,
    )


def connect(target: Any) -> Any:
    """A client of a Dask scheduler, given by its address, or of a cluster; a context manager.

    Raises:
        ValueError: no scheduler answers, or Dask is not installed.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise ValueError(f"dask {target}: needs the extra dask: pip install 'longloom[dask]'") from None
    try:
        return Client(target)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ValueError(f"dask {target}: no scheduler answers there ({error})") from None


class _Threads:
    """Of this process."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count)

    def submit(self, name: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class _Processes:
    """Threads, each with a process of its own that does its pieces: one that dies breaks no other's pool."""

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count)
        self._own = threading.local()
        self._stack = contextlib.ExitStack()
        self._changed = threading.Condition()
        self._at_work: list[ProcessPoolExecutor] = []
        self._closing = False

    def submit(self, name: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._threads.submit(self._do, name, function, arguments)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._changed:
            self._closing = True
            # After a normal end none is at work; else nobody waits for what they do, be it hours.
            for process in self._busy():
                process.terminate()
            if not self._changed.wait_for(lambda: not self._at_work, TIDYING):
                for process in self._busy():
                    process.kill()
        self._threads.shutdown()
        self._stack.close()

    def _busy(self) -> list[Any]:
        """The processes of the pools that are at a piece."""
        return [process for pool in self._at_work for process in pool._processes.values()]

    def _do(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        for _ in range(DEATHS):
            try:
                return self._result(name, function, arguments)
            except BrokenProcessPool:
                del self._own.process
                if not self._closing:
                    _LOG.warning("%s: the process that did it died", name)
        raise RuntimeError(f"{name}: {DEATHS} processes died at it; is there as much memory as it takes?")

    def _result(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with self._changed:  # until the process is there, so that `close` sees it
            if self._closing:
                raise RuntimeError(f"{name}: not done, since the work that it is a part of has ended")
            pool = self._process()
            future = pool.submit(_piece, function, arguments)
            self._at_work.append(pool)
        try:
            return future.result()
        finally:
            with self._changed:
                self._at_work.remove(pool)
                self._changed.notify_all()

    def _process(self) -> ProcessPoolExecutor:
        """This thread's."""
        if not hasattr(self._own, "process"):
            # Not by fork: Prefect, pyarrow and the tokenizers have threads.
            context = multiprocessing.get_context("spawn")
            self._own.process = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
            self._stack.enter_context(self._own.process)
        process: ProcessPoolExecutor = self._own.process
        return process


class _Stopped(BaseException):
    """Ends a piece, through all that it has opened; no Exception, which a piece may catch."""


class _Stop:
    """Of a pool's process: whether it was told to end, and whether it is at a piece.

    It ends at pieces alone: between them a result may be half way to the pool.
    """

    told = False
    at_piece = False


def _piece(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Does one in a pool's process. One that is stopped tidies up, and then its process is dead to the pool."""
    try:
        _Stop.at_piece = True
        if _Stop.told:
            raise _Stopped
        return function(*arguments)
    except _Stopped:
        os._exit(128 + signal.SIGTERM)
    finally:
        _Stop.at_piece = False


def _stop(*_: object) -> None:
    """A SIGTERM came: of `close`, or of who is short of memory."""
    if not _Stop.told:
        _Stop.told = True
        if _Stop.at_piece:
            raise _Stopped


def _begin() -> None:
    """Begins a pool's process."""
    signal.signal(signal.SIGTERM, _stop)
    _end_with_parent()


def _end_with_parent() -> None:
    """Ends this process once the one that started it is gone: a killed one tells its pool nothing."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a pool's process"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
