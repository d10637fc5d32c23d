"""A store and a short way to publish into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store

Publish = Callable[..., ArtifactRef]
FILES = {"data.bin": b"0123456789" * 100, "deep/er/text.txt": b"text", "page.html": b"<p>12:00</p>"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def publish() -> Publish:
    def publish(
        store: Store,
        key: str = "k1",
        *,
        files: dict[str, bytes] = FILES,
        kind: str = "thing",
        parents: dict[str, str] | None = None,
        values: dict[str, object] | None = None,
        volatile: tuple[str, ...] = ("page.html",),
    ) -> ArtifactRef:
        with store.lock(kind, key):
            work = store.begin(kind, key, resume=False)
            for name, content in files.items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_bytes(content)
            return store.publish(
                work,
                Stats(counts={"files": len(files)}, values=values or {}, volatile=volatile),
                stage="make",
                version=3,
                kind=kind,
                key=key,
                parameters={"size": 1},
                parents=parents or {},
                runtime={},
                seconds=0.5,
                code="",
                environment={},
            )

    return publish
