"""Records out of files, and the one rule for bad ones: stop with their place and fault, or skip and count.

Blank lines are no records. Lines are ended by \\n alone: JSON text may hold the other separators of Unicode.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from longloom.storage.parquet import reading
from longloom.tasks.corpus.files import SourceFile, open_bytes

ON_BAD_RECORD = ("stop", "skip")
BOM = b"\xef\xbb\xbf"

#: Characters of a message about a bad record.
FAULT = 400

#: Rows of Parquet decoded at once: documents can be long.
PARQUET_BATCH = 256


@dataclass
class BadRecords:
    """What to do with a bad record.

    Attributes:
        policy: `stop` raises at the first one, `skip` counts them.
        skipped: how many were skipped.
        examples: what was wrong with the first of them, for the manifest.
    """

    policy: str
    skipped: int = 0
    examples: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.policy not in ON_BAD_RECORD:
            raise ValueError(f"on_bad_record is {self.policy!r}, expected one of {', '.join(ON_BAD_RECORD)}")

    def report(self, place: str, fault: str, *, name: str | None = None) -> None:
        """Takes one bad record.

        Args:
            place: where it is, as the user knows it (path and line).
            fault: what was found and what was expected.
            name: the place without the machine's folders, for the manifest; `place` when not given.

        Raises:
            ValueError: the policy is `stop`.
        """
        fault = _one_line(fault)
        if self.policy == "stop":
            raise ValueError(f"{place}: {fault} (on_bad_record='skip' goes on without it)")
        self.skipped += 1
        if len(self.examples) < 5:
            self.examples.append(f"{name or place}: {fault}")


def _one_line(text: str) -> str:
    """A fault may quote names out of the record: of any length, with line ends, with what UTF-8 cannot hold."""
    plain = " ".join(text.split()).encode("utf-8", "backslashreplace").decode("utf-8")
    return plain if len(plain) <= FAULT else f"{plain[: FAULT - 3]}..."


class FaultError(Exception):
    """What is wrong with a record: what was found, what was expected."""


@dataclass(frozen=True)
class Record:
    """One record as it was read.

    Attributes:
        value: its fields.
        number: line of a JSON file, row of a Parquet file, item of a JSON array; from 1.
        file: where it comes from.
        unit: what `number` counts: line, row or item.
    """

    value: dict[str, object]
    number: int
    file: SourceFile
    unit: str

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.file.path}, {self.unit} {self.number}"

    @property
    def name(self) -> str:
        """Unique among the files of a source, and the same on every machine."""
        return f"{self.file.name}:{self.number}"


def json_lines(file: SourceFile, bad: BadRecords) -> Iterator[Record]:
    """Streams the objects of a file that holds one JSON object a line."""
    with open_bytes(file.path) as stream:
        for number, line in enumerate(stream, start=1):
            content = line.removeprefix(BOM) if number == 1 else line
            if not content.strip():
                continue
            try:
                value = _parse_object(content)
            except FaultError as fault:
                bad.report(f"{file.path}, line {number}", str(fault), name=f"{file.name}:{number}")
            else:
                yield Record(value, number, file, "line")


def _parse_object(content: bytes) -> dict[str, object]:
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FaultError(f"found byte 0x{content[error.start]:02x} at {error.start}, expected UTF-8") from None
    except json.JSONDecodeError as error:
        start = content[:40].decode("utf-8", "replace").rstrip()
        hint = "; an array must be written as one object a line" if start.startswith("[") else ""
        raise FaultError(f"found broken JSON {start!r} ({error.msg}), expected one object{hint}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested too deeply
        raise FaultError(f"found JSON that cannot be read ({error}), expected one object") from None
    if not isinstance(value, dict):
        raise FaultError(f"found {describe(value)}, expected a JSON object")
    return value


def parquet_rows(file: SourceFile, columns: tuple[str, ...], bad: BadRecords) -> Iterator[Record]:
    """Streams the rows of a Parquet file.

    Args:
        file: the file.
        columns: the columns to read; those that it lacks are left out, and none of them at all is an error.
        bad: gets the rows whose strings are not UTF-8.

    Raises:
        ValueError: the file is damaged, or has none of the columns.
    """
    with reading(file.path), pq.ParquetFile(file.path) as reader:
        present = [column for column in columns if column in reader.schema_arrow.names]
        if not present:
            known = ", ".join(reader.schema_arrow.names)
            raise ValueError(f"{file.path}: has none of the columns {', '.join(columns)}, only {_one_line(known)}")
        number = 0
        for batch in reader.iter_batches(batch_size=PARQUET_BATCH, columns=present):
            for index in range(batch.num_rows):
                number += 1
                try:
                    value = {column: batch.column(column)[index].as_py() for column in present}
                except UnicodeDecodeError as error:
                    fault = f"found byte 0x{error.object[error.start]:02x} in a string, expected UTF-8"
                    bad.report(f"{file.path}, row {number}", fault, name=f"{file.name}:{number}")
                else:
                    yield Record(value, number, file, "row")


def describe(value: object) -> str:
    """A value's kind in JSON's words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "an empty string" if not value else f"the string {value[:30]!r}"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return f"an object with the fields {', '.join(map(str, list(value)[:8]))}" if value else "an empty object"
    return f"a value of type {type(value).__name__}"


def is_utf8(text: str) -> bool:
    """False for text with lone surrogates, which JSON can write (\\ud800) and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def record_id(record: Record, id_field: str) -> str | None:
    """The record's own id, its name (file and line) when it has none, or None when it is not usable as an id."""
    value = record.value.get(id_field)
    if value is None:
        return record.name
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value and is_utf8(value) else None


def needed_id(record: Record) -> str:
    """The same of the field `id`, for records that must be told apart.

    Raises:
        FaultError: it is not usable.
    """
    found = record_id(record, "id")
    if found is None:
        raise FaultError(f"found {describe(record.value['id'])} in the field 'id', expected a string or integer")
    return found


def record_source(record: Record) -> str:
    """The record's `source` if it is a string, else the name of the file or folder that the user gave."""
    value = record.value.get("source")
    return value if isinstance(value, str) and value and is_utf8(value) else record.file.source
