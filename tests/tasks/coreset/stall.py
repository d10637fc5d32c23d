"""Loaded into Dask workers (--preload): the first to come to a shard that is named there stops in mid-shard for good.

LONGLOOM_TEST_STALL is a folder. A worker that begins a shard leaves a file SHARD-PID there; one that finds SHARD.stall
renames it to SHARD.stalled, writes half of a file beside the shard's, as if killed in the midst, and waits to be.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def stalling(
    write: Callable[..., None], path_of: Callable[..., Path], half: Callable[[Path], Path]
) -> Callable[..., None]:
    """`write`, but for shards that shall stall; of the path that it writes, `half` is what it is called meanwhile."""
    folder = Path(os.environ["LONGLOOM_TEST_STALL"])

    def wrapped(*arguments: Any) -> None:
        path = path_of(*arguments)
        name = f"{path.parent.name}-{path.name}"
        (folder / f"{name}-{os.getpid()}").touch()
        try:
            (folder / f"{name}.stall").rename(folder / f"{name}.stalled")
        except FileNotFoundError:
            write(*arguments)
            return
        half(path).write_bytes(b"half of it")
        (folder / f"{name}.pid").write_text(str(os.getpid()))
        time.sleep(3600)

    return wrapped


def dask_setup(worker: Any) -> None:
    """Called by Dask."""
    from longloom.tasks.coreset import store  # before `shards`, which brings torch, takes it from there
    from longloom.tasks.ngrams import sorters

    sorters.write_table = stalling(
        sorters.write_table, lambda order, tokens, path: path, lambda path: path.with_name(f".{path.name}.0123")
    )
    store.write_array = stalling(
        store.write_array, lambda path, rows: path, lambda path: path.with_suffix(".elsewhere-1.partial")
    )
