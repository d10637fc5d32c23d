"""A table of records: written as they stream in, then once more without those whose id an earlier one has.

What a record becomes is the caller's: instructions, comparisons, conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from longloom.storage.parquet import FileWriter, iter_batches
from longloom.tasks.corpus.duplicates import without_duplicates
from longloom.tasks.corpus.records import BadRecords, Record
from longloom.tasks.progress import Progress

BATCH_ROWS = 1024

Row = dict[str, object]


def write_records(
    rows: Iterator[tuple[Record, Row]],
    again: Callable[[], Iterator[tuple[Record, Row]]],
    out: Path,
    name: str,
    schema: pa.Schema,
    *,
    sources: list[str],
    what: str,
    bad: BadRecords,
    progress: Progress,
) -> int:
    """Writes `out`/`name`.parquet in the order of the rows.

    Args:
        rows: each with the record that it comes from; reports to `bad` what is none.
        again: the same rows once more, reporting to nobody; asked where ids repeat, to tell their places.
        out: the folder.
        name: of the table.
        schema: of the table; it has a column `id`.
        sources: for the message.
        what: the rows' name in words.
        bad: what was skipped so far; repeated ids are reported to it.
        progress: called with the rows written; their number is not known beforehand.

    Returns:
        The rows of the table.

    Raises:
        ValueError: no row at all, or a repeated id where bad records stop.
    """

    def write(tables: Iterator[pa.Table]) -> int:
        with FileWriter(out / f"{name}.parquet", schema) as file:
            for table in tables:
                file.write_table(table)
                progress(file.rows, None)
        return file.rows

    def places() -> Iterator[tuple[str, str]]:
        for record, row in again():
            yield str(row["id"]), record.place

    written = write(_tables(rows, schema))
    if not written:
        first = f" ({bad.skipped} bad records were skipped, the first: {bad.examples[0]})" if bad.skipped else ""
        raise ValueError(f"{', '.join(sources)}: no {what} found{first}")
    kept = without_duplicates(out, name, bad=bad, places=places)
    return written if kept is None else write(kept)


def _tables(rows: Iterator[tuple[Record, Row]], schema: pa.Schema) -> Iterator[pa.Table]:
    batch: list[Row] = []
    for _, row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield pa.Table.from_pylist(batch, schema=schema)
            batch = []
    if batch:
        yield pa.Table.from_pylist(batch, schema=schema)


def values(folder: Path, name: str, column: str) -> Iterator[Any]:
    """Streams a column of such a table."""
    for batch in iter_batches(folder, name, [column], BATCH_ROWS):
        yield from batch.column(0).to_pylist()
