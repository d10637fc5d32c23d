"""The instructions stage: instruction data of the usual formats becomes `instructions.parquet`.

Files are JSON arrays, JSON Lines, Parquet, or FLAN's chain-of-thought TSV. What a record means is told by its fields
(messages.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from longloom.storage.stats import Stats
from longloom.tasks.corpus.files import JSON, PARQUET, TSV, Found, SourceFile, find_files, open_bytes
from longloom.tasks.corpus.messages import COLUMNS, to_messages
from longloom.tasks.corpus.record_files import records_in
from longloom.tasks.corpus.records import (
    BOM,
    BadRecords,
    FaultError,
    Record,
    needed_id,
    record_source,
)
from longloom.tasks.corpus.table import values, write_records
from longloom.tasks.progress import Progress, silent

NAME = "instructions"
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("messages", pa.list_(MESSAGE))])
FORMATS = (*JSON, *PARQUET, *TSV)


def build(sources: list[str], out: Path, *, on_bad_record: str, progress: Progress = silent) -> Stats:
    """Reads instruction data and writes it in the order of the sources.

    An example needs at least one assistant turn that is not empty: there is nothing to learn from it otherwise.

    Args:
        sources: JSON (an array, or one object a line), Parquet or TSV files, folders of them, `hub:` data sets.
        out: an empty folder.
        on_bad_record: `stop` at the first bad record, or `skip` and count them.
        progress: called with the examples read; their number is not known beforehand.

    Returns:
        Counts of examples, turns and skipped records; values count the good records by format, repeated ids included.

    Raises:
        FileNotFoundError: a source does not exist or an empty folder.
        ValueError: a bad record, a repeated id, an unreadable file, no example at all.
    """
    bad = BadRecords(on_bad_record)
    found = find_files(sources, FORMATS)
    formats: Counter[str] = Counter()

    rows = write_records(
        _examples(found, bad, formats),
        lambda: _examples(found, BadRecords("skip"), Counter()),
        out,
        NAME,
        SCHEMA,
        sources=sources,
        what="examples",
        bad=bad,
        progress=progress,
    )
    turns = sum(map(len, values(out, NAME, "messages")))
    return Stats(
        counts={"examples": rows, "turns": turns, "skipped": bad.skipped},
        values={"formats": dict(sorted(formats.items())), "skipped_examples": bad.examples},
    )


def _examples(found: Found, bad: BadRecords, formats: Counter[str]) -> Iterator[tuple[Record, dict[str, object]]]:
    """Streams the good examples with the records that they come from."""
    for record in _records(found, bad):
        try:
            name, messages = to_messages(record.value)
            identifier = needed_id(record)
        except FaultError as fault:
            bad.report(record.place, str(fault), name=record.name)
        else:
            formats[name] += 1
            yield record, {"id": identifier, "source": record_source(record), "messages": messages}


# ---- records out of files


def _records(found: Found, bad: BadRecords) -> Iterator[Record]:
    for item in found.items:
        if isinstance(item, SourceFile) and item.suffix in TSV:
            yield from _flan_rows(item, bad)
        else:
            yield from records_in(item, COLUMNS, bad)


def _flan_rows(file: SourceFile, bad: BadRecords) -> Iterator[Record]:
    """FLAN's chain-of-thought files: question, answer, rationale; no header, newlines written as backslash and n."""
    with open_bytes(file.path) as stream:
        for number, line in enumerate(stream, start=1):
            content = line.removeprefix(BOM) if number == 1 else line
            if not content.strip():
                continue
            record = Record({}, number, file, "line")
            try:
                cells = content.decode("utf-8").rstrip("\r\n").split("\t")
            except UnicodeDecodeError as error:
                fault = f"found byte 0x{content[error.start]:02x} at {error.start}, expected UTF-8"
                bad.report(record.place, fault, name=record.name)
                continue
            if len(cells) != 3:
                fault = f"found {len(cells)} columns, expected question, answer and rationale separated by tabs"
                bad.report(record.place, fault, name=record.name)
                continue
            question, answer, rationale = (cell.replace("\\n", "\n") for cell in cells)
            yield Record({"question": question, "answer": answer, "rationale": rationale}, number, file, "line")
