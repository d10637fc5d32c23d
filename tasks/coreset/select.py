"""Chooses a coreset by a method of the registry, and writes it down with weights and clusters."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.coreset.budgets import resolve
from longloom.tasks.coreset.pool import fingerprint, read_pool
from longloom.tasks.coreset.registry import get_method
from longloom.tasks.progress import Progress, silent

CLUSTERS = pa.schema([("index", pa.int64()), ("id", pa.string()), ("source", pa.string()), ("cluster", pa.int32())])
CORESET = CLUSTERS.append(pa.field("weight", pa.float64()))


def build(
    instructions: Path,
    features: Path | None,
    out: Path,
    *,
    method: str,
    share: float | None,
    count: int | None,
    clusters: int,
    mode: str,
    seed: int,
    progress: Progress = silent,
) -> Stats:
    """Writes `coreset.parquet` (the chosen, by index) and `clusters.parquet` (every example's cluster; -1 for none).

    Args:
        instructions: an instructions artifact.
        features: its features artifact; None for a method that needs none.
        out: the artifact's folder.
        method: a name of the registry.
        share: of the pool, in (0, 1]; or None.
        count: of examples, in place of a share; or None.
        clusters: of k-means, for methods that cluster.
        mode: of tagcos: default, or the released algorithm.
        seed: of everything left to chance.
        progress: the method's own units.

    Raises:
        ValueError: an unknown method or mode, a budget out of range, features missing, not finite, or of another pool.
    """
    options: dict[str, Any] = {"share": share, "clusters": clusters, "mode": mode}
    kind = get_method(method)
    chooser = kind(**{field.name: options[field.name] for field in fields(kind)})
    if seed < 0:
        raise ValueError(f"seed: found {seed}, expected 0 or more")
    pool = read_pool(instructions, ["id", "source"])
    budget, notes = resolve(share, count, pool.num_rows)
    if not kind.needs_features:
        matrix = np.zeros((pool.num_rows, 0), np.float32)
    elif features is None:
        raise ValueError(f"selection method {method!r} needs gradient features, found none")
    else:
        matrix = _read_features(features, pool)
    chosen = chooser.select(matrix, budget, np.random.default_rng(seed), progress=progress)
    assert len(np.unique(chosen.indices)) == len(chosen.indices) == len(chosen.weights), "a method picks no row twice"

    labels = chosen.clusters if chosen.clusters is not None else np.full(pool.num_rows, -1, np.int32)
    everything = pa.table(
        [pa.array(np.arange(pool.num_rows)), pool.column("id"), pool.column("source"), pa.array(labels)],
        schema=CLUSTERS,
    )
    order = np.argsort(chosen.indices, kind="stable")
    coreset = everything.take(chosen.indices[order]).append_column("weight", pa.array(chosen.weights[order]))
    for name, table, schema in (("clusters", everything, CLUSTERS), ("coreset", coreset, CORESET)):
        with FileWriter(out / f"{name}.parquet", schema) as writer:
            writer.write_table(table)
    return Stats(
        counts={"pool": pool.num_rows, "examples": coreset.num_rows} | chosen.counts,
        values={"method": method, "notes": notes + chosen.notes, "sources": _sources(everything, coreset)},
    )


def _read_features(features: Path, pool: pa.Table) -> np.ndarray:
    """The matrix, float32 [n, d], if it belongs to this pool and is finite."""
    record = json.loads((features / "features.json").read_text(encoding="utf-8"))
    if record["pool"] != fingerprint(pool.column("id").to_pylist()):
        raise ValueError(
            f"features: made from other instructions ({record['examples']} examples), expected these {pool.num_rows}"
        )
    matrix: np.ndarray = np.load(features / "features.npy", mmap_mode="r")
    for start in range(0, len(matrix), 4096):
        finite = np.isfinite(matrix[start : start + 4096]).all(axis=1)
        if not finite.all():
            raise ValueError(f"features: row {start + int(np.argmin(finite))} is not finite, expected numbers")
    return matrix


def _sources(everything: pa.Table, coreset: pa.Table) -> dict[str, dict[str, int]]:
    """Source -> examples in the pool and in the coreset, sorted by name."""
    pool, picked = (Counter(table.column("source").to_pylist()) for table in (everything, coreset))
    return {source: {"pool": pool[source], "picked": picked[source]} for source in sorted(pool)}
