"""Records out of files of every common format, and of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator

from longloom.tasks.corpus.files import PARQUET, Found, SourceFile, open_bytes
from longloom.tasks.corpus.records import BOM, BadRecords, Record, describe, json_lines, parquet_rows


def records_of(found: Found, columns: tuple[str, ...], bad: BadRecords) -> Iterator[Record]:
    """Streams the records of all sources, see `records_in`."""
    for item in found.items:
        yield from records_in(item, columns, bad)


def records_in(item: SourceFile | str, columns: tuple[str, ...], bad: BadRecords) -> Iterator[Record]:
    """Streams the records of a file, JSON in an array or in lines or Parquet, of which these columns; or of the hub."""
    if isinstance(item, str):
        from longloom.tasks.corpus import hub  # imports datasets: only when a hub data set is read

        yield from hub.rows(item)
    elif item.suffix in PARQUET:
        yield from parquet_rows(item, columns, bad)
    elif is_array(item):
        yield from array_items(item, bad)
    else:
        yield from json_lines(item, bad)


def is_array(file: SourceFile) -> bool:
    """Whether a JSON file is one array and not an object a line; its name does not tell."""
    with open_bytes(file.path) as stream:
        for line in stream:
            start = line.removeprefix(BOM).lstrip()
            if start:
                return start.startswith(b"[")
    return False


def array_items(file: SourceFile, bad: BadRecords) -> Iterator[Record]:
    """The items of a file that is one JSON array; the whole of it is in memory."""
    with open_bytes(file.path) as stream:
        content = stream.read()
    try:
        items = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.path}: begins like a JSON array but cannot be read as one ({error})") from None
    for number, value in enumerate(items, start=1):
        record = Record(value, number, file, "item")
        if isinstance(value, dict):
            yield record
        else:
            bad.report(record.place, f"found {describe(value)}, expected a JSON object", name=record.name)
