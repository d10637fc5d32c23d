"""Streams documents out of JSON Lines, Parquet, text, Markdown and source files, folders of them, and hub data sets.

A line of JSON or a row of Parquet is a document; a text, Markdown or source file is one as a whole. One document
at a time is in memory (a batch of rows for Parquet).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from longloom.tasks.corpus.files import CODE, JSON, PARQUET, TEXT, Found, SourceFile, open_bytes
from longloom.tasks.corpus.records import (
    BadRecords,
    Record,
    describe,
    is_utf8,
    json_lines,
    parquet_rows,
    record_id,
    record_source,
)

FORMATS = (*JSON, *PARQUET, *TEXT, *CODE)


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        id: the record's own id, else `<file>:<line>`; the file's name for a text file (names as in `SourceFile`).
        source: the record's `source`, else the name of the file, folder or data set that the user gave.
        text: never empty, always encodable as UTF-8.
        place: where it was read, for messages.
    """

    id: str
    source: str
    text: str
    place: str


def read(found: Found, *, text_field: str, id_field: str, bad: BadRecords) -> Iterator[Document]:
    """Streams the documents of sources, in their order.

    Empty text files (such as the `__init__.py` of many packages) hold no document and are passed over. Ids are not
    checked for repetition here.

    Args:
        found: what `find_files(sources, FORMATS)` found.
        text_field: the field that holds a record's text.
        id_field: the field that holds its id, if it has one.
        bad: gets the bad records.

    Raises:
        ValueError: a bad record under the policy `stop`; a file that cannot be read at all.
    """
    columns = tuple(dict.fromkeys((text_field, id_field, "source")))
    for item in found.items:
        if isinstance(item, str):
            from longloom.tasks.corpus import hub  # imports datasets: only when a hub data set is read

            yield from _documents(hub.rows(item), text_field, id_field, bad)
        elif item.suffix in JSON:
            yield from _documents(json_lines(item, bad), text_field, id_field, bad)
        elif item.suffix in PARQUET:
            yield from _documents(parquet_rows(item, columns, bad), text_field, id_field, bad)
        else:
            yield from _whole_file(item, bad)


def _documents(records: Iterator[Record], text_field: str, id_field: str, bad: BadRecords) -> Iterator[Document]:
    for record in records:
        text = record.value.get(text_field)
        identifier = record_id(record, id_field)
        if text_field not in record.value:
            known = ", ".join(record.value) or "none"
            fault = f"found no field {text_field!r} (fields: {known}), expected text"
        elif not isinstance(text, str) or not text:
            fault = f"found {describe(text)} in the field {text_field!r}, expected text"
        elif not is_utf8(text):
            fault = f"found a lone surrogate in the field {text_field!r}, expected text that UTF-8 can hold"
        elif identifier is None:
            found_id = describe(record.value[id_field])
            fault = f"found {found_id} in the field {id_field!r}, expected a string or integer"
        else:
            yield Document(identifier, record_source(record), text, record.place)
            continue
        bad.report(record.place, fault, name=record.name)


def _whole_file(file: SourceFile, bad: BadRecords) -> Iterator[Document]:
    with open_bytes(file.path) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        fault = f"found byte 0x{content[error.start]:02x}, expected UTF-8"
        bad.report(f"{file.path}, line {line}", fault, name=f"{file.name}:{line}")
        return
    if text:
        yield Document(file.name, file.source, text, str(file.path))
