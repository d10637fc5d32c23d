"""A store, a short way to publish into it, and an S3 server to keep one in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store

if TYPE_CHECKING:
    from .s3_bucket import Host
    from .s3_server import S3Server

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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    from .s3_server import S3Server  # moto takes seconds to import

    running = S3Server()
    yield running
    running.close()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """With one empty bucket; its clients try twice."""
    from .s3_bucket import KEYS, shelf

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3_server.url, "AWS_MAX_ATTEMPTS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)
    shelf().create()
    s3_server.heal()
    yield s3_server
    s3_server.heal()
    shelf().objects.all().delete()
    shelf().delete()


@pytest.fixture
def host(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    from .s3_bucket import ADDRESS

    def host(name: str) -> Store:
        monkeypatch.setenv("LONGLOOM_CACHE", str(tmp_path / name))
        return Store(ADDRESS)

    return host
