"""Chooses a coreset by a method of the registry, and writes it down with weights, clusters and a picture."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.coreset.budgets import resolve
from longloom.tasks.coreset.picture import MAP, picture
from longloom.tasks.coreset.pool import answer_lengths, fingerprint, read_pool
from longloom.tasks.coreset.registry import Pool, get_method
from longloom.tasks.coreset.rows import Features, blocks
from longloom.tasks.coreset.store import open_features, read_record
from longloom.tasks.coreset.targets import read_targets
from longloom.tasks.progress import Progress, silent

CLUSTERS = pa.schema([("index", pa.int64()), ("id", pa.string()), ("source", pa.string()), ("cluster", pa.int32())])
CORESET = CLUSTERS.append(pa.field("weight", pa.float64()))
#: Of a weight, whose mean is 1, behind the point: a processor's way to add differs from another's in the last digits.
DIGITS = 9


def build(
    instructions: Path,
    features: Path | None,
    out: Path,
    *,
    targets: Path | None,
    target_features: Path | None,
    method: str,
    share: float | None,
    count: int | None,
    clusters: int,
    mode: str,
    side: str,
    seed: int,
    threads: int,
    workers: str,
    progress: Progress = silent,
) -> Stats:
    """Writes `coreset.parquet` (the chosen, by index), `clusters.parquet` (every example's cluster; -1 for none),
    `coreset.json` (counts and notes), and of a method that looks at features `map.parquet` (see `picture`).

    Args:
        instructions: an instructions artifact.
        features: its features artifact; None for a method that needs none.
        out: the artifact's folder.
        targets: an instructions artifact of validation examples, for a method that needs them.
        target_features: its features artifact.
        method: a name of the registry.
        share: of the pool, in (0, 1]; or None.
        count: of examples, in place of a share; or None.
        clusters: of k-means, for methods that cluster.
        mode: of tagcos: default, or the released algorithm.
        side: of perplexity: middle, highest or lowest.
        seed: of everything left to chance.
        threads: that a method may use; no other bytes.
        workers: of methods that share their work out, see `tasks.workers.Workers`; no other bytes.
        progress: the method's own units.

    Raises:
        ValueError: an unknown method or option, a budget out of range, features or targets missing, not finite, or of
            another pool, model or projection.
    """
    options: dict[str, Any] = {
        "share": share,
        "clusters": clusters,
        "mode": mode,
        "side": side,
        "threads": threads,
        "workers": workers,
    }
    kind = get_method(method)
    chooser = kind(**{field.name: options[field.name] for field in fields(kind)})
    if seed < 0:
        raise ValueError(f"seed: found {seed}, expected 0 or more")
    pool = read_pool(instructions, ["id", "source"])
    budget, notes = resolve(share, count, pool.num_rows)
    seen = _seen(method, kind.needs, pool, instructions, features, targets, target_features)
    chosen = chooser.select(seen, budget, np.random.default_rng(seed), progress=progress)
    assert len(np.unique(chosen.indices)) == len(chosen.indices) == len(chosen.weights), "a method picks no row twice"

    labels = chosen.clusters if chosen.clusters is not None else np.full(pool.num_rows, -1, np.int32)
    everything = pa.table(
        [pa.array(np.arange(pool.num_rows)), pool.column("id"), pool.column("source"), pa.array(labels)],
        schema=CLUSTERS,
    )
    order = np.argsort(chosen.indices, kind="stable")
    weights = np.round(chosen.weights[order], DIGITS)
    coreset = everything.take(chosen.indices[order]).append_column("weight", pa.array(weights))
    for name, table, schema in (("clusters", everything, CLUSTERS), ("coreset", coreset, CORESET)):
        _write(out / f"{name}.parquet", table, schema)
    told: dict[str, Any] = {"method": method, "counts": chosen.counts, "notes": notes + chosen.notes, "map": None}
    if seen.features is not None:
        drawn = picture(seen.features, labels, chosen.indices, seed=seed)
        _write(out / "map.parquet", drawn.dots, MAP)
        told["map"] = {"examples": drawn.examples, "drawn": drawn.drawn, "variance": round(drawn.variance, 6)}
    (out / "coreset.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return Stats(
        counts={"pool": pool.num_rows, "examples": coreset.num_rows} | chosen.counts,
        values={"method": method, "notes": told["notes"], "sources": _sources(everything, coreset)},
    )


def _seen(
    method: str,
    needs: frozenset[str],
    pool: pa.Table,
    instructions: Path,
    features: Path | None,
    targets: Path | None,
    target_features: Path | None,
) -> Pool:
    """What the method sees, and no more."""
    seen = Pool(pool.num_rows)
    if "lengths" in needs:
        seen = replace(seen, lengths=answer_lengths(instructions))
    if not needs & {"features", "losses", "targets"}:
        return seen
    if features is None:
        raise ValueError(f"selection method {method!r} needs gradient features, found none")
    record = read_record(features)
    if record["pool"] != fingerprint(pool.column("id").to_pylist()):
        raise ValueError(
            f"features: made from other instructions ({record['examples']} examples), expected these {pool.num_rows}"
        )
    if "targets" in needs:
        if targets is None or target_features is None:
            raise ValueError(f"selection method {method!r} needs validation examples (targets), found none")
        seen = replace(seen, targets=read_targets(targets, target_features, features))
    if "features" in needs:
        seen = replace(seen, features=_read_features(features))
    if "losses" in needs:
        seen = replace(seen, losses=open_features(features).losses()[:, 0])
    return seen


def _write(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    with FileWriter(path, schema) as writer:
        writer.write_table(table)


def _read_features(features: Path) -> Features:
    """The features, if they are finite."""
    opened = open_features(features)
    for start, rows in blocks(opened):
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise ValueError(f"features: row {start + int(np.argmin(finite))} is not finite, expected numbers")
    return opened


def _sources(everything: pa.Table, coreset: pa.Table) -> dict[str, dict[str, int]]:
    """Source -> examples in the pool and in the coreset, sorted by name."""
    pool, picked = (Counter(table.column("source").to_pylist()) for table in (everything, coreset))
    return {source: {"pool": pool[source], "picked": picked[source]} for source in sorted(pool)}
