"""Deletions: what remains, shared files, unknown ids."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams import delete as module
from longloom.tasks.ngrams.build import build as build_index
from longloom.tasks.ngrams.delete import build
from longloom.tasks.ngrams.layout import DELETED_FILE, read_deleted, read_layout
from longloom.tasks.ngrams.query import open_index

TEXTS = {"a": "one two", "b": "two", "ä c": "two three two", "d": "", "e": "one"}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    corpus, out = tmp_path / "corpus", tmp_path / "index"
    corpus.mkdir()
    out.mkdir()
    with ShardWriter(corpus, "documents", SCHEMA, rows_per_shard=9) as writer:
        writer.write([{"id": key, "source": "s", "text": text} for key, text in TEXTS.items()])
    build_index(corpus, None, out, threads=1, memory_gib=1, shard_tokens=15)
    assert len(read_layout(out).shards) == 3
    return out


def delete(index: Path, out: Path, *ids: str) -> dict[str, int]:
    out.mkdir()
    return build(index, out, ids=ids).counts


def test_what_remains(index: Path, tmp_path: Path) -> None:
    counts = delete(index, tmp_path / "one", "ä c", "e")
    assert counts == {"documents": 3, "tokens": len("one twotwo"), "shards": 3, "deleted": 2}
    layout = read_layout(tmp_path / "one")
    assert read_deleted(tmp_path / "one", layout).tolist() == [2, 4]
    assert [open_index(tmp_path / "one").count(text) for text in ("two", "one", "three")] == [2, 1, 0]
    assert [open_index(index).count(text) for text in ("two", "one", "three")] == [4, 2, 1]
    # and again, with one that is deleted already
    assert delete(tmp_path / "one", tmp_path / "two", "a", "e")["deleted"] == 3
    assert read_deleted(tmp_path / "two", layout).tolist() == [0, 2, 4]
    assert read_deleted(tmp_path / "one", layout).tolist() == [2, 4]
    assert open_index(tmp_path / "two").count("two") == 1
    assert delete(index, tmp_path / "all", *TEXTS)["documents"] == 0
    assert open_index(tmp_path / "all").count("two") == 0


def test_files_are_shared_where_they_can_be(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (index / "manifest.json").write_text("{}")
    delete(index, tmp_path / "linked", "b")
    assert (tmp_path / "linked" / "table.0").samefile(index / "table.0")

    def refuses(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuses)
    delete(index, tmp_path / "copied", "b")
    assert not (tmp_path / "copied" / "table.0").samefile(index / "table.0")
    for name in ("linked", "copied"):
        found = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert found.pop(DELETED_FILE)
        assert found == {p.name: p.read_bytes() for p in index.iterdir() if p.name != "manifest.json"}


def test_unknown_ids_are_named(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"index: 1 of 2 ids are of no document there: 'x'$"):
        delete(index, tmp_path / "one", "a", "x")
    assert list((tmp_path / "one").iterdir()) == []
    monkeypatch.setattr(module, "NAMED", 2)
    with pytest.raises(ValueError, match=r"3 of 3 ids are of no document there: 'x', 'y' and 1 more$"):
        delete(index, tmp_path / "two", "z", "y", "x")
    with pytest.raises(ValueError, match="there are no ids to delete"):
        delete(index, tmp_path / "three")


@pytest.mark.parametrize(
    ("deleted", "fault"),
    [
        (np.array([1.0]), "holds float64 of shape"),
        (np.array([[1]]), "of shape .1, 1."),
        (np.array([2, 1]), "ordinals in order, each once, below 5"),
        (np.array([1, 1]), "ordinals in order, each once, below 5"),
        (np.array([5]), "ordinals in order, each once, below 5"),
        (np.array([-1]), "ordinals in order, each once, below 5"),
    ],
)
def test_damaged_deletions_are_refused(index: Path, deleted: np.ndarray, fault: str) -> None:
    np.save(index / DELETED_FILE, deleted)
    with pytest.raises(ValueError, match=fault):
        read_deleted(index, read_layout(index))
    (index / DELETED_FILE).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"deleted\.npy: cannot be read"):
        read_deleted(index, read_layout(index))
