"""Co-occurrence where it does not fit into memory: occurrences as Parquet, joined by DuckDB under a memory bound."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from longloom.storage.duck import connect
from longloom.storage.parquet import FileWriter
from longloom.tasks.ngrams.cooccurrence import Pairs
from longloom.tasks.ngrams.grams import Grams
from longloom.tasks.ngrams.postings import Shards

TOGETHER = """
    SELECT p.pair, count(*) AS documents
    FROM pairs p JOIN points x ON x.gram = p.rare JOIN points y ON y.gram = p.other AND y.document = x.document
    GROUP BY p.pair
"""

#: Of each occurrence of the rarer n-gram, the other one's first from where it is near enough.
NEAR = """
    WITH windows AS (
        SELECT p.pair, p.other, x.begin, greatest(x.place - p.other_length - p.within, x.begin) AS low,
            least(x.place + p.rare_length + p.within, x.behind - 1) AS high
        FROM pairs p JOIN points x ON x.gram = p.rare
    ), hits AS (
        SELECT DISTINCT w.pair, w.begin FROM windows w ASOF JOIN points y ON y.gram = w.other AND y.place >= w.low
        WHERE y.place <= w.high
    )
    SELECT pair, count(*) AS documents FROM hits GROUP BY pair
"""


def joined(
    shards: Shards,
    grams: Grams,
    pairs: Pairs,
    starts: np.ndarray,
    stops: np.ndarray,
    *,
    within: int | None,
    memory_gib: float,
) -> np.ndarray:
    """Counts the documents of each distinct pair, int64 [m]; the arguments are those of cooccurrence.py."""
    with tempfile.TemporaryDirectory(prefix="longloom-") as scratch:
        folder = Path(scratch)
        columns = {"pair": np.arange(len(pairs.rare)), "rare": pairs.rare, "other": pairs.other}
        if within is None:
            points: Iterator[dict[str, np.ndarray]] = (
                {"gram": gram, "document": found} for gram, found in shards.postings(starts, stops)
            )
        else:
            distance = np.full(len(pairs.rare), min(within, shards.places))
            columns |= {"rare_length": grams.lengths[pairs.rare], "other_length": grams.lengths[pairs.other]}
            columns |= {"within": distance}
            points = _places(shards, starts, stops)
        _write(folder / "pairs.parquet", iter([columns]))
        _write(folder / "points.parquet", points)
        database = connect(
            memory_limit_gib=memory_gib,
            threads=len(os.sched_getaffinity(0)),
            temp_directory=folder / "spilled",
        )
        with database:
            for name in ("pairs", "points"):
                database.read_parquet(f"{folder / name}.parquet").create_view(name)
            found = database.execute(TOGETHER if within is None else NEAR).fetchnumpy()
    counts = np.zeros(len(pairs.rare), dtype=np.int64)
    counts[np.asarray(found["pair"])] = np.asarray(found["documents"])
    return counts


def _places(shards: Shards, starts: np.ndarray, stops: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for numbers, _, places, _ in shards.occurrences(starts, stops):
        _, begin, behind = shards.extents(places)
        yield {"gram": numbers, "place": places, "begin": begin, "behind": behind}


def _write(path: Path, parts: Iterator[dict[str, np.ndarray]]) -> None:
    writer: FileWriter | None = None
    for part in parts:
        table = pa.table(part)
        writer = writer or FileWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None, path
    writer.close()
