"""DuckDB under a memory bound: the one way in which the project opens it."""

from __future__ import annotations

from pathlib import Path

import duckdb


def connect(*, memory_limit_gib: float, threads: int, temp_directory: Path) -> duckdb.DuckDBPyConnection:
    """Opens an in-memory database that spills to disk instead of exceeding its memory.

    A query's rows keep the order of its files (`preserve_insertion_order`), so that the same query over the same
    Parquet gives the same rows for any number of threads; what needs another order says ORDER BY. Extensions are
    never fetched from the network.

    Args:
        memory_limit_gib: memory that DuckDB's buffers may take, in GiB.
        threads: worker threads.
        temp_directory: where it spills; made when first needed.

    Raises:
        ValueError: no memory or no threads.
    """
    if memory_limit_gib <= 0:
        raise ValueError(f"memory_limit_gib is {memory_limit_gib}, expected more than 0")
    if threads < 1:
        raise ValueError(f"threads is {threads}, expected at least 1")
    return duckdb.connect(
        ":memory:",
        config={
            "memory_limit": f"{int(memory_limit_gib * 2**30)}B",
            "threads": threads,
            "temp_directory": str(temp_directory),
            "preserve_insertion_order": True,
            "autoinstall_known_extensions": False,
        },
    )
