"""The comparisons stage: preference data of the usual formats becomes `comparisons.parquet`, a row a comparison.

Files are JSON arrays, JSON Lines or Parquet; hub data sets are `hub:microsoft/rpr?split=train`. What a record means is
told by its fields (formats.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from longloom.storage.parquet import iter_batches
from longloom.storage.stats import Stats
from longloom.tasks.corpus.files import JSON, PARQUET, Found, find_files
from longloom.tasks.corpus.instructions import MESSAGE
from longloom.tasks.corpus.record_files import records_of
from longloom.tasks.corpus.records import (
    BadRecords,
    FaultError,
    Record,
    needed_id,
    record_source,
)
from longloom.tasks.corpus.table import BATCH_ROWS, write_records
from longloom.tasks.preference.formats import COLUMNS, CONTEXTS, IdenticalError, to_comparisons
from longloom.tasks.preference.reversals import context_free_best
from longloom.tasks.progress import Progress, silent

NAME = "comparisons"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("prompt", pa.list_(MESSAGE)),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("context", pa.string()),
        ("category", pa.string()),
        ("tie", pa.bool_()),
    ]
)
FORMATS = (*JSON, *PARQUET)


@dataclass
class Told:
    """What was met in reading.

    Attributes:
        formats: comparisons by format.
        identical: records skipped because both responses are the same.
    """

    formats: Counter[str] = field(default_factory=Counter)
    identical: int = 0


def build(sources: list[str], out: Path, *, contexts: str, on_bad_record: str, progress: Progress = silent) -> Stats:
    """Reads preference data and writes its comparisons in the order of the sources.

    Ties are kept and marked. A comparison without a context has null there; a record of RPR that lacks one of its two
    is bad, and so is one whose responses are the same or empty: neither of its comparisons is written.

    Args:
        sources: JSON (an array, or one object a line) or Parquet files, folders of them, `hub:` data sets.
        out: an empty folder.
        contexts: `criteria` or `scenario`, which of RPR's columns is the context.
        on_bad_record: `stop` at the first bad record, or `skip` and count them.
        progress: called with the comparisons read; their number is not known beforehand.

    Returns:
        Counts of comparisons, ties, those without context, those with one that are no ties (`in_context`), prompts, and
        of skipped records, with those of identical responses among them. Values: comparisons by format, and under
        `context_free` how many of those that are no tie the best judge gets right who sees no context: on a reversal
        set exactly half (`reversals.py`).

    Raises:
        FileNotFoundError: a source does not exist or an empty folder.
        ValueError: a bad record, a repeated id, an unreadable file, no comparison at all, unknown `contexts`.
    """
    if contexts not in CONTEXTS:
        raise ValueError(f"contexts {contexts!r}: unknown, expected one of {', '.join(CONTEXTS)}")
    bad, told = BadRecords(on_bad_record), Told()
    found = find_files(sources, FORMATS)

    write_records(
        _rows(found, contexts, bad, told),
        lambda: _rows(found, contexts, BadRecords("skip"), Told()),
        out,
        NAME,
        SCHEMA,
        sources=sources,
        what="comparisons",
        bad=bad,
        progress=progress,
    )
    counts, context_free = described(out)
    return Stats(
        counts=counts | {"skipped": bad.skipped, "identical": told.identical},
        values={
            "formats": dict(sorted(told.formats.items())),
            "context_free": context_free,
            "skipped_examples": bad.examples,
        },
    )


def described(folder: Path) -> tuple[dict[str, int], dict[str, object]]:
    """Counts of a table of comparisons, and what can be had without contexts.

    The latter is `context_free_best` under `best` and `of`, and under `balanced` whether that is exactly half.
    """
    counts = {"comparisons": 0, "ties": 0, "without_context": 0, "in_context": 0}
    prompts: set[bytes] = set()

    def strict() -> Iterator[tuple[bytes, bytes, bytes]]:
        for batch in iter_batches(folder, NAME, ["prompt", "chosen", "rejected", "context", "tie"], BATCH_ROWS):
            for row in batch.to_pylist():
                counts["comparisons"] += 1
                counts["ties"] += row["tie"]
                counts["without_context"] += row["context"] is None
                counts["in_context"] += row["context"] is not None and not row["tie"]
                prompt = _digest(*(part for turn in row["prompt"] for part in (turn["role"], turn["content"])))
                prompts.add(prompt)
                if not row["tie"]:
                    yield prompt, _digest(row["chosen"]), _digest(row["rejected"])

    best, of = context_free_best(strict())
    return counts | {"prompts": len(prompts)}, {"best": best, "of": of, "balanced": 0 < of == 2 * best}


def _digest(*texts: str) -> bytes:
    """SHA-256 in place of texts, of which a large set would not fit into memory."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def _rows(found: Found, contexts: str, bad: BadRecords, told: Told) -> Iterator[tuple[Record, dict[str, object]]]:
    """Streams the good comparisons with the records that they come from."""
    for record in records_of(found, COLUMNS, bad):
        try:
            name, comparisons = to_comparisons(record.value, contexts=contexts)
            identifier = needed_id(record)
        except FaultError as fault:
            bad.report(record.place, str(fault), name=record.name)
            told.identical += isinstance(fault, IdenticalError)
            continue
        # The field `source` of HHH's records is their category.
        source = record.file.source if name == "hhh" else record_source(record)
        told.formats[name] += len(comparisons)
        for each in comparisons:
            yield (
                record,
                {
                    "id": f"{identifier}/{each.side}" if each.side else identifier,
                    "source": source,
                    "prompt": each.prompt,
                    "chosen": each.chosen,
                    "rejected": each.rejected,
                    "context": each.context,
                    "category": each.category,
                    "tie": each.tie,
                },
            )
