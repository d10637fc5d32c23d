"""A file of text pairs, and the table of their co-occurrence in a corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longloom.storage.parquet import FileWriter
from longloom.tasks.ngrams.query import Index

SUFFIXES = (".jsonl", ".tsv")


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Reads pairs of texts, one a line: JSON Lines of [first, second], or two columns with a tab between them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, not in UTF-8, without pairs; a line that is no pair of texts.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: ends with {path.suffix!r}, expected {' or '.join(SUFFIXES)}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error})") from None
    read = _json_pair if path.suffix == ".jsonl" else _tab_pair
    pairs = [read(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise ValueError(f"{path}: holds no pairs")
    return pairs


def _json_pair(place: str, line: str) -> tuple[str, str]:
    try:
        pair = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: is not JSON ({error})") from None
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise ValueError(f"{place}: found {line.strip()[:80]}, expected a list of two texts")
    return pair[0], pair[1]


def _tab_pair(place: str, line: str) -> tuple[str, str]:
    columns = line.removesuffix("\r").split("\t")
    if len(columns) != 2:
        raise ValueError(f"{place}: has {len(columns)} columns, expected two texts with a tab between them")
    return columns[0], columns[1]


def cooccurrence_table(
    index: Index,
    pairs: list[tuple[str, str]],
    *,
    within: int | None,
    sample: int | None,
    seed: int,
    memory_gib: float,
) -> pa.Table:
    """Counts of both texts of each pair, and of the documents that hold both.

    Args:
        index: an open index.
        pairs: texts; each is encoded by the index's tokenizer.
        within: see `Index.cooccurrences`.
        sample: estimate from so many documents; None: exact.
        seed: of the sample.
        memory_gib: see `Index.cooccurrences`.

    Returns:
        A row a pair, in order: first, second, occurrences (first_count, second_count) and documents (first_documents,
        second_documents) of each text, and the documents that hold `both`; from a sample both_estimate, both_low and
        both_high in its place.

    Raises:
        ValueError: a text that cannot be looked up, with its pair's number.
    """
    encoded: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs, 1):
        for text in pair:
            if text not in encoded:
                try:
                    encoded[text] = index.encode(text)
                except ValueError as error:
                    raise ValueError(f"pair {number}: {error}") from None
    numbers = {text: number for number, text in enumerate(encoded)}
    queries = list(encoded.values())
    counts, documents = index.counts(queries), index.document_counts(queries)
    columns: dict[str, Any] = {"first": [first for first, _ in pairs], "second": [second for _, second in pairs]}
    for place, name in enumerate(("first", "second")):
        rows = np.array([numbers[pair[place]] for pair in pairs], dtype=np.int64)
        columns |= {f"{name}_count": counts[rows], f"{name}_documents": documents[rows]}
    grams = [(encoded[first], encoded[second]) for first, second in pairs]
    if sample is None:
        columns["both"] = index.cooccurrences(grams, within=within, memory_gib=memory_gib)
    else:
        found = index.estimate_cooccurrences(grams, sample=sample, seed=seed, within=within, memory_gib=memory_gib)
        columns |= {"both_estimate": found.documents, "both_low": found.low, "both_high": found.high}
    return pa.table(columns)


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a table as Parquet; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with FileWriter(unfinished, table.schema) as writer:
        writer.write_table(table)
    unfinished.replace(path)
