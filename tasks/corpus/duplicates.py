"""Ids must be unique: finds the repeated ones in what was written, with DuckDB, so that memory stays bounded."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longloom.storage.duck import connect
from longloom.storage.parquet import files_of
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
        None when nothing is repeated. Else the rows to keep: the table's files have been moved out of the way, so
        that it can be written anew, and are deleted after the last row.

    Raises:
        ValueError: an id is repeated and the policy is `stop`.
    """
    rows, ids = _repeated_rows(out, name)
    if not len(rows):
        return None
    if bad.policy == "stop":
        first, second = itertools.islice((place for identifier, place in places() if identifier == ids[0]), 2)
        bad.report(second, f"found the id {ids[0]!r}, which {first} has; expected unique ids")
    for identifier in ids:
        bad.report(f"id {identifier}", "repeats the id of an earlier record")
    bad.skipped += len(rows) - len(ids)
    scratch = out / SCRATCH
    scratch.mkdir()
    files = [file.rename(scratch / file.name) for file in files_of(out, name)]
    return _kept(files, rows)


def _kept(files: list[Path], dropped: np.ndarray) -> Iterator[pa.Table]:
    """The rows of some files without those of the sorted numbers `dropped`."""
    start = 0
    for file in files:
        with pq.ParquetFile(file) as reader:
            for batch in reader.iter_batches(batch_size=1024):
                keep = np.ones(batch.num_rows, dtype=bool)
                low, high = np.searchsorted(dropped, [start, start + batch.num_rows])
                keep[dropped[low:high] - start] = False
                yield pa.Table.from_batches([batch]).filter(pa.array(keep))
                start += batch.num_rows
    shutil.rmtree(files[0].parent)


def _repeated_rows(out: Path, name: str) -> tuple[np.ndarray, list[str]]:
    """The rows (counted from 0, in order) whose id an earlier row has, and the ids of the first few of them."""
    scratch = out / SCRATCH
    files = files_of(out, name)
    starts = np.cumsum([0, *(pq.read_metadata(file).num_rows for file in files)])[:-1]
    with connect(memory_limit_gib=MEMORY_GIB, threads=1, temp_directory=scratch) as database:
        # By DuckDB's own reader. A stream of ours would be read in a thread of pyarrow's pool, whose end it would wait
        # for threads of the same pool: eight corpora at once in one process waited for ever.
        database.execute("CREATE TABLE starts (filename VARCHAR, start BIGINT)")
        database.executemany("INSERT INTO starts VALUES (?, ?)", [*zip(map(str, files), starts.tolist(), strict=True)])
        database.read_parquet([str(file) for file in files], filename=True, file_row_number=True).create_view("files")
        database.execute(
            "CREATE VIEW ids AS SELECT id, start + file_row_number AS row FROM files JOIN starts USING (filename)"
        )
        database.execute("CREATE TABLE again AS SELECT id FROM ids GROUP BY id HAVING count(*) > 1")
        database.execute(
            """
            CREATE TABLE repeated AS
            SELECT row, id FROM ids SEMI JOIN again USING (id)
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY row) > 1
            """
        )
        rows = database.execute("SELECT row FROM repeated ORDER BY row").fetchnumpy()["row"]
        ids = database.execute("SELECT id FROM repeated ORDER BY row LIMIT 5").fetchall()
    shutil.rmtree(scratch, ignore_errors=True)
    return rows, [identifier for (identifier,) in ids]
