"""Made-up artifacts, as the stages write those that the replication reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

#: Tokens of the made-up models' window.
WINDOW = 1024


class Artifacts:
    """Folders by role and seed, each with a manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[str, Path] = {}

    def folder(self, role: str) -> Path:
        found = self.root / f"{len(self.folders):03}"
        found.mkdir()
        (found / "manifest.json").write_text(json.dumps({"digest": f"{len(self.folders):064x}"}))
        self.folders[role] = found
        return found

    def table(self, role: str, name: str, rows: Sequence[dict[str, Any]]) -> None:
        folder = self.folders.get(role) or self.folder(role)
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"{name}.parquet")

    def write(self, role: str, name: str, numbers: object) -> None:
        (self.folder(role) / f"{name}.json").write_text(json.dumps(numbers))

    def answers(self, role: str, hits: dict[int, Sequence[int]], *, kv_bytes: float = 0, window: int = WINDOW) -> None:
        """An evaluation: tokens of the prompts -> 1 or 0 for each sample."""
        rows = [{"length": length, "score": float(hit)} for length, own in hits.items() for hit in own]
        self.table(role, "samples", rows)
        self.table(role, "scores", [{"window": window}])
        self.table(role, "cost", [{"kv_bytes_mean": float(kv_bytes)}])

    def positions(self, role: str, perplexities: dict[int, float]) -> None:
        """The last token of a stretch -> perplexity."""
        rows = [{"last": last, "perplexity": value} for last, value in perplexities.items()]
        self.table(role, "positions", rows)


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    root = tmp_path / "artifacts"
    root.mkdir()
    return Artifacts(root)


Measured = Callable[[str], tuple[float, ...]]
