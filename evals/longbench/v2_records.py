"""Where LongBench v2's records come from: the official data.json, a list, or the same as JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longloom.evals.hub import fetch
from longloom.evals.jsonl import TEXT, Field, check_fields, read_records
from longloom.storage.json_text import read_json

DIFFICULTIES = ("easy", "hard")
LENGTHS = ("short", "medium", "long")


def _one_of(*values: str) -> Field:
    return Field("one of " + ", ".join(values), lambda value: value in values)


#: What a score needs of a record, and a prediction has too.
RATED_FIELDS = {"difficulty": _one_of(*DIFFICULTIES), "length": _one_of(*LENGTHS), "answer": _one_of(*"ABCD")}

_TEXTS = ("_id", "domain", "sub_domain", "question", "choice_A", "choice_B", "choice_C", "choice_D", "context")
FIELDS = {**dict.fromkeys(_TEXTS, TEXT), **RATED_FIELDS}

HUB_REPOSITORY = "THUDM/LongBench-v2"
_FILE = "data.json"


def read_questions(data: Path | None) -> Iterator[dict[str, Any]]:
    """The records, checked.

    Args:
        data: a folder with data.json, or such a file (.jsonl: JSON Lines); None: the hub (HF_HUB_OFFLINE=1: its cache).

    Raises:
        ValueError: no such file, or a bad record (file, line or number, field).
    """
    path = fetch(HUB_REPOSITORY, _FILE) if data is None else data / _FILE if data.is_dir() else data
    found = False
    for where, record in _lines(path) if path.suffix == ".jsonl" else _items(path):
        found = True
        check_fields(record, FIELDS, where)
        yield record
    if not found:
        raise ValueError(f"{path}: has no records, expected at least one")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in read_records(path):
        yield f"{path}:{number}", record


def _items(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    items = read_json(path, expected=f"LongBench v2's {_FILE}")
    if not isinstance(items, list):
        raise ValueError(f"{path}: holds a JSON {type(items).__name__}, expected a list of records")
    for number, item in enumerate(items, start=1):
        where = f"{path}: record {number}"
        if not isinstance(item, dict):
            raise ValueError(f"{where}: is a JSON {type(item).__name__}, expected an object")
        yield where, item
