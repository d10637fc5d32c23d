"""The corpus stage: sources of any known format become `documents-*.parquet` with the columns id, source, text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from longloom.storage.parquet import ShardWriter
from longloom.storage.stats import Stats
from longloom.tasks.corpus.duplicates import without_duplicates
from longloom.tasks.corpus.files import TSV, find_files
from longloom.tasks.corpus.readers import FORMATS, Document, read
from longloom.tasks.corpus.records import BadRecords
from longloom.tasks.progress import Progress, silent

NAME = "documents"
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.string())])
SHARD_ROWS = 65_536

#: Documents are written in batches of this many, or of this many characters when they are long.
BATCH_ROWS = 1024
BATCH_CHARACTERS = 8_000_000


def build(
    sources: list[str],
    out: Path,
    *,
    text_field: str,
    id_field: str,
    on_bad_record: str,
    progress: Progress = silent,
) -> Stats:
    """Reads documents and writes them in the order of the sources.

    Args:
        sources: files, folders (read recursively, sorted) and `hub:` data sets.
        out: an empty folder.
        text_field: the field of a JSON or Parquet record that holds the text.
        id_field: the field that holds its id; records without it are called `<file>:<line>`.
        on_bad_record: `stop` at the first bad record, or `skip` and count them.
        progress: called with the documents read; their number is not known beforehand.

    Returns:
        Counts of documents, characters and skipped records; values name the files of unknown formats by suffix and
        the first skipped records.

    Raises:
        FileNotFoundError: a source does not exist or an empty folder.
        ValueError: a bad record, a repeated id, an unreadable file, no document at all.
    """
    bad = BadRecords(on_bad_record)
    found = find_files(sources, FORMATS)

    def documents(bad: BadRecords) -> Iterator[Document]:
        return read(found, text_field=text_field, id_field=id_field, bad=bad)

    def write(tables: Iterator[pa.Table]) -> tuple[int, int]:
        characters = 0
        with ShardWriter(out, NAME, SCHEMA, rows_per_shard=SHARD_ROWS) as shards:
            for table in tables:
                shards.write_table(table)
                characters += pc.sum(pc.utf8_length(table["text"])).as_py() or 0
                progress(shards.rows, None)
        return shards.rows, characters

    rows, characters = write(_tables(documents(bad)))
    if not rows:
        first = f" ({bad.skipped} bad records were skipped, the first: {bad.examples[0]})" if bad.skipped else ""
        raise ValueError(f"{', '.join(sources)}: no documents found{first}")

    def places() -> Iterator[tuple[str, str]]:
        return ((document.id, document.place) for document in documents(BadRecords("skip")))

    kept = without_duplicates(out, NAME, bad=bad, places=places)
    if kept is not None:
        rows, characters = write(kept)
    return Stats(
        counts={"documents": rows, "characters": characters, "skipped": bad.skipped},
        values={"ignored_files": dict(sorted(found.ignored.items())), "skipped_examples": bad.examples},
    )


def _tables(documents: Iterator[Document]) -> Iterator[pa.Table]:
    """Documents in batches of bounded size."""
    batch: list[dict[str, object]] = []
    characters = 0
    for document in documents:
        batch.append({"id": document.id, "source": document.source, "text": document.text})
        characters += len(document.text)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield pa.Table.from_pylist(batch, schema=SCHEMA)
            batch, characters = [], 0
    if batch:
        yield pa.Table.from_pylist(batch, schema=SCHEMA)


def resolve(sources: list[str]) -> tuple[list[Path], list[str]]:
    """What a corpus or an instruction pool is read from, for a stage's cache key.

    Args:
        sources: files, folders and `hub:` data sets.

    Returns:
        The files, in the order in which they are read; and identities of what their contents do not tell: one of
        the files' names and the sources' order, and every hub data set pinned to its commit.

    Raises:
        FileNotFoundError, ValueError: as `build`; also when the hub does not answer.
    """
    found = find_files(sources, (*FORMATS, *TSV))
    files = [item.path for item in found.items if not isinstance(item, str)]
    hubs = [item for item in found.items if isinstance(item, str)]
    names = "\n".join(item if isinstance(item, str) else item.name for item in found.items)
    identities = [f"names:{hashlib.sha256(names.encode()).hexdigest()}"]
    if hubs:
        from longloom.tasks.corpus.hub import pin  # imports datasets: only when a hub data set is read

        identities += [pin(source) for source in hubs]
    return files, identities
