"""Where LongBench's records come from: a folder of official JSON Lines files, or the hub's archive of the same."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longloom.evals.hub import fetch
from longloom.evals.jsonl import NUMBER, STRINGS, STRINGS_OR_NULL, TEXT, check_fields, parse, read_records, task_files
from longloom.storage.json_text import read_json

FIELDS = {
    "input": TEXT,
    "context": TEXT,
    "answers": STRINGS,
    "length": NUMBER,
    "dataset": TEXT,
    "language": TEXT,
    "all_classes": STRINGS_OR_NULL,
    "_id": TEXT,
}

HUB_REPOSITORY = "THUDM/LongBench"
_HUB_ARCHIVE = "data.zip"


def read_task(data: Path | None, task: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a task, checked, each with its `file:line`.

    A record may have `gold` too, the passages of its context that hold the answer (not official).

    Args:
        data: a folder of records, or one task's file; None: the hub (HF_HUB_OFFLINE=1: its local cache).
        task: the file's name without its suffix.

    Raises:
        ValueError: no such file, or a bad record (file, line, field).
    """
    if data is None:
        archive = fetch(HUB_REPOSITORY, _HUB_ARCHIVE)
        name = f"{archive}/{task}.jsonl"
        numbered = parse(name, _lines_in(archive, task))
    else:
        files = task_files(data)
        if task not in files:
            raise ValueError(f"{data}: has no {task}.jsonl, only records of {', '.join(files)}")
        name = str(files[task])
        numbered = read_records(files[task])
    found = False
    for number, record in numbered:
        found = True
        where = f"{name}:{number}"
        check_fields(record, FIELDS, where)
        if "gold" in record:
            check_fields(record, {"gold": STRINGS}, where)
            for passage in record["gold"]:
                if passage not in record["context"]:
                    raise ValueError(f"{where}: field 'gold' has {passage[:60]!r}, which is no part of the context")
        yield where, record
    if not found:
        raise ValueError(f"{name}: has no records, expected at least one")


def config_file(data: Path, name: str) -> Path:
    """Where a table of tasks is looked for: `config/<name>.json` beside the records."""
    return (data.parent if data.is_file() else data) / "config" / f"{name}.json"


def read_config(data: Path, name: str) -> dict[str, Any] | None:
    """A table of tasks; None if it is not there.

    Raises:
        ValueError: it is no JSON object.
    """
    path = config_file(data, name)
    if not path.is_file():
        return None
    table = read_json(path, expected="an object of tasks")
    if not isinstance(table, dict):
        raise ValueError(f"{path}: holds a JSON {type(table).__name__}, expected an object of tasks")
    return table


def _lines_in(archive: Path, task: str) -> Iterator[tuple[int, str]]:
    with zipfile.ZipFile(archive) as file:
        member = f"data/{task}.jsonl"
        if member not in file.namelist():
            raise ValueError(f"{archive}: has no {member}")
        with file.open(member) as raw:
            for number, line in enumerate(io.TextIOWrapper(raw, encoding="utf-8"), start=1):
                if line.strip():
                    yield number, line
