"""Evaluation records as texts to be looked for in a corpus: those of our suites, or JSON Lines of any kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longloom.evals.jsonl import read_records
from longloom.evals.protocol import Request
from longloom.evals.suite import Suite

#: What JSON Lines are called where results name a suite.
JSONL = "jsonl"


@dataclass(frozen=True)
class Record:
    """A sample's own texts, without the prompt that a benchmark puts around them.

    Attributes:
        suite, task, sample: as in an evaluation's results.
        parts: by name: `context`, `question` and `answer` of a suite's record, or the fields of a JSON object.
    """

    suite: str
    task: str
    sample: int
    parts: Mapping[str, Sequence[str]]

    @property
    def digest(self) -> str:
        """Tells this record's texts from others', 16 hex digits."""
        text = json.dumps({name: list(texts) for name, texts in self.parts.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def record_of(suite: str, task: str, sample: int, record: Mapping[str, Any]) -> Record:
    """A suite's record: the contexts and questions that its requests mark, and the references.

    Where a request marks no context, its whole document counts as one.
    """
    requests = [Request.from_dict(fields) for fields in record["requests"]]
    contexts = [r.document if r.context is None else r.document[r.context[0] : r.context[1]] for r in requests]
    parts = {"context": contexts, "question": [r.query for r in requests], "answer": record["references"]}
    return Record(suite, task, sample, {name: _distinct(texts) for name, texts in parts.items()})


def suite_records(suite: Suite, tasks: Sequence[str] | None, limit: int | None) -> Iterator[Record]:
    """The records of a suite, numbered as an evaluation numbers its samples.

    Args:
        suite: open.
        tasks: of the suite; None or none: all that the data has.
        limit: at most so many a task, the first ones; None: all.
    """
    for task in dict.fromkeys(tasks or suite.tasks()):
        for sample, record in enumerate(suite.records(task)[:limit]):
            yield record_of(suite.name, task, sample, record)


def jsonl_records(path: Path, fields: Sequence[str], limit: int | None) -> Iterator[Record]:
    """The records of a JSON Lines file: one part a field.

    Args:
        path: the file; its name without the ending is the task.
        fields: to be looked at; none: every field that holds text. Texts in lists and objects count.
        limit: at most so many, the first ones; None: all.

    Raises:
        ValueError: the file cannot be read, a line is no object, a field is missing, or a record holds no text.
    """
    for sample, (line, record) in enumerate(read_records(path)):
        if sample == limit:
            return
        for field in fields:
            if field not in record:
                raise ValueError(f"{path}:{line}: field {field!r} is missing, expected one of {', '.join(record)}")
        parts = {field: _distinct(list(_texts(record[field]))) for field in fields or record}
        if not any(parts.values()):
            raise ValueError(f"{path}:{line}: holds no text, expected some in {', '.join(fields) or 'a field'}")
        yield Record(JSONL, path.stem, sample, {name: texts for name, texts in parts.items() if texts})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _distinct(texts: Sequence[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text.strip()]
