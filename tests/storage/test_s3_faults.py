"""A store on S3 that is damaged, slow, failing, or refuses us: nothing that is read is trusted, no key is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from longloom.storage import remote
from longloom.storage.remote import StoreUnreachable, local_folder
from longloom.storage.runs import RunLog, list_runs
from longloom.storage.store import DamagedArtifact, Store

from .conftest import FILES, Publish
from .s3_bucket import ADDRESS, KEYS, SECRET, Host, content, failing, objects, put, shelf
from .s3_server import S3Server

# ---- damage and a bad connection


def test_an_emptied_manifest_is_damage(host: Host, publish: Publish) -> None:
    ref = publish(host("a"))
    put("artifacts/thing/k1/manifest.json", b"")
    theirs = host("b")
    with pytest.raises(DamagedArtifact, match=r"its manifest\.json cannot be read"):
        theirs.open(ref)
    assert theirs.find("thing", "k1") is None
    assert publish(theirs) == ref
    assert content(host("c").open(ref)) == FILES


@pytest.mark.parametrize("name", ["/data.bin", "manifest.json"])
def test_a_damaged_artifact_is_missing_and_replaced(host: Host, publish: Publish, name: str) -> None:
    ref = publish(host("a"))
    (key,) = [key for key in objects() if key.endswith(name)]
    body = objects()[key]
    put(key, bytes([body[0] ^ 1]) + body[1:])
    theirs = host("b")
    assert [error is None for _, error in theirs.check()] == [False]
    with pytest.raises(DamagedArtifact):
        theirs.open(ref)
    assert theirs.find("thing", "k1") is None
    assert not list(theirs.root.glob("artifacts/*/*"))
    assert publish(theirs) == ref
    assert content(host("c").open(ref)) == FILES
    assert [error for _, error in host("c").check()] == [None]


def test_a_file_that_is_gone_is_damage(host: Host, publish: Publish) -> None:
    ref = publish(host("a"))
    (key,) = [key for key in objects() if key.endswith("data.bin")]
    shelf().Object(f"team/store/{key}").delete()
    with pytest.raises(DamagedArtifact, match="missing"):
        host("b").open(ref)


@pytest.mark.parametrize("change", [lambda body: body[:100], lambda body: b"?" + body[1:]], ids=["cut", "changed"])
def test_a_read_that_went_wrong_is_fetched_again(
    host: Host, publish: Publish, s3: S3Server, change: Callable[[bytes], bytes]
) -> None:
    ref = publish(host("a"))
    spoilt: list[str] = []

    def spoil(method: str, path: str, body: bytes) -> bytes | None:
        if path.endswith("data.bin") and not spoilt:
            spoilt.append(path)
            return change(body)
        return None

    s3.fault = spoil
    assert content(host("b").open(ref)) == FILES
    assert spoilt


def test_a_read_that_goes_wrong_always_is_refused(host: Host, publish: Publish, s3: S3Server) -> None:
    ref = publish(host("a"))
    s3.fault = lambda method, path, body: b"?" + body[1:] if path.endswith("data.bin") else None
    theirs = host("b")
    with pytest.raises(DamagedArtifact, match=r"data\.bin is not what was published"):
        theirs.open(ref)
    assert not list(theirs.root.glob("artifacts/*/*"))


def test_damage_here_is_mended_from_there(host: Host, publish: Publish) -> None:
    ours = host("a")
    ref = publish(ours)
    (ours.artifact_folder("thing", "k1") / "data.bin").write_bytes(b"?")
    assert content(ours.open(ref)) == FILES


def test_failures_that_pass_are_not_noticed(host: Host, publish: Publish, s3: S3Server) -> None:
    s3.before = failing("manifest.json", status=503, times=1)
    ref = publish(host("a"))
    s3.before = failing("data.bin", methods="GET", times=1)
    assert content(host("b").open(ref)) == FILES


@pytest.mark.parametrize("status", [500, 503])
def test_failures_that_stay_are_one_line(host: Host, publish: Publish, s3: S3Server, status: int) -> None:
    ours = host("a")
    s3.before = failing(methods="GET PUT HEAD", status=status)
    with pytest.raises(StoreUnreachable) as told:
        ours.find("thing", "k1")
    assert ADDRESS in str(told.value)
    assert "\n" not in str(told.value)
    s3.heal()
    assert objects() == {}


def test_who_is_refused_is_told_so(host: Host, s3: S3Server) -> None:
    ours = host("a")
    s3.before = failing(methods="GET", status=403)
    with pytest.raises(PermissionError, match=f"^store {ADDRESS}: access is refused"):
        ours.find("thing", "k1")


def test_a_store_that_is_too_slow_is_given_up(host: Host, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", 0.2)
    monkeypatch.setattr(remote, "_filesystems", {})
    ours = host("a")
    go_on = threading.Event()

    def hold(method: str, path: str) -> None:
        go_on.wait(30)

    s3.before = hold
    with pytest.raises(StoreUnreachable):
        ours.find("thing", "k1")
    go_on.set()


def test_no_server_no_bucket_no_keys(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGLOOM_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="store s3://nowhere/x: no such bucket"):
        Store("s3://nowhere/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachable, match=f"store {ADDRESS}: does not answer"):
        Store(ADDRESS)
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PermissionError, match="no keys, expected AWS_ACCESS_KEY_ID"):
        Store(ADDRESS)


@pytest.mark.parametrize(
    "address", [f"s3://AKIA:{SECRET}@shelf/store", "s3://", "s3:///store", f"s3://shelf/store?key={SECRET}", "no://x/y"]
)
def test_an_address_of_no_use_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"^store ") as told:
        Store(address)
    assert SECRET not in str(told.value)


def test_keys_are_in_no_object_and_no_file(host: Host, publish: Publish, s3: S3Server) -> None:
    ours = host("a")
    with RunLog(ours, "make", {"store": ours.address}) as log:
        log.add("thing", publish(ours))
    list_runs(ours)
    s3.before = failing(methods="GET", status=403)
    with pytest.raises(PermissionError) as told:
        ours.find("thing", "k1")
    s3.heal()
    files = [path.read_bytes() for path in ours.root.rglob("*") if path.is_file()]
    texts = [*objects().values(), *files, str(told.value).encode()]
    assert len(texts) > 5
    assert not [text for text in texts for value in KEYS.values() if value != "us-east-1" and value.encode() in text]


def test_each_address_and_endpoint_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LONGLOOM_CACHE", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://one")
    folders = [local_folder(address) for address in ("s3://a/b-c", "s3://a-b/c", "gs://a/b-c")]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://two")
    folders.append(local_folder("s3://a/b-c"))
    assert len(set(folders)) == 4
    assert local_folder("s3://a/b-c/") == folders[-1]
    assert all(folder.parent == tmp_path for folder in folders)
    monkeypatch.delenv("LONGLOOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert local_folder("s3://a/b").parent == tmp_path / "longloom"
