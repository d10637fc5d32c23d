"""The contamination stage: how much of each evaluation record stands in the corpus, and which records are flagged.

contamination.parquet   one row a record: its flag, and shares and verdicts of all its parts together
parts.parquet           one row a record, part and measure: a context that stands on the web is another matter than an
                        answer that does (PaLM, arXiv 2204.02311, section 8)
scores.parquet          with an evaluation: its scores, and those of the records that are not flagged

A record is `contaminated` if one of the deciding measures calls it dirty. measures.py says what the measures are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from longloom.evals.jsonl import task_files
from longloom.evals.registry import open_suite
from longloom.evals.suite import Source
from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.sources.located import Corpus, open_corpus
from longloom.tasks.sources.measures import DIRTY, NAMES, VERDICTS, Measure, measures_for, overlap
from longloom.tasks.sources.records import Record, jsonl_records, suite_records
from longloom.tasks.sources.rescored import SCORES, rescored

Row = dict[str, Any]

_RECORD = (("suite", pa.string()), ("task", pa.string()), ("sample", pa.int64()))

#: `{measure}_share` and `{measure}_verdict` are null where a record is too short for a window or the index cannot be
#: asked. `match` is a window that was found, of the first deciding measure that found one; `id` and `source` name the
#: first document that holds it.
RECORDS = pa.schema(
    [
        *_RECORD,
        ("digest", pa.string()),
        ("characters", pa.int64()),
        ("contaminated", pa.bool_()),
        ("verdict", pa.string()),
        *(
            (f"{name}_{column}", kind)
            for name in NAMES
            for column, kind in (("windows", pa.int64()), ("share", pa.float64()), ("verdict", pa.string()))
        ),
        ("match", pa.string()),
        ("id", pa.string()),
        ("source", pa.string()),
    ]
)
PARTS = pa.schema(
    [
        *_RECORD,
        ("part", pa.string()),
        ("measure", pa.string()),
        ("windows", pa.int64()),
        ("found", pa.int64()),
        ("share", pa.float64()),
        ("verdict", pa.string()),
    ]
)


def build(
    index: Path,
    data: Path | None,
    evaluation: Path | None,
    out: Path,
    *,
    suite: str | None,
    tasks: Sequence[str] | None,
    suite_options: Mapping[str, Any],
    seed: int,
    fields: Sequence[str],
    limit: int | None,
    by: Sequence[str],
    progress: Progress = silent,
) -> Stats:
    """Writes the tables above.

    Args:
        index: folder of an n-gram index.
        data: the suite's records (a folder, or one task's file), None: the hub; without a suite, a JSON Lines file, or
            a folder of such.
        evaluation: folder of an evaluation of the same records, to be scored again without those flagged; None: none.
        out: an empty folder.
        suite: whose records; None: JSON Lines.
        tasks, suite_options, seed, limit: as `longcontext.evaluate.build` takes them.
        fields: of JSON Lines, as `records.jsonl_records` takes them.
        by: the measures that decide.
        progress: told of records done.

    Returns:
        Counts of records, of those contaminated, suspicious, and too short to be measured.

    Raises:
        FileNotFoundError, ValueError: a damaged index, bad records, an unknown measure or one that the index cannot be
            asked, no records, an evaluation of other ones.
    """
    corpus = open_corpus(index)
    measures = measures_for(corpus, by)
    records: Iterable[Record]
    if suite is None:
        assert data is not None
        opened = None
        records = (record for path in task_files(data).values() for record in jsonl_records(path, fields, limit))
    else:
        opened = open_suite(suite, Source(data=data, seed=seed, options=suite_options))
        records = suite_records(opened, tasks, limit)
    verdicts: Counter[str | None] = Counter()
    flagged: dict[str, dict[int, bool]] = {}
    with FileWriter(out / "contamination.parquet", RECORDS) as table, FileWriter(out / "parts.parquet", PARTS) as parts:
        for number, record in enumerate(records, start=1):
            row, details = look_up(corpus, measures, by, record)
            table.write([row])
            parts.write(details)
            verdicts[row["verdict"]] += 1
            flagged.setdefault(record.task, {})[record.sample] = row["contaminated"]
            progress(number, None)
    if not verdicts:
        raise ValueError(f"{data or suite}: holds no records")
    if evaluation is not None:
        assert opened is not None, "an evaluation is of a suite"
        with FileWriter(out / "scores.parquet", SCORES) as scores:
            scores.write(rescored(opened, evaluation, flagged))
    return Stats(
        counts={
            "records": verdicts.total(),
            "contaminated": verdicts[DIRTY],
            "suspicious": verdicts["suspicious"],
            "too_short": verdicts[None],
        },
        values={
            "by": list(by),
            "measures": [measure.name for measure in measures],
            "token_dtype": corpus.index.layout.token_dtype,
            "tasks": {task: sum(samples.values()) for task, samples in flagged.items()},
        },
    )


def look_up(corpus: Corpus, measures: Sequence[Measure], by: Sequence[str], record: Record) -> tuple[Row, list[Row]]:
    """A record's row of `contamination.parquet`, and its rows of `parts.parquet`."""
    head = {"suite": record.suite, "task": record.task, "sample": record.sample}
    texts = [text for part in record.parts.values() for text in part]
    row: Row = {**head, "digest": record.digest, "characters": sum(map(len, texts))}
    example: tuple[str, list[int]] | None = None
    details: list[Row] = []
    verdicts: list[str] = []
    for measure in measures:
        windows = found = 0
        for part, own in record.parts.items():
            measured = overlap(corpus, measure, own)
            windows, found = windows + measured.windows, found + measured.found
            if example is None and measure.name in by:
                example = measured.example
            shares = _shares(measure, measured.windows, measured.found)
            details.append({**head, "part": part, "measure": measure.name, "found": measured.found, **shares})
        whole = _shares(measure, windows, found)
        row |= {f"{measure.name}_{column}": value for column, value in whole.items()}
        if measure.name in by and whole["verdict"] is not None:
            verdicts.append(whole["verdict"])
    row["verdict"] = max(verdicts, key=VERDICTS.index, default=None)
    row["contaminated"] = row["verdict"] == DIRTY
    if example is not None:
        text, tokens = example
        holder = corpus.index.document(int(corpus.index.documents(tokens)[0]))
        row |= {"match": text, "id": holder.id, "source": holder.source}
    return row, details


def _shares(measure: Measure, windows: int, found: int) -> Row:
    share = found / windows if windows else None
    return {"windows": windows, "share": share, "verdict": measure.verdict(found, windows)}
