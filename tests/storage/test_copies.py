"""A copy of an artifact takes the place of an earlier copy, and of nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from longloom.storage.copies import copy_artifact, foreign_file
from longloom.storage.manifest import MANIFEST
from longloom.storage.store import Store

from .conftest import FILES, Publish


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_replaces_an_earlier_one_in_the_same_folder(store: Store, publish: Publish, tmp_path: Path) -> None:
    first, second = store.open(publish(store)), store.open(publish(store, "k2", files={"deep": b"1"}, volatile=()))
    (first / ".DS_Store").write_bytes(b"of a file browser")
    target = tmp_path / "copy"
    target.mkdir()
    inode = target.stat().st_ino
    for source, files in ((first, FILES), (second, {"deep": b"1"}), (first, FILES)):
        assert foreign_file(target, store.root) is None
        copy_artifact(source, target)
        assert content(target) == {**files, MANIFEST: (source / MANIFEST).read_bytes()}
    assert target.stat().st_ino == inode


def test_a_copy_that_was_cut_off_is_replaced(
    store: Store, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = store.open(publish(store)), tmp_path / "new" / "copy"
    copyfile = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if source.name == "text.txt":
            raise OSError
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError):  # noqa: PT011
        copy_artifact(source, target)
    monkeypatch.undo()
    assert set(content(target)) == {MANIFEST, "data.bin"}
    assert foreign_file(target, store.root) is None
    copy_artifact(source, target)
    assert content(target) == content(source)


@pytest.mark.parametrize("manifest", ['{"name": "an extension", "manifest_version": 3}', "[]", "", "\x00"])
def test_another_programs_manifest_makes_no_copy(tmp_path: Path, manifest: str) -> None:
    (tmp_path / MANIFEST).write_text(manifest)
    assert foreign_file(tmp_path, tmp_path / "store") == MANIFEST


@pytest.mark.parametrize("added", ["notes.txt", ".hidden", "deep/notes.txt", "link", "deep/link"])
def test_a_file_that_was_put_beside_a_copy_is_found(store: Store, publish: Publish, tmp_path: Path, added: str) -> None:
    target = tmp_path / "copy"
    copy_artifact(store.open(publish(store)), target)
    if added.endswith("link"):
        (target / added).symlink_to(tmp_path)
    else:
        (target / added).write_text("mine")
    assert foreign_file(target, store.root) == added


def test_a_folder_that_a_link_replaced_is_not_emptied(store: Store, publish: Publish, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    copy_artifact(store.open(publish(store)), target)
    (target / "deep").rename(elsewhere)
    (target / "deep").symlink_to(elsewhere)
    assert foreign_file(target, store.root) == "deep"
