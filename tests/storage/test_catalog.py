"""Lineage and scores, also in a store with damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.storage.catalog import Catalog
from longloom.storage.manifest import MANIFEST
from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store

Publish = Callable[..., ArtifactRef]


def test_an_empty_store(store: Store) -> None:
    assert Catalog(store).artifacts() == []
    assert [row["kind"] for row in Catalog(store).lineage("0" * 64)] == ["outside the store"]


def test_lineage(store: Store, publish: Publish) -> None:
    def make(kind: str, **parents: ArtifactRef | str) -> ArtifactRef:
        digests = {name: ref if isinstance(ref, str) else ref.digest for name, ref in parents.items()}
        return publish(store, kind, kind=kind, files={kind: b""}, volatile=(), parents=digests)

    corpus = make("corpus", sources="files:1")
    model = make("model", corpus=corpus)
    coreset = make("coreset", corpus=corpus, model=model)
    make("other", corpus=corpus)
    tuned = make("tuned", model=model, coreset=coreset)
    catalog = Catalog(store)
    assert {row["kind"] for row in catalog.artifacts()} == {"corpus", "model", "coreset", "other", "tuned"}
    found = catalog.lineage(tuned.digest)
    assert found[0] == {"kind": "tuned", "digest": tuned.digest, "name": "", "depth": 0}
    # Each once for every name under which it is an input, by its shortest way.
    assert [(row["kind"], row["name"], row["depth"]) for row in found[1:]] == [
        ("coreset", "coreset", 1),
        ("model", "model", 1),
        ("corpus", "corpus", 2),
        ("outside the store", "sources", 3),
    ]
    assert len(catalog.lineage(corpus.digest)) == 2


def test_lineage_ends_where_a_stage_kept_the_digest_of_its_input(store: Store, publish: Publish) -> None:
    one = publish(store, "a1", kind="corpus", files={"a": b"1"}, volatile=())
    publish(store, "a2", kind="filtered", files={"a": b"1"}, volatile=(), parents={"corpus": one.digest})
    found = Catalog(store).lineage(one.digest)
    assert [(row["kind"], row["name"], row["depth"]) for row in found] == [
        ("corpus", "", 0),
        ("filtered", "", 0),
        ("corpus", "corpus", 1),
        ("filtered", "corpus", 1),
    ]


def test_many_ways_up_are_no_more_work_than_one(store: Store, publish: Publish) -> None:
    """12 generations of two, each made of both before: 2 ** 11 ways to either of the first ones."""
    pair: list[str] = []
    for depth in range(12):
        parents = {f"{name}{depth}": digest for name, digest in zip("ab", pair, strict=False)}
        made = [
            publish(store, f"{depth}{name}", kind="thing", files={name: b"%d" % depth}, volatile=(), parents=parents)
            for name in "ab"
        ]
        pair = [ref.digest for ref in made]
    found = Catalog(store).lineage(pair[0])
    assert len(found) == 1 + 2 * 11
    assert max(row["depth"] for row in found) == 11


def test_scores_ask_for_no_manifest(store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, "a1")
    read: list[int] = []
    monkeypatch.setattr(Store, "manifests", lambda _: read.append(1) or iter([]))
    catalog = Catalog(store)
    assert catalog.scores({}) == []
    assert read == []
    assert catalog.artifacts() == catalog.artifacts() == []
    catalog.lineage("0" * 64)
    assert read == [1]


def test_a_damaged_manifest_does_not_stop_the_rest(store: Store, publish: Publish) -> None:
    publish(store, "a1")
    publish(store, "a2")
    (store.artifact_folder("thing", "a1") / MANIFEST).write_text('{"stage": ')
    assert [row["key"] for row in Catalog(store).artifacts()] == ["a2"]


def test_scores_of_several_evaluations(store: Store, tmp_path: Path) -> None:
    folders = {}
    for label, score in (("full", 0.5), ("streaming", 0.25)):
        folders[label] = tmp_path / label
        folders[label].mkdir()
        rows = [
            {"suite": "longbench", "task": task, "metric": "qa_f1", "score": score + add, "failed": 0}
            for task, add in (("qasper", 0.1), ("hotpotqa", 0.0))
        ]
        pq.write_table(pa.Table.from_pylist(rows), folders[label] / "scores.parquet")
    found = Catalog(store).scores(folders)
    assert [(row["label"], row["task"], row["score"]) for row in found] == [
        ("full", "hotpotqa", 0.5),
        ("full", "qasper", 0.6),
        ("streaming", "hotpotqa", 0.25),
        ("streaming", "qasper", 0.35),
    ]
    assert not (store.root / "spill").exists()
