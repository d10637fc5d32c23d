"""Runs, gc and readers of their own on S3."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile

from longloom.storage import remote_store
from longloom.storage.duck import connect
from longloom.storage.manifest import Manifest, content_digest
from longloom.storage.remote import Remote, StoreUnreachable
from longloom.storage.runs import RunLog, delete_runs, list_runs
from longloom.storage.stats import Stats
from longloom.storage.store import DamagedArtifact, Store

from .conftest import FILES, Publish
from .s3_bucket import ADDRESS, Host, content, failing, objects, put
from .s3_server import S3Server

# ---- runs


def test_runs_are_seen_from_other_hosts(host: Host, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = host("a"), host("b")
    with RunLog(ours, "make", {"size": 1}) as log:
        assert [(run.id, run.state) for run in list_runs(theirs)] == [(log.run.id, "running")]
        ref = log.add("thing", publish(ours))
        assert list_runs(theirs)[0].stages == {"thing": ref}
        monkeypatch.setattr(remote_store, "DEAD_SECONDS", -60.0)
        assert [run.state for run in list_runs(theirs)] == ["interrupted"]
        assert [run.state for run in list_runs(ours)] == ["running"], "its lock says so"
    assert [run.state for run in list_runs(theirs)] == ["completed"]
    assert delete_runs(theirs, 0) == [log.run.id]
    assert list_runs(ours) == []


def test_a_run_keeps_its_record_young(host: Host, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_store, "BEAT_SECONDS", 0.01)
    beaten = threading.Event()
    with RunLog(host("a"), "make", {}):

        def count(method: str, path: str) -> None:
            if method == "PUT" and "/runs/" in path:
                beaten.set()

        s3.before = count
        assert beaten.wait(30)


def test_only_records_that_changed_are_fetched(host: Host, s3: S3Server) -> None:
    ours, theirs = host("a"), host("b")
    for _ in range(3):
        with RunLog(ours, "make", {}):
            pass
    assert len(list_runs(theirs)) == 3
    with RunLog(ours, "make", {}) as log:
        pass
    s3.heal()
    assert len(list_runs(theirs)) == 4
    fetched = {line for line in s3.requests if "/runs/" in line and line.startswith("GET")}
    assert fetched == {f"GET /shelf/team/store/runs/{log.run.id}.json"}


def test_names_that_lead_elsewhere_are_passed_over(tmp_path: Path) -> None:
    shelf = Remote("memory://shelf")
    names = ["runs/../../evil.json", "runs//evil.json", "runs/.lock", "runs/x\ny.json", "runs/good.json"]
    for name in names:
        fsspec.filesystem("memory").store[f"/shelf/{name}"] = MemoryFile(None, f"/shelf/{name}", b"{}")
    shelf.mirror("runs", tmp_path / "a" / "runs")
    assert [path.name for path in tmp_path.rglob("*.json") if path.name[0] != "."] == ["good.json"]
    assert not list(tmp_path.rglob("*evil*"))


def test_a_key_that_leads_elsewhere_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGLOOM_CACHE", str(tmp_path))
    store = Store("memory://leads")
    (store.root / "prefect").mkdir()
    (store.root / "prefect" / "prefect.db").write_text("runs")
    manifest = Manifest(
        stage="make", version=1, kind="..", key="prefect", digest=content_digest([]), parameters={}, files=[]
    ).sealed()
    name = "/leads/artifacts/../prefect/manifest.json"
    fsspec.filesystem("memory").store[name] = MemoryFile(None, name, manifest.model_dump_json().encode())
    ((place, error),) = store.check()
    assert place == "../prefect"
    assert str(error) == "../prefect: is no place of an artifact, expected names that begin with a letter or a digit"
    assert (store.root / "prefect" / "prefect.db").read_text() == "runs"


def test_a_manifest_under_another_name_is_damage(host: Host, publish: Publish) -> None:
    ref = publish(host("a"))
    (name,) = [name for name in objects() if name.endswith("manifest.json")]
    body = objects()[name]
    put("artifacts/thing/k2/manifest.json", body)
    theirs = host("b")
    assert theirs.find("thing", "k2") is None
    with pytest.raises(DamagedArtifact, match="holds the manifest of thing/k1"):
        theirs.open(ref.model_copy(update={"uri": "artifacts/thing/k2"}))
    with pytest.raises(ValueError, match="lies outside the store"):
        theirs.open(ref.model_copy(update={"uri": "artifacts/../../thing/k1"}))
    with pytest.raises(FileNotFoundError, match=f"no such artifact in the store {ADDRESS}"):
        theirs.open(ref.model_copy(update={"uri": "artifacts/thing/k3"}))


# ---- gc


def test_gc_keeps_what_is_needed_here_and_there(host: Host, publish: Publish, s3: S3Server) -> None:
    ours = host("a")
    parent = publish(ours, "parent")
    kept = publish(ours, "kept", files={"a": b"1"}, parents={"in": parent.digest}, volatile=())
    publish(ours, "old", files={"a": b"2"}, volatile=())
    s3.before = failing("/artifacts/thing/cut/")
    with pytest.raises(StoreUnreachable):
        publish(ours, "cut", files={"a": b"3"}, volatile=())
    s3.heal()
    assert any("/cut/" in name for name in objects())
    theirs = host("b")
    theirs.open(kept)
    assert theirs.gc({kept.digest}) == ["thing/old"]
    assert {name.split("/")[2] for name in objects()} == {"parent", "kept"}
    assert content(host("c").open(kept)) == {"a": b"1"}
    assert ours.gc(set()) == ["thing/cut", "thing/kept", "thing/old", "thing/parent"]
    assert objects() == {}
    assert not list(ours.root.glob("artifacts/*/*"))


def test_gc_leaves_what_is_being_built_here(host: Host, publish: Publish) -> None:
    ours = host("a")
    publish(ours)
    with ours.lock("thing", "k1"):
        assert ours.gc(set()) == []
    assert len(objects()) == 1 + len(FILES)


# ---- what reads object storage itself


def test_duckdb_and_polars_read_what_is_published(host: Host, tmp_path: Path, s3: S3Server) -> None:
    pq.write_table(pa.table({"n": [1, 2, 3]}), tmp_path / "rows.parquet")
    ours = host("a")
    with ours.lock("table", "k1"):
        work = ours.begin("table", "k1", resume=False)
        shutil.copy(tmp_path / "rows.parquet", work / "rows-00000.parquet")
        ref = ours.publish(
            work,
            Stats(counts={"rows": 3}),
            stage="make",
            version=1,
            kind="table",
            key="k1",
            parameters={},
            parents={},
            runtime={},
            seconds=0.0,
            code="",
            environment={},
        )
    place = ours.files(ref)
    assert place.startswith(f"{ADDRESS}/files/table/k1/")
    database = connect(memory_limit_gib=1, threads=1, temp_directory=tmp_path / "spill")
    database.register_filesystem(fsspec.filesystem("s3"))
    assert database.execute(f"SELECT sum(n) FROM read_parquet('{place}/rows-*.parquet')").fetchone() == (6,)
    options = {"aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"], "aws_allow_http": "true"}
    assert pl.scan_parquet(f"{place}/*.parquet", storage_options=options).select(pl.sum("n")).collect().item() == 6
