"""The numbers of the data: corpus, index, instruction pool and the coresets chosen from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longloom.tasks.progress import Progress, silent
from longloom.tasks.report.read import files_below, read_json, read_table, reading

#: Sources shown one by one; the smaller ones are added up.
TOP_SOURCES = 12

#: The store's own file in an artifact's folder: it holds times, so its size is no property of the index.
MANIFEST = "manifest.json"

Numbers = dict[str, Any]


def corpus_numbers(folder: Path, progress: Progress = silent) -> Numbers:
    """Documents, characters and UTF-8 bytes of a corpus, in all and by source (one pass, a batch at a time)."""
    totals: dict[str, list[int]] = {}
    shards = files_below(folder, "documents-*.parquet")
    for done, path in enumerate(shards):
        progress(done, len(shards))
        with reading(path), pq.ParquetFile(path) as shard:
            for batch in shard.iter_batches(batch_size=2048, columns=["source", "text"]):
                text = batch.column("text")
                sizes = pa.table(
                    {
                        "source": batch.column("source"),
                        "characters": pc.utf8_length(text),
                        "bytes": pc.cast(pc.binary_length(text), pa.int64()),
                    }
                )
                grouped = sizes.group_by("source").aggregate(
                    [([], "count_all"), ("characters", "sum"), ("bytes", "sum")]
                )
                for row in grouped.to_pylist():
                    total = totals.setdefault(row["source"] or "", [0, 0, 0])
                    total[0] += row["count_all"]
                    total[1] += row["characters_sum"] or 0
                    total[2] += row["bytes_sum"] or 0
    progress(len(shards), len(shards))
    rows: list[Numbers] = [
        {"source": source, "documents": documents, "characters": characters, "bytes": size}
        for source, (documents, characters, size) in totals.items()
    ]
    rows.sort(key=lambda row: (-row["bytes"], row["source"]))
    rest = rows[TOP_SOURCES:]
    sums = ("documents", "characters", "bytes")
    return {
        **{name: sum(row[name] for row in rows) for name in sums},
        "sources": rows[:TOP_SOURCES],
        "other": {"sources": len(rest), **{name: sum(row[name] for row in rest) for name in sums}} if rest else None,
    }


def index_numbers(folder: Path) -> Numbers:
    """What index.json says of the index, and the bytes it takes on disk."""
    described = read_json(folder / "index.json")
    return {
        **{name: described.get(name) for name in ("documents", "tokens", "vocab_size", "token_dtype")},
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST),
    }


def pool_sources(folder: Path) -> Counter[str]:
    """Examples by source in an instruction pool."""
    return Counter(read_table(folder / "instructions.parquet", {"source": pa.string()})["source"].to_pylist())


def coreset_numbers(pool: Path | None, coresets: Mapping[str, Path]) -> Numbers:
    """The pool and what each method chose from it, by source and by cluster.

    Args:
        pool: the instructions' folder; without it, the pool is what the first clusters.parquet lists.
        coresets: method -> folder of its coreset.
    """
    counts = pool_sources(pool) if pool else None
    methods: dict[str, Numbers] = {}
    chosen: dict[str, Counter[str]] = {}
    for method, folder in coresets.items():
        table = read_table(folder / "coreset.parquet", {"source": pa.string(), "cluster": pa.int32()})
        chosen[method] = Counter(table["source"].to_pylist())
        methods[method] = {"examples": table.num_rows, "clusters": None}
        if (folder / "clusters.parquet").exists():
            everything = read_table(folder / "clusters.parquet", {"source": pa.string(), "cluster": pa.int32()})
            counts = Counter(everything["source"].to_pylist()) if counts is None else counts
            methods[method]["clusters"] = _clusters(everything["cluster"].to_pylist(), table["cluster"].to_pylist())
    result: Numbers = {"methods": methods, "pool": None if counts is None else sum(counts.values())}
    return {**result, **_by_source(counts, chosen)}


def _clusters(pool: list[int], chosen: list[int]) -> list[Numbers] | None:
    """Sizes of the clusters and how many were chosen of each, largest first; None for a method without clusters."""
    sizes, taken = Counter(pool), Counter(chosen)
    rows = [{"cluster": name, "examples": size, "chosen": taken[name]} for name, size in sizes.items() if name >= 0]
    return sorted(rows, key=lambda row: (-row["examples"], row["cluster"])) or None


def _by_source(pool: Counter[str] | None, chosen: Mapping[str, Counter[str]]) -> Numbers:
    """One row a source: examples in the pool and chosen by each method, the largest sources first."""
    every: Counter[str] = pool or sum(chosen.values(), Counter())
    names = sorted(every, key=lambda name: (-every[name], name or ""))

    def row(group: list[str]) -> Numbers:
        return {
            "pool": sum(pool[name] for name in group) if pool is not None else None,
            "chosen": {method: sum(counts[name] for name in group) for method, counts in chosen.items()},
        }

    rest = names[TOP_SOURCES:]
    return {
        "sources": [{"source": name or "", **row([name])} for name in names[:TOP_SOURCES]],
        "other": {"sources": len(rest), **row(rest)} if rest else None,
    }
