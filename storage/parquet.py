"""Parquet files whose bytes depend on their rows alone: zstd, no pandas metadata, row groups of a fixed size.

A table is one file `{name}.parquet` or numbered shards `{name}-00000.parquet`, ...; the readers take either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

#: Rows of a full row group. A group is cut earlier once a write brings it over ROW_GROUP_BYTES, so that long
#: texts do not pile up in memory.
ROW_GROUP_ROWS = 8192
ROW_GROUP_BYTES = 64 * 2**20


class FileWriter:
    """Writes one Parquet file row group by row group; a context manager.

    An exception in the `with` body removes the unfinished file.

    Args:
        path: the file to write.
        schema: its columns.

    Attributes:
        rows: rows taken so far.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema.remove_metadata()
        self.rows = 0
        self._pending: list[pa.Table] = []
        self._writer = pq.ParquetWriter(path, self.schema, compression="zstd", version="2.6")

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, rows: list[dict[str, object]]) -> None:
        """Appends rows; a key that a row lacks becomes null."""
        self.write_table(pa.Table.from_pylist(rows, schema=self.schema))

    def write_table(self, table: pa.Table) -> None:
        """Appends a table of exactly this schema.

        Raises:
            ValueError: other columns or types.
        """
        if not table.schema.equals(self.schema):
            found, expected = _describe(table.schema), _describe(self.schema)
            raise ValueError(f"{self.path.name}: found the columns {found}, expected {expected}")
        self.rows += table.num_rows
        while table.num_rows:
            room = ROW_GROUP_ROWS - sum(part.num_rows for part in self._pending)
            self._pending.append(table.slice(0, room))
            table = table.slice(room)
            pending_rows = sum(part.num_rows for part in self._pending)
            if pending_rows == ROW_GROUP_ROWS or sum(part.nbytes for part in self._pending) >= ROW_GROUP_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._pending:
            group = pa.concat_tables(self._pending)
            self._pending = []
            self._writer.write_table(group, row_group_size=group.num_rows)

    def close(self) -> None:
        """Writes what is pending and the file's footer."""
        self._flush()
        self._writer.close()

    def abort(self) -> None:
        """Removes the unfinished file."""
        self._pending = []
        self._writer.close()
        self.path.unlink(missing_ok=True)


class ShardWriter:
    """Writes `{name}-00000.parquet`, `{name}-00001.parquet`, ... to a folder; a context manager.

    No rows give one shard without rows, so that the columns are never lost.

    Args:
        out: the folder.
        name: what the files' names start with.
        schema: the columns.
        rows_per_shard: rows of every shard but the last.

    Attributes:
        rows: rows taken so far.
    """

    def __init__(self, out: Path, name: str, schema: pa.Schema, *, rows_per_shard: int) -> None:
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard is {rows_per_shard}, expected at least 1")
        self.out = out
        self.name = name
        self.schema = schema.remove_metadata()
        self.rows_per_shard = rows_per_shard
        self.rows = 0
        self._shards = 0
        self._file: FileWriter | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            if not self._shards:
                self._open()
            self._close()
        elif self._file is not None:
            self._file.abort()

    def write(self, rows: list[dict[str, object]]) -> None:
        """Appends rows; a key that a row lacks becomes null."""
        self.write_table(pa.Table.from_pylist(rows, schema=self.schema))

    def write_table(self, table: pa.Table) -> None:
        """Appends a table of exactly this schema (ValueError otherwise)."""
        self.rows += table.num_rows
        while table.num_rows:
            file = self._file or self._open()
            room = self.rows_per_shard - file.rows
            file.write_table(table.slice(0, room))
            table = table.slice(room)
            if file.rows == self.rows_per_shard:
                self._close()

    def _open(self) -> FileWriter:
        self._file = FileWriter(self.out / f"{self.name}-{self._shards:05d}.parquet", self.schema)
        self._shards += 1
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def files_of(folder: Path, name: str) -> list[Path]:
    """The file `{name}.parquet`, or the shards `{name}-*.parquet` in order.

    Raises:
        FileNotFoundError: neither is there, or a shard in the middle is missing.
    """
    single = folder / f"{name}.parquet"
    if single.is_file():
        return [single]
    numbers = sorted(
        int(path.stem.removeprefix(f"{name}-"))
        for path in folder.glob(f"{name}-*.parquet")
        if path.stem.removeprefix(f"{name}-").isdecimal()
    )
    if not numbers:
        raise FileNotFoundError(f"{folder}: has neither {name}.parquet nor {name}-00000.parquet")
    shards = [folder / f"{name}-{number:05d}.parquet" for number in range(numbers[-1] + 1)]
    for path in shards:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: this shard is missing, the last one is {shards[-1].name}")
    return shards


def count_rows(folder: Path, name: str) -> int:
    """Rows of a table, from the files' footers; errors as in `read_table`."""
    total = 0
    for path in files_of(folder, name):
        with reading(path):
            total += pq.read_metadata(path).num_rows
    return total


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole table, or some of its columns in the order asked for.

    Raises:
        FileNotFoundError: no such table.
        ValueError: not Parquet, damaged, or a column that it does not have.
    """
    parts = []
    for path in files_of(folder, name):
        with reading(path), _open(path, columns) as file:
            parts.append(file.read(columns=None if columns is None else list(columns)))
    table = pa.concat_tables(parts)
    return table if columns is None else table.select(list(columns))


def iter_batches(folder: Path, name: str, columns: Sequence[str], batch_size: int) -> Iterator[pa.RecordBatch]:
    """Streams a table's columns in batches of at most `batch_size` rows; errors as in `read_table`."""
    for path in files_of(folder, name):
        with reading(path), _open(path, columns) as file:
            for batch in file.iter_batches(batch_size=batch_size, columns=list(columns)):
                yield batch.select(list(columns))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises at a file that is damaged or no Parquet into one ValueError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as Parquet ({reason:.200})") from None


def _open(path: Path, columns: Sequence[str] | None) -> pq.ParquetFile:
    file = pq.ParquetFile(path)
    known = file.schema_arrow.names
    for column in columns or ():
        if column not in known:
            file.close()
            raise ValueError(f"{path}: has no column {column!r}, only {', '.join(known)}")
    return file


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
