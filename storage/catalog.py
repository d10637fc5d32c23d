"""Questions about a store, answered by DuckDB over its manifests and Parquet results: no shared database file."""

from __future__ import annotations

from pathlib import Path

import duckdb

from longloom.storage.manifest import MANIFEST
from longloom.storage.store import Store

_NAMES = "stage VARCHAR, kind VARCHAR, key VARCHAR, digest VARCHAR, seconds DOUBLE, created VARCHAR"
_COLUMNS = (
    "{stage: 'VARCHAR', kind: 'VARCHAR', key: 'VARCHAR', digest: 'VARCHAR', seconds: 'DOUBLE', created: 'VARCHAR',"
    " parents: 'MAP(VARCHAR, VARCHAR)'}"
)


class Catalog:
    """A read-only view of a store at one moment.

    Args:
        store: its manifests are read once, here.
    """

    def __init__(self, store: Store) -> None:
        self._database = duckdb.connect()
        pattern = str(store.root / "artifacts" / "*" / "*" / MANIFEST)
        source = f"read_json(?, columns={_COLUMNS}, maximum_object_size=268435456)"
        if any(store.root.glob(f"artifacts/*/*/{MANIFEST}")):
            self._database.execute(f"CREATE TABLE artifacts AS SELECT * FROM {source}", [pattern])
        else:
            self._database.execute(f"CREATE TABLE artifacts ({_NAMES}, parents MAP(VARCHAR, VARCHAR))")

    def artifacts(self) -> list[dict[str, object]]:
        """Every artifact: kind, key, digest, seconds, created; oldest first."""
        return self._rows("SELECT kind, key, digest, seconds, created FROM artifacts ORDER BY created, key", [])

    def lineage(self, digest: str) -> list[dict[str, object]]:
        """An artifact and its ancestors: kind, digest, depth (0 for itself), the name under which it is an input."""
        return self._rows(
            """
            WITH RECURSIVE up(digest, name, depth) AS (
                SELECT ?, '', 0
                UNION
                SELECT parent.value, parent.key, up.depth + 1
                FROM up JOIN artifacts USING (digest), UNNEST(map_entries(artifacts.parents)) AS entry(parent)
            )
            SELECT DISTINCT coalesce(artifacts.kind, 'outside the store') AS kind, up.digest AS digest, up.name AS name,
                   min(up.depth) AS depth
            FROM up LEFT JOIN artifacts USING (digest)
            GROUP BY ALL ORDER BY depth, kind, name
            """,
            [digest],
        )

    def scores(self, evaluations: dict[str, Path]) -> list[dict[str, object]]:
        """The scores of several evaluation artifacts in one table.

        Args:
            evaluations: label -> the artifact's folder.
        """
        rows: list[dict[str, object]] = []
        for label, folder in evaluations.items():
            query = "SELECT ? AS label, * FROM read_parquet(?) ORDER BY suite, task, metric"
            rows += self._rows(query, [label, str(folder / "scores.parquet")])
        return rows

    def _rows(self, query: str, values: list[object]) -> list[dict[str, object]]:
        cursor = self._database.execute(query, values)
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
