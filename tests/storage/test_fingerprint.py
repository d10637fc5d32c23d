"""Files are told apart by names and contents, wherever they lie, and read again only when they may have changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from longloom.storage import stamps
from longloom.storage.fingerprint import fingerprint, fingerprint_folder
from longloom.storage.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "b").mkdir(parents=True)
    (root / "a.txt").write_text("one")
    (root / "b" / "c.txt").write_text("two")
    return root


def test_the_place_does_not_matter(store: Store, folder: Path, tmp_path: Path) -> None:
    first = fingerprint_folder(store, folder)
    copy = shutil.copytree(folder, tmp_path / "else" / "where")
    assert fingerprint_folder(store, copy) == first
    assert fingerprint_folder(Store(tmp_path / "other"), folder) == first
    assert len(first) == 64


def test_names_contents_and_order_matter(store: Store, folder: Path) -> None:
    first = fingerprint_folder(store, folder)
    (folder / "a.txt").write_text("One")
    changed = fingerprint_folder(store, folder)
    (folder / "a.txt").rename(folder / "z.txt")
    renamed = fingerprint_folder(store, folder)
    (folder / "b").rename(folder / "d")
    moved = fingerprint_folder(store, folder)
    assert len({first, changed, renamed, moved}) == 4
    files = sorted(folder.rglob("*.txt"))
    assert fingerprint(store, files) != fingerprint(store, files[::-1])


def test_hidden_files_do_not_count(store: Store, folder: Path) -> None:
    first = fingerprint_folder(store, folder)
    (folder / ".git").mkdir()
    (folder / ".git" / "index").write_text("x")
    (folder / "b" / ".c.swp").write_text("x")
    assert fingerprint_folder(store, folder) == first


def test_one_file(store: Store, folder: Path) -> None:
    file = folder / "a.txt"
    assert fingerprint_folder(store, file) == fingerprint(store, [file])


def test_nothing_there(store: Store, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fingerprint_folder(store, folder / "nowhere")
    with pytest.raises(FileNotFoundError):
        fingerprint(store, [folder / "nowhere.txt"])


def test_a_change_of_equal_size_is_seen_at_once(store: Store, folder: Path) -> None:
    seen = set()
    for text in ("one", "two", "six"):
        (folder / "a.txt").write_text(text)
        seen.add(fingerprint_folder(store, folder))
    assert len(seen) == 3


def test_settled_files_are_not_read_again(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "SETTLED_NS", -(10**12))  # as if the files had been at rest for long
    first = fingerprint_folder(store, folder)
    read: list[str] = []
    hash_file = stamps.hash_file
    monkeypatch.setattr(stamps, "hash_file", lambda path: read.append(path.name) or hash_file(path))
    assert fingerprint_folder(store, folder) == first
    assert read == []
    before = (folder / "a.txt").stat()
    (folder / "a.txt").write_text("One")
    os.utime(folder / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))  # the mtime alone would hide it
    assert fingerprint_folder(store, folder) != first
    assert read == ["a.txt"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_damaged_stamps_are_passed_over(store: Store, folder: Path, content: str) -> None:
    first = fingerprint_folder(store, folder)
    places = [*(store.root / "verified" / "fingerprints").glob("*.json")]
    for place in places:
        place.write_text(content)
    assert fingerprint_folder(store, folder) == first


def test_a_name_that_is_no_unicode(store: Store, folder: Path) -> None:
    first = fingerprint_folder(store, folder)
    try:
        (folder / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert fingerprint_folder(store, folder) != first


def test_what_lies_behind_links_counts(store: Store, folder: Path, tmp_path: Path) -> None:
    plain = fingerprint_folder(store, folder)
    elsewhere = (folder / "b").rename(tmp_path / "elsewhere")
    (folder / "b").symlink_to(elsewhere)
    assert fingerprint_folder(store, folder) == plain, "whoever opens b/c.txt sees no link"
    (elsewhere / "c.txt").write_text("Two")
    changed = fingerprint_folder(store, folder)
    (elsewhere / "deep").mkdir()
    (elsewhere / "deep" / "d.txt").write_text("three")
    assert len({plain, changed, fingerprint_folder(store, folder)}) == 3
    (folder / ".hidden").symlink_to(tmp_path)
    (folder / "nowhere").symlink_to(tmp_path / "nowhere")
    (elsewhere / "deep" / "d.txt").unlink()
    assert fingerprint_folder(store, folder) == changed


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_that_leads_back_is_refused(store: Store, folder: Path, target: str) -> None:
    (folder / "b" / "back").symlink_to(target)
    with pytest.raises(ValueError, match=r"data/b/back.*: leads back to a folder that it lies in, expected no such"):
        fingerprint_folder(store, folder)


def test_folders_without_links_keep_their_fingerprints(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the files as it has always been: by the parts of their paths."""
    (folder / "b.txt").write_text("three")
    (folder / "b" / "-").mkdir()
    (folder / "b" / "-" / "d").write_text("four")
    found = fingerprint_folder(store, folder)
    assert found == fingerprint(store, sorted(path for path in folder.rglob("*") if path.is_file()), base=folder)
    monkeypatch.chdir(folder)
    assert fingerprint_folder(store, Path()) == found
    monkeypatch.chdir(folder.parent)
    assert fingerprint_folder(store, Path("data")) == found
