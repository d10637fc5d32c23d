"""JSON Lines with checked fields: whatever is wrong with a record is told by file, line and field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from longloom.storage.json_text import NotJson, parse_json


class Field(NamedTuple):
    """What a field must hold.

    Attributes:
        expected: in words, for the error.
        fits: whether a value is right.
    """

    expected: str
    fits: Callable[[Any], bool]


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


TEXT = Field("a string", lambda value: isinstance(value, str))
FILLED_TEXT = Field("a string that is not blank", lambda value: isinstance(value, str) and bool(value.strip()))
NUMBER = Field("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
STRINGS = Field("a list of strings, at least one", lambda value: _is_strings(value) and bool(value))
STRINGS_OR_NULL = Field("null or a list of strings", lambda value: value is None or _is_strings(value))


def task_files(data: Path) -> dict[str, Path]:
    """Task -> its file of records: of the `<task>.jsonl` in a folder (hidden ones left out), or of one such file.

    Raises:
        ValueError: there is none.
    """
    # Hidden files are no part of a folder's fingerprint.
    files = [data] if data.is_file() else sorted(path for path in data.glob("*.jsonl") if not path.name.startswith("."))
    if not files:
        raise ValueError(f"{data}: no <task>.jsonl is there, expected a folder of records or one such file")
    return {path.stem: path for path in files}


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1.

    Raises:
        ValueError: the file is missing, or no UTF-8.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from None


def parse(name: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of numbered lines.

    Args:
        name: the file's name, for errors.
        lines: as from `read_lines`.

    Raises:
        ValueError: a line is no JSON object; names file and line.
    """
    for number, line in lines:
        try:
            record = parse_json(line)
        except NotJson as error:
            raise ValueError(f"{name}:{number}: is not JSON ({error}), expected one object a line") from None
        if not isinstance(record, dict):
            raise ValueError(f"{name}:{number}: holds a JSON {type(record).__name__}, expected an object")
        yield number, record


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a JSON Lines file with their line numbers from 1.

    Raises:
        ValueError: an unreadable file, or a line that is no JSON object.
    """
    return parse(str(path), read_lines(path))


def check_fields(record: Mapping[str, Any], fields: Mapping[str, Field], where: str) -> None:
    """Checks that a record has its fields, of the right kinds.

    Args:
        record: the record.
        fields: what it must hold.
        where: `file:line`.

    Raises:
        ValueError: a missing or wrong field; names file, line and field.
    """
    for name, field in fields.items():
        if name not in record:
            raise ValueError(f"{where}: field {name!r} is missing, expected {field.expected}")
        if not field.fits(record[name]):
            raise ValueError(f"{where}: field {name!r} is {shown(record[name])}, expected {field.expected}")


def shown(value: Any) -> str:
    """A value of a record as JSON on one line, cut to 60 characters, for errors."""
    found = " ".join(json.dumps(value, ensure_ascii=False).split())
    return found if len(found) <= 60 else f"{found[:57]}..."
