"""The conversations stage: questions with their context and answer become `conversations.parquet`, a row an answer.

Told by a record's fields:

- `messages` that end with the user, `answers`, and `document` (nvidia/ChatQA-Training-Data) or `ctxs` (ChatRAG-Bench)
- `question`, `sub-paragraphs` and `answer` or `answers` (nvidia/ChatQA2-Long-SFT-data)
- any instruction format (tasks/corpus/messages.py), without a context: a row for each of the assistant's turns
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from longloom.evals.chatrag.prompt import Passage, join_passages
from longloom.storage.stats import Stats
from longloom.tasks.corpus.files import JSON, PARQUET, Found, find_files
from longloom.tasks.corpus.instructions import MESSAGE
from longloom.tasks.corpus.messages import COLUMNS as INSTRUCTION_COLUMNS
from longloom.tasks.corpus.messages import chat, text_of, to_messages
from longloom.tasks.corpus.record_files import records_of
from longloom.tasks.corpus.records import (
    BadRecords,
    FaultError,
    Record,
    describe,
    needed_id,
    record_source,
)
from longloom.tasks.corpus.table import values, write_records
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.chatqa_prompt import KINDS

NAME = "conversations"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("context", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("answer", pa.string()),
    ]
)
FORMATS = (*JSON, *PARQUET)
COLUMNS = (*INSTRUCTION_COLUMNS, "answers", "document", "ctxs", "sub-paragraphs", "paragraph_id")
#: Literal begin-of-text marks with which ChatQA 2's NarrativeQA documents begin; the tokenizer puts its own.
BOS_MARKS = ("<|begin_of_text|>", "<s>")


class Turn(NamedTuple):
    """An answer, and what it is an answer to."""

    context: str
    messages: list[dict[str, str]]
    answer: str


def build(sources: list[str], out: Path, *, kind: str | None, on_bad_record: str, progress: Progress = silent) -> Stats:
    """Reads conversations and writes their answers in the order of the sources.

    Args:
        sources: JSON (an array, or one object a line) or Parquet files, folders of them, `hub:` data sets.
        out: an empty folder.
        kind: of the answers, one of chatqa_prompt.KINDS; None: `full` where there is a context, else `none`.
        on_bad_record: `stop` at the first bad record, or `skip` and count them.
        progress: called with the answers read; their number is not known beforehand.

    Returns:
        Counts of examples, those with a context, and skipped records; values count the examples by format.

    Raises:
        FileNotFoundError: a source does not exist or an empty folder.
        ValueError: an unknown kind, a bad record, a repeated id, an unreadable file, no example at all.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind of answer is {kind!r}, expected one of {', '.join(KINDS)}")
    bad, formats = BadRecords(on_bad_record), Counter[str]()
    found = find_files(sources, FORMATS)

    rows = write_records(
        _rows(found, kind, bad, formats),
        lambda: _rows(found, kind, BadRecords("skip"), Counter()),
        out,
        NAME,
        SCHEMA,
        sources=sources,
        what="conversations",
        bad=bad,
        progress=progress,
    )
    with_context = sum(map(bool, values(out, NAME, "context")))
    return Stats(
        counts={"examples": rows, "with_context": with_context, "skipped": bad.skipped},
        values={"formats": dict(sorted(formats.items())), "skipped_examples": bad.examples},
    )


def _rows(
    found: Found, kind: str | None, bad: BadRecords, formats: Counter[str]
) -> Iterator[tuple[Record, dict[str, object]]]:
    """Streams the good examples with the records that they come from."""
    for record in records_of(found, COLUMNS, bad):
        try:
            name, turns = to_turns(record.value)
            identifier = needed_id(record)
        except FaultError as fault:
            bad.report(record.place, str(fault), name=record.name)
            continue
        formats[name] += len(turns)
        for number, turn in enumerate(turns, start=1):
            yield (
                record,
                {
                    "id": identifier if len(turns) == 1 else f"{identifier}/{number}",
                    "source": record_source(record),
                    "kind": kind or ("full" if turn.context else "none"),
                    **turn._asdict(),
                },
            )


def to_turns(value: dict[str, object]) -> tuple[str, list[Turn]]:
    """The format of a record, and its answers with what they are answers to.

    Raises:
        FaultError: no known format, or a field that is not what the format says.
    """
    if value.get("messages") is not None and value.get("answers") is not None:
        messages = _spoken(chat(value["messages"], "messages", "role", "content"))
        if not messages or messages[-1]["role"] != "user":
            raise FaultError("found messages that do not end with the user's, expected a question to answer")
        context = _document(value["document"]) if value.get("document") is not None else _passages(value.get("ctxs"))
        return "chatqa", [Turn(context, messages, _answer(value))]
    if value.get("question") is not None and "sub-paragraphs" in value:
        question = _unframed(_without_bos(text_of(value["question"], "question")))
        messages = [{"role": "user", "content": question}]
        return "chatqa2-long", [Turn(_document(value["sub-paragraphs"]), messages, _answer(value))]
    name, messages = to_messages(value)
    spoken = _spoken(messages)
    turns = [
        Turn("", spoken[:at], message["content"].strip())
        for at, message in enumerate(spoken)
        # An assistant's turn that nobody's question precedes is no answer.
        if message["role"] == "assistant" and at and spoken[at - 1]["role"] == "user" and message["content"].strip()
    ]
    if not turns:
        raise FaultError("found no turn of the assistant behind one of the user, expected an answer to learn")
    return name, turns


def _spoken(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """As user and assistant alone: what tools say is told by the user, a system prompt begins the user's next turn."""
    found: list[dict[str, str]] = []
    system: list[str] = []
    for message in messages:
        if message["role"] == "system":
            system.append(message["content"])
        elif message["role"] == "assistant":
            found.append(message)
        else:
            found.append({"role": "user", "content": "\n\n".join([*system, message["content"]])})
            system = []
    return found


def _answer(value: dict[str, object]) -> str:
    """The first of `answers`, or `answer`."""
    field = "answers" if value.get("answers") is not None else "answer"
    given: Any = value.get(field)
    if isinstance(given, list):
        given = given[0] if given else None
    if not isinstance(given, str) or not given.strip():
        raise FaultError(f"found {describe(given)} in the field {field!r}, expected an answer")
    return text_of(given, field).strip()


def _document(value: object) -> str:
    """A text, or a list of them a blank line apart."""
    if value is None:
        return ""
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if not isinstance(part, str):
            raise FaultError(f"found {describe(part)} as a context, expected text or a list of texts")
    return _without_bos("\n\n".join(text_of(part, "context") for part in parts).strip())


def _passages(value: object) -> str:
    """The first of the retrieved passages with their titles."""
    if value is None:
        return ""
    if not isinstance(value, list):
        raise FaultError(f"found {describe(value)} in the field 'ctxs', expected a list of passages")
    found = []
    for part in value:
        if not (isinstance(part, dict) and isinstance(part.get("title"), str) and isinstance(part.get("text"), str)):
            raise FaultError(f"found {describe(part)} in the field 'ctxs', expected passages with a title and a text")
        found.append(Passage(part["title"], part["text"]))
    return join_passages(found)


def _without_bos(text: str) -> str:
    for mark in BOS_MARKS:
        text = text.removeprefix(mark)
    return text.lstrip()


def _unframed(question: str) -> str:
    """A question that is a whole prompt, from "User:" to "Assistant:", without that frame, which is put again."""
    text = question.strip()
    if text.endswith("Assistant:"):
        text = text.removesuffix("Assistant:").rstrip()
    return text.removeprefix("User:").lstrip()
