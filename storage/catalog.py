"""Questions about a store, answered by DuckDB over its manifests and Parquet results: no shared database file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longloom.storage.duck import connect
from longloom.storage.store import Store

#: Columns of scores.parquet that artifacts of earlier versions lack, or those that left out no records.
_LATER = ("fixed", "full_score", "retrieval", "beyond", "window", "contaminated", "higher_is_better")


class Catalog:
    """A read-only view of a store at one moment.

    Args:
        store: its manifests are read once, here; damaged ones are passed over.
    """

    def __init__(self, store: Store) -> None:
        self._database = connect(memory_limit_gib=1, threads=1, temp_directory=store.root / "spill")
        self._database.execute(
            "CREATE TABLE artifacts (kind VARCHAR, key VARCHAR, digest VARCHAR, seconds DOUBLE, created VARCHAR)"
        )
        self._database.execute("CREATE TABLE parents (digest VARCHAR, name VARCHAR, parent VARCHAR)")
        for manifest in store.manifests():
            row = [manifest.kind, manifest.key, manifest.digest, manifest.seconds, manifest.created]
            self._database.execute("INSERT INTO artifacts VALUES (?, ?, ?, ?, ?)", row)
            for name, parent in manifest.parents.items():
                self._database.execute("INSERT INTO parents VALUES (?, ?, ?)", [manifest.digest, name, parent])

    def artifacts(self) -> list[dict[str, object]]:
        """Every artifact: kind, key, digest, seconds, created; oldest first."""
        return self._rows("SELECT * FROM artifacts ORDER BY created, key", [])

    def lineage(self, digest: str) -> list[dict[str, object]]:
        """An artifact and its ancestors: kind, digest, name (under which it is an input), depth (0 for itself)."""
        # A stage that changes nothing writes the digest of its own input: a cycle, which no shortest way goes round.
        return self._rows(
            """
            WITH RECURSIVE up(digest, name, depth) AS (
                SELECT ?, '', 0
                UNION
                SELECT parents.parent, parents.name, up.depth + 1
                FROM up JOIN parents USING (digest)
                WHERE up.depth < (SELECT count(DISTINCT digest) FROM parents)
            )
            SELECT coalesce(artifacts.kind, 'outside the store') AS kind, up.digest AS digest, up.name AS name,
                   min(up.depth) AS depth
            FROM up LEFT JOIN (SELECT DISTINCT kind, digest FROM artifacts) AS artifacts USING (digest)
            GROUP BY ALL ORDER BY depth, kind, name, digest
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
            rows += self._rows(query, [label, str(folder / "scores.parquet")])
        return [{**dict.fromkeys(_LATER), **row} for row in rows]

    def _rows(self, query: str, values: list[object]) -> list[dict[str, object]]:
        cursor = self._database.execute(query, values)
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
