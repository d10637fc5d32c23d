"""What texts owe to the corpus: explained completions and looked-up evaluation records, for report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longloom.tasks.report.read import read_table, reading

#: Texts, spans of a text, its documents, and records of an evaluation set that are shown.
TEXTS, SPANS, DOCUMENTS, RECORDS = 12, 6, 5, 20
#: Characters of a prompt's end that are shown.
PROMPT = 240
#: Measure -> what stands in the corpus of a record that it flags (tasks/sources/measures.py).
FLAGGED = {
    "13-gram": "one window of 13 words stands",
    "8-gram": "70% of the windows of 8 words stand",
    "50-char": "80% of the windows of 50 characters stand",
}

Numbers = dict[str, Any]


def explained_numbers(folder: Path, completions: Path | None) -> Numbers:
    """The first texts of an explanation, with their rarest spans and the documents that hold the most of them.

    Args:
        folder: of the explain stage.
        completions: of the completions that were explained: then each text has the document that its prompt is from.

    Returns:
        texts and completions, how many there are; first and among, of how many completions the origin holds the most,
        or is among the documents found; and `shown`, the first texts: name, text, tokens, found, covered as in
        explain.json; marks (begin, end of every span that was kept); spans (distinct texts of these; text, tokens,
        occurrences, in_documents, and of_origin, whether the origin holds it, null where not all documents are listed);
        documents (id, source, characters), listed (how many there were); of a completion also prompt (its end),
        prompt_tokens, origin (the document's id) and place (the origin's among the documents, from 1; null: it is not
        among them), else null.

    Raises:
        ValueError: a file is unreadable or not what it should be; names it.
    """
    path = folder / "explain.json"
    with reading(path):
        texts = json.loads(path.read_text(encoding="utf-8"))
    asked = {} if completions is None else _prompts(completions)
    try:
        found = [_explained(one, asked.get(one["name"])) for one in texts]
    except (KeyError, TypeError) as error:
        raise ValueError(f"report: {path} is not an explanation: {error!r}") from error
    origins = [one for one in found if one["origin"] is not None]
    return {
        "texts": len(found),
        "completions": len(origins),
        "first": sum(one["place"] == 1 for one in origins),
        "among": sum(one["place"] is not None for one in origins),
        "shown": found[:TEXTS],
    }


def _prompts(completions: Path) -> dict[str, Numbers]:
    """By the names that explain gives to an evaluation's answers."""
    names = ("suite", "task", "policy", "sample")
    columns = {**dict.fromkeys(names), **{name: pa.string() for name in ("source", "prompt")}, "prompt_tokens": None}
    rows = read_table(completions / "samples.parquet", columns).to_pylist()
    return {" ".join(str(row[name]) for name in names): row for row in rows}


def _explained(one: Numbers, asked: Numbers | None) -> Numbers:
    origin = None if asked is None else asked["task"]
    ids = [document["id"] for document in one["documents"]]
    spans: dict[str, Numbers] = {}
    for span in one["spans"]:
        row = {name: span[name] for name in ("text", "tokens", "occurrences", "in_documents")}
        held = origin in [match["id"] for match in span["matches"]]
        listed = len(span["matches"]) == span["in_documents"]
        spans.setdefault(span["text"], {**row, "of_origin": held if held or listed else None})
    return {
        **{name: one[name] for name in ("name", "text", "tokens", "found", "covered")},
        "marks": [{name: span[name] for name in ("begin", "end")} for span in one["spans"]],
        "spans": list(spans.values())[:SPANS],
        "documents": [
            {name: document[name] for name in ("id", "source", "characters")}
            for document in one["documents"][:DOCUMENTS]
        ],
        "listed": len(ids),
        "origin": origin,
        "prompt": None if asked is None else asked["prompt"][-PROMPT:],
        "prompt_tokens": None if asked is None else asked["prompt_tokens"],
        "place": ids.index(origin) + 1 if origin in ids else None,
    }


def contamination_numbers(folder: Path, by: Sequence[str], planted: Path | None) -> Numbers:
    """Verdicts on an evaluation set's records: all of a small set, else the flagged ones.

    Args:
        folder: of the contamination stage.
        by: the measures that decide, as its manifest says.
        planted: of the set, where records were planted in it; None: none was.

    Returns:
        records, contaminated, suspicious, too_short; measures that the index could answer; rule, what makes a record
        flagged, in words (empty where `by` is not known); rows: task, sample, verdict, contaminated, shares (measure ->
        share of its windows, null: none), match and id of a document that holds it, name and planted (null without
        `planted`); more, how many rows are not shown.

    Raises:
        ValueError: a file is unreadable; names it.
    """
    path = folder / "contamination.parquet"
    known = {"task": None, "sample": None, "verdict": None, "contaminated": None}
    with reading(path):
        shares = [name for name in pq.read_schema(path).names if name.endswith("_share")]
    table = read_table(path, {**known, **dict.fromkeys(shares), "match": pa.string(), "id": pa.string()})
    rows = table.to_pylist()
    verdicts = [row["verdict"] for row in rows]
    names = {} if planted is None else _planted(planted)
    used = [name for name in shares if any(row[name] is not None for row in rows)]
    measures = [name.removesuffix("_share") for name in used]
    shown = rows if len(rows) <= RECORDS else [row for row in rows if row["contaminated"]]
    return {
        "records": len(rows),
        "contaminated": sum(row["contaminated"] for row in rows),
        "suspicious": verdicts.count("suspicious"),
        "too_short": verdicts.count(None),
        "measures": measures,
        "rule": " or ".join(FLAGGED[name] for name in by if name in measures),
        "rows": [
            {
                **{name: row[name] for name in (*known, "match", "id")},
                "shares": {name.removesuffix("_share"): row[name] for name in used},
                **names.get(row["sample"], {"name": None, "planted": None}),
            }
            for row in shown[:RECORDS]
        ],
        "more": len(shown) - len(shown[:RECORDS]),
    }


def _planted(folder: Path) -> Mapping[int, Numbers]:
    """Sample -> its name, and whether it was planted."""
    path = folder / "planted.jsonl"
    with reading(path):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    try:
        return {number: {"name": row["id"], "planted": row["planted"]} for number, row in enumerate(rows)}
    except (KeyError, TypeError) as error:
        raise ValueError(f"report: {path} is no set with planted records: {error!r}") from error
