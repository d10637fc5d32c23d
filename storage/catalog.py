"""Questions about a store, answered by DuckDB over its manifests and Parquet results: no shared database file."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from longloom.storage.duck import connect
from longloom.storage.store import Store

_ARTIFACTS = pa.schema(
    [*((name, pa.string()) for name in ("kind", "key", "digest")), ("seconds", pa.float64()), ("created", pa.string())]
)
_PARENTS = pa.schema([(name, pa.string()) for name in ("digest", "name", "parent")])
#: Columns of scores.parquet that artifacts of earlier versions lack, or those that left out no records.
_LATER = ("fixed", "full_score", "retrieval", "beyond", "window", "contaminated", "higher_is_better")


class Catalog:
    """A read-only view of a store.

    Args:
        store: its manifests are read once, when artifacts or lineage are first asked for; damaged ones are passed over.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._database = connect(memory_limit_gib=1, threads=1, temp_directory=store.root / "spill")

    @cached_property
    def _manifests(self) -> duckdb.DuckDBPyConnection:
        """The database with the tables `artifacts` and `parents`."""
        artifacts, parents = [], []
        for manifest in self._store.manifests():
            artifacts.append({name: getattr(manifest, name) for name in _ARTIFACTS.names})
            parents += [
                {"digest": manifest.digest, "name": name, "parent": parent} for name, parent in manifest.parents.items()
            ]
        self._database.register("artifacts", pa.Table.from_pylist(artifacts, _ARTIFACTS))
        self._database.register("parents", pa.Table.from_pylist(parents, _PARENTS))
        return self._database

    def artifacts(self) -> list[dict[str, object]]:
        """Every artifact: kind, key, digest, seconds, created; oldest first."""
        return _rows(self._manifests, "SELECT * FROM artifacts ORDER BY created, key", [])

    def lineage(self, digest: str) -> list[dict[str, object]]:
        """An artifact and its ancestors: kind, digest, name (under which it is an input), depth (0 for itself)."""
        # A level at a time, so the first way to an input is a shortest one, and what was met is not followed again: a
        # store has many ways up, and a stage that changes nothing writes the digest of its own input, a cycle.
        return _rows(
            self._manifests,
            """
            WITH RECURSIVE up(digest, name, depth) USING KEY (digest, name) AS (
                SELECT ?, '', 0
                UNION
                SELECT parents.parent, parents.name, min(up.depth) + 1
                FROM up JOIN parents USING (digest)
                    LEFT JOIN recurring.up AS met ON met.digest = parents.parent AND met.name = parents.name
                WHERE met.digest IS NULL
                GROUP BY ALL
            )
            SELECT coalesce(artifacts.kind, 'outside the store') AS kind, up.digest AS digest, up.name AS name,
                   up.depth AS depth
            FROM up LEFT JOIN (SELECT DISTINCT kind, digest FROM artifacts) AS artifacts USING (digest)
            ORDER BY depth, kind, name, digest
            """,
            [digest],
        )

    def scores(self, evaluations: dict[str, Path]) -> list[dict[str, Any]]:
        """The scores of several evaluation artifacts in one table; columns that an older artifact lacks are None.

        Args:
            evaluations: label -> the artifact's folder.
        """
        rows: list[dict[str, Any]] = []
        for label, folder in evaluations.items():
            query = "SELECT ? AS label, * FROM read_parquet(?) ORDER BY suite, task, metric"
            rows += _rows(self._database, query, [label, str(folder / "scores.parquet")])
        return [{**dict.fromkeys(_LATER), **row} for row in rows]


def _rows(database: duckdb.DuckDBPyConnection, query: str, values: list[object]) -> list[dict[str, object]]:
    cursor = database.execute(query, values)
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
