"""Reads the files of artifacts for the report. Whatever is wrong with a file, the error is one line that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

#: The wanted columns of a Parquet file: name -> type it is cast to, or None to take it as it is.
Columns = Mapping[str, pa.DataType | None]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns any failure to read `path` into one ValueError that names the file and the reason."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"report: cannot read {path}: {reason}") from error


def read_table(path: Path, columns: Columns, *, optional: Columns | None = None) -> pa.Table:
    """Reads a Parquet file's columns, cast to the given types.

    Args:
        path: the file.
        columns: columns that must be there.
        optional: columns that are read where they are there.

    Raises:
        ValueError: the file is missing or unreadable, lacks a column, or a column has another type; names the file.
    """
    with reading(path):
        present = pq.read_schema(path).names
    missing = [name for name in columns if name not in present]
    if missing:
        raise ValueError(f"report: {path} has the columns {', '.join(present)}; expected also {', '.join(missing)}")
    wanted = {**columns, **{name: kind for name, kind in (optional or {}).items() if name in present}}
    with reading(path):
        table = pq.read_table(path, columns=list(wanted))
        return pa.table(
            {name: table[name] if kind is None else table[name].cast(kind) for name, kind in wanted.items()}
        )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: the file is unreadable or holds no object; names the file.
    """
    with reading(path):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"report: {path} holds a JSON {type(value).__name__}; expected an object")
    return value


def files_below(folder: Path, pattern: str) -> list[Path]:
    """The files of an artifact that match `pattern`, sorted.

    Raises:
        ValueError: there is none; names the folder.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise ValueError(f"report: {folder} holds no {pattern}")
    return found
