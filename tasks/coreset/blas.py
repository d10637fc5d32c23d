"""Sums with one thread each, so that a piece gives the same bytes whoever does it, and beside whatever else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from threadpoolctl import threadpool_limits

_LOCK = threading.Lock()
_INSIDE = 0
_LIMITS = contextlib.ExitStack()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """BLAS and OpenMP compute with one thread each: the order of their sums must not depend on how many there are.

    BLAS's limit is the process's, so the first to come sets it and the last to go lifts it: with a limit of its own, a
    piece that ends would lift those of the pieces beside it. (Where only the thread that set it may lift it, and that
    one is not the last, it stays.) OpenMP's is the calling thread's.
    """
    global _INSIDE
    with _LOCK:
        if _INSIDE == 0:
            _LIMITS.enter_context(threadpool_limits(limits=1, user_api="blas"))
        _INSIDE += 1
    try:
        with threadpool_limits(limits=1, user_api="openmp"):
            yield
    finally:
        with _LOCK:
            _INSIDE -= 1
            if _INSIDE == 0:
                _LIMITS.close()
