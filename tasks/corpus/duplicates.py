"""Ids must be unique: finds the repeated ones in what was written, with DuckDB, so that memory stays bounded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longloom.storage.duck import connect
from longloom.storage.parquet import files_of, iter_batches
from longloom.tasks.corpus.records import BadRecords

#: Memory of the search for repeated ids; beyond it DuckDB spills to disk.
MEMORY_GIB = 1.0
SCRATCH = "build"


def without_duplicates(
    out: Path, name: str, *, bad: BadRecords, places: Callable[[], Iterator[tuple[str, str]]]
) -> Iterator[pa.Table] | None:
    """Reports every row of a table whose id an earlier row has, and streams the others.

    Args:
        out: the folder that holds the table.
        name: the table's name; it has a column `id`.
        bad: the policy.
        places: streams (id, place) of all rows again, to name both places of a repeated id in the error.

    Returns:
        None when nothing is repeated. Else the rows to keep; the table's files are moved out of the way when the
        first of them is asked for, and deleted after the last.

    Raises:
        ValueError: an id is repeated and the policy is `stop`.
    """
    repeated = _repeated_rows(out, name)
    if not repeated:
        return None
    if bad.policy == "stop":
        identifier = repeated[0][1]
        first, second, *_ = [place for other, place in places() if other == identifier]
        bad.report(second, f"found the id {identifier!r}, which {first} has; expected unique ids")
    for _, identifier in repeated:
        bad.report(f"id {identifier}", "repeats the id of an earlier record")
    return _kept(out, name, np.array([row for row, _ in repeated], dtype=np.int64))


def _kept(out: Path, name: str, dropped: np.ndarray) -> Iterator[pa.Table]:
    scratch = out / SCRATCH
    scratch.mkdir()
    moved = [file.rename(scratch / file.name) for file in files_of(out, name)]
    start = 0
    for file in moved:
        with pq.ParquetFile(file) as reader:
            for batch in reader.iter_batches(batch_size=1024):
                rows = np.arange(start, start + batch.num_rows)
                yield pa.Table.from_batches([batch]).filter(pa.array(~np.isin(rows, dropped, assume_unique=True)))
                start += batch.num_rows
    shutil.rmtree(scratch)


def _repeated_rows(out: Path, name: str) -> list[tuple[int, str]]:
    """(row of the table from 0, id) of every row whose id an earlier row has, in order."""
    scratch = out / SCRATCH
    with connect(memory_limit_gib=MEMORY_GIB, threads=1, temp_directory=scratch) as database:
        database.register("ids", _numbered(out, name))
        database.execute("CREATE TABLE again AS SELECT id FROM ids GROUP BY id HAVING count(*) > 1")
        database.unregister("ids")
        database.register("ids", _numbered(out, name))
        rows = database.execute(
            """
            SELECT row, id FROM ids SEMI JOIN again USING (id)
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY row) > 1
            ORDER BY row
            """
        ).fetchall()
    shutil.rmtree(scratch, ignore_errors=True)
    return rows


def _numbered(out: Path, name: str) -> pa.RecordBatchReader:
    """The ids of a table with their row numbers, as a stream."""
    schema = pa.schema([("id", pa.string()), ("row", pa.int64())])

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in iter_batches(out, name, ["id"], 65_536):
            rows = pa.array(np.arange(start, start + batch.num_rows, dtype=np.int64))
            yield pa.record_batch([batch.column("id"), rows], schema=schema)
            start += batch.num_rows

    return pa.RecordBatchReader.from_batches(schema, batches())
