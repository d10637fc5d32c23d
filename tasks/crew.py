"""Pieces of work on the workers of a Dask scheduler: one that dies costs the pieces that it was at, and no others.

Dask on its own gives a dying worker's death to all that waited for it too, and gives up whatever has come to the
scheduler's `allowed-failures`, guilty or not. So a piece waits here until a worker has a thread for it, and is sent to
that worker alone; when that is gone, the piece goes to another one, once.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from longloom.tasks.workers import DEATHS

#: Workers that come and go are noticed so often, seconds.
LOOK = 1.0
#: A scheduler without any worker that could do a piece is given up after so long: it may be starting them.
PATIENCE = 120.0
#: What a worker declares that has a GPU, `dask worker --resources GPU=1`, and a piece takes.
GPU = "GPU"

_LOG = logging.getLogger(__name__)


@dataclass
class _Piece:
    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: Future[Any] = field(default_factory=Future)
    died: list[str] = field(default_factory=list)


@dataclass
class _Sent:
    piece: _Piece
    worker: str
    future: Any


class Crew:
    """Sends pieces to workers from a thread of its own.

    Args:
        client: of the scheduler; stays open as long as this.
        address: of the scheduler, for what users are told.
        whole: a piece has a worker with all its threads to itself; else a thread.
        gpu: a piece takes a GPU of a worker that declares some.
    """

    def __init__(self, client: Any, address: str, *, whole: bool, gpu: bool) -> None:
        self._client = client
        self._address = address
        self._whole = whole
        self._gpu = gpu
        self._events: queue.SimpleQueue[_Piece | str | None] = queue.SimpleQueue()
        self._waiting: deque[_Piece] = deque()
        self._sent: dict[str, _Sent] = {}
        self._places: dict[str, int] = {}
        self._looked = self._seen = time.monotonic()
        self._fault: Exception | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="longloom-crew", daemon=True)
        self._thread.start()

    def submit(self, name: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Has `function(*arguments)` done; all of it picklable.

        Its future raises what the function raised, or a RuntimeError that names the piece, if a second worker died at
        it, or the scheduler, if that or its last worker went.
        """
        piece = _Piece(name, function, arguments)
        with self._lock:
            if self._fault is not None:
                piece.future.set_exception(self._fault)
            else:
                self._events.put(piece)
        return piece.future

    def close(self) -> None:
        """Ends; what is not done is cancelled."""
        self._events.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._look()
            while self._step():
                pass
        except BaseException as error:  # else those who wait would wait for ever
            _LOG.debug("dask %s", self._address, exc_info=True)
            self._end(RuntimeError(f"dask {self._address}: {error or type(error).__name__}"))
        else:
            self._end(None)

    def _step(self) -> bool:
        """Takes one event; False: it was the last."""
        busy = self._waiting or self._sent
        try:
            event = self._events.get(timeout=LOOK if busy else None)
        except queue.Empty:
            event = ""
        if event is None:
            return False
        if isinstance(event, _Piece):
            self._waiting.append(event)
            if not busy:
                self._seen = time.monotonic()  # what went on while there was nothing to do is not looked at
        elif event in self._sent:
            self._take(event)
        if time.monotonic() - self._looked >= LOOK:
            self._look()
        self._send()
        return True

    def _look(self) -> None:
        """Notices workers that came and went."""
        found = self._client.scheduler_info(n_workers=-1)["workers"]
        self._looked = time.monotonic()
        self._places = {
            address: int(worker["resources"].get(GPU, 0)) if self._gpu else 1 if self._whole else worker["nthreads"]
            for address, worker in found.items()
        }
        for key, sent in list(self._sent.items()):
            if sent.worker not in found:
                self._lost(key)
            elif sent.future.done():
                self._events.put(key)  # its callback came too early: a worker that is there again did it again
        if any(self._places.values()):
            self._seen = self._looked
        elif self._looked - self._seen > PATIENCE:
            kind = f"no worker that declares {GPU}" if self._gpu else "no worker"
            raise RuntimeError(f"found {kind} for {PATIENCE:.0f} seconds, expected one")

    def _send(self) -> None:
        """Gives waiting pieces to workers with a place for them."""
        taken = Counter(sent.worker for sent in self._sent.values())
        free = {address: places - taken[address] for address, places in self._places.items()}
        while self._waiting and any(places > 0 for places in free.values()):
            piece = self._waiting.popleft()
            if not piece.died and not piece.future.set_running_or_notify_cancel():
                continue
            worker = max(free, key=lambda address: free[address])
            free[worker] -= 1
            key = f"{piece.name}-{uuid.uuid4().hex}"
            future = self._client.submit(
                piece.function,
                *piece.arguments,
                key=key,
                workers=[worker],
                allow_other_workers=False,
                resources={GPU: 1} if self._gpu else None,
            )
            self._sent[key] = _Sent(piece, worker, future)
            future.add_done_callback(lambda _, key=key: self._events.put(key))

    def _take(self, key: str) -> None:
        """What became of a piece that its worker is through with."""
        from distributed import KilledWorker

        sent = self._sent[key]
        if sent.future.status == "finished":
            try:
                result = sent.future.result(timeout=LOOK)
            except TimeoutError:  # the worker is slow; or it is gone, and with it the result: the next look tells
                self._events.put(key)
                return
            del self._sent[key]
            sent.piece.future.set_result(result)
        elif sent.future.status == "error":
            error = sent.future.exception()
            if isinstance(error, KilledWorker):
                self._lost(key)
            else:
                del self._sent[key]
                sent.piece.future.set_exception(error)
        elif sent.future.status != "pending":
            raise RuntimeError("the scheduler is gone")

    def _lost(self, key: str) -> None:
        """A worker died at a piece."""
        sent = self._sent.pop(key)
        piece = sent.piece
        piece.died.append(sent.worker)
        sent.future.cancel()
        if len(piece.died) < DEATHS:
            _LOG.warning("%s: the Dask worker %s died at it; it goes to another one", piece.name, sent.worker)
            self._waiting.appendleft(piece)
        else:
            piece.future.set_exception(
                RuntimeError(
                    f"{piece.name}: {len(piece.died)} Dask workers died at it ({', '.join(piece.died)}); have they as"
                    " much memory as it takes? Their logs may tell"
                )
            )

    def _end(self, fault: Exception | None) -> None:
        """Nothing is done any more."""
        with self._lock:
            self._fault = fault or RuntimeError(f"dask {self._address}: closed")
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._client.cancel([sent.future for sent in self._sent.values()])
        left = [*(sent.piece for sent in self._sent.values()), *self._waiting]
        while not self._events.empty():
            event = self._events.get()
            if isinstance(event, _Piece):
                left.append(event)
        for piece in left:
            if fault is None and piece.future.cancel():
                piece.future.set_running_or_notify_cancel()
            elif not piece.future.done():
                piece.future.set_exception(self._fault)
