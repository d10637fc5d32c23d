"""How large shards are under a bound on memory, and who sorts them: this process, or `Workers`."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from longloom.tasks.ngrams.layout import TABLE, TOKEN_TYPES, TOKENS, Shard, shard_file
from longloom.tasks.ngrams.suffix_array import SORT_BYTES, hidden_tables, sort_memory, suffix_array, write_table
from longloom.tasks.workers import Workers

#: Memory of a process before it sorts: the interpreter, the libraries, a batch of documents.
PROCESS = 224 * 2**20

#: A shard gets at least so much for its sort; less would make many shards, and each costs every query its time.
LEAST = 32 * 2**20


@dataclass(frozen=True)
class Plan:
    """What a bound on memory allows.

    Attributes:
        memory_gib: the bound.
        workers: shards that are sorted at a time.
        share: bytes for the sort of each.
    """

    memory_gib: float
    workers: int
    share: int

    @classmethod
    def of(cls, *, threads: int, memory_gib: float) -> Plan:
        """As many workers as the memory allows, at most `threads`.

        Raises:
            ValueError: not even one.
        """
        if threads < 1:
            raise ValueError(f"threads is {threads}, expected at least 1")
        for workers in range(threads, 0, -1):
            share = int((memory_gib * 2**30 - PROCESS) / workers - PROCESS)
            if share >= LEAST:
                return cls(memory_gib, workers, share)
        raise ValueError(f"memory_gib is {memory_gib}, expected at least {(2 * PROCESS + LEAST) / 2**30:.2f}")

    def entries(self, token_dtype: str) -> int:
        """Tokens and separators of a full shard; its token file stays below 2 GiB, so that places have four bytes."""
        return min(self.share // SORT_BYTES[token_dtype], 2**31 // TOKEN_TYPES[token_dtype].itemsize - 1)

    def check(self, entries: int, token_dtype: str) -> None:
        """Raises a ValueError if a shard, which may be one long document, is too large to sort."""
        need = sort_memory(entries, token_dtype)
        if need > self.share:
            least = ((need + PROCESS) * self.workers + PROCESS) / 2**30
            raise ValueError(
                f"memory_gib is {self.memory_gib}, expected at least {least:.2f} to sort a shard of {entries} tokens, "
                f"{self.workers} at a time"
            )


def sort_shard(source: Path, table: Path, token_dtype: str, threads: int) -> None:
    """Writes the table of one shard; runs in any process that sees the files."""
    tokens = np.fromfile(source, dtype=TOKEN_TYPES[token_dtype])
    write_table(suffix_array(tokens, threads=threads), tokens, table)


class Sorters:
    """Sorts shards while the next ones are written. A single shard is sorted in this process; a context manager.

    Args:
        folder: of the index.
        token_dtype: u8, u16 or u32.
        plan: memory and workers.
        threads: for all sorts together.
        workers: who sorts when there are several shards, see `Workers`. That a scheduler does not answer is known on
            entering.
    """

    def __init__(self, folder: Path, token_dtype: str, plan: Plan, *, threads: int, workers: str) -> None:
        self._folder = folder
        self._token_dtype = token_dtype
        self._plan = plan
        self._threads = threads
        self._workers = Workers(workers, threads=plan.workers)
        self._stack = contextlib.ExitStack()
        self._started = False
        self._futures: list[Future[None]] = []
        self._first: int | None = None

    def __enter__(self) -> Sorters:
        if self._workers.dask:
            self._start()
        return self

    @property
    def dask(self) -> Workers | None:
        """Those that may be given other pieces, too, if they are Dask's."""
        return self._workers if self._workers.dask else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._futures:
            future.cancel()
        self._stack.close()

    def add(self, number: int, shard: Shard) -> None:
        """Sorts a shard whose tokens are written, unless its table is there already.

        Raises:
            ValueError: it is too large for the memory.
        """
        self._plan.check(shard.tokens + shard.documents, self._token_dtype)
        if number == 0:
            self._first = number  # there may be no other
            return
        if self._first is not None:
            self._submit(self._first)
            self._first = None
        self._submit(number)
        for future in self._futures:
            if future.done():
                future.result()  # a fault is known before the whole corpus is read

    def finish(self) -> None:
        """Waits for all.

        Raises:
            RuntimeError: two processes or Dask workers died at a shard.
        """
        if self._first is not None and not self._table(self._first).exists():
            sort_shard(self._tokens(self._first), self._table(self._first), self._token_dtype, self._threads)
        for future in self._futures:
            future.result()
        for path in hidden_tables(self._folder):  # of those that died
            path.unlink(missing_ok=True)

    def _start(self) -> None:
        self._stack.enter_context(self._workers)
        self._started = True

    def _submit(self, number: int) -> None:
        if self._table(number).exists():
            return
        if not self._started:
            self._start()  # only now: most indexes have one shard
        threads = max(1, self._threads // self._plan.workers)
        what = (self._tokens(number), self._table(number), self._token_dtype, threads)
        self._futures.append(self._workers.submit(f"index shard {number}", sort_shard, *what))

    def _tokens(self, number: int) -> Path:
        return shard_file(self._folder, TOKENS, number).absolute()

    def _table(self, number: int) -> Path:
        return shard_file(self._folder, TABLE, number).absolute()
