"""Nothing is visible before it is whole, no damage goes unseen, nothing that is needed is collected."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from longloom.storage import stamps
from longloom.storage.manifest import MANIFEST
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import DamagedArtifact, Store

Publish = Callable[..., ArtifactRef]


def flip(path: Path, position: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


def age(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifies as if the files had been at rest for long, so that their stamps are kept."""
    monkeypatch.setattr(stamps, "SETTLED_NS", -(10**12))
    store.verify(folder)
    monkeypatch.undo()


# ---- publishing and reading


def test_a_published_artifact_is_found_and_opened(store: Store, publish: Publish) -> None:
    assert store.find("thing", "k1") is None
    ref = publish(store)
    assert store.find("thing", "k1") == ref
    folder = store.open(ref)
    assert (folder / "deep/er/text.txt").read_bytes() == b"text"
    assert ref.key == "k1"
    assert ref.counts == {"files": 3}
    assert ref.schema_version == 3
    assert store.manifest(ref).parameters == {"size": 1}
    assert not list((store.root / "work").iterdir())


def test_the_digest_is_of_names_and_contents_without_the_volatile(store: Store, publish: Publish) -> None:
    files = {"a": b"1", "b": b"2", "page.html": b"x"}
    ref = publish(store, "k1", files=files)
    assert publish(store, "k2", files={**files, "page.html": b"y"}).digest == ref.digest
    assert publish(store, "k3", files={"a": b"2", "b": b"1", "page.html": b"x"}).digest != ref.digest
    assert publish(store, "k4", files={"a": b"1", "c": b"2", "page.html": b"x"}).digest != ref.digest
    assert publish(store, "k5", files=files, volatile=()).digest != ref.digest


@pytest.mark.parametrize("name", ["data.bin", "deep/er/text.txt", "page.html"])
@pytest.mark.parametrize("settled", [True, False])
def test_a_flipped_bit_is_found(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch, name: str, settled: bool
) -> None:
    ref = publish(store)
    folder = store.open(ref)
    if settled:
        age(store, folder, monkeypatch)
    flip(folder / name)
    assert store.find("thing", "k1") is None
    with pytest.raises(DamagedArtifact, match=name):
        store.open(ref)


def _truncate(folder: Path) -> None:
    os.truncate(folder / "data.bin", 5)


def _delete(folder: Path) -> None:
    (folder / "data.bin").unlink()


def _make_folder(folder: Path) -> None:
    (folder / "data.bin").unlink()
    (folder / "data.bin").mkdir()


def _replace(folder: Path) -> None:
    """Same size, same mtime, as `cp -p` leaves it."""
    before = (folder / "data.bin").stat()
    (folder / "new").write_bytes(b"x" * before.st_size)
    (folder / "new").replace(folder / "data.bin")
    os.utime(folder / "data.bin", ns=(before.st_atime_ns, before.st_mtime_ns))


def _add(folder: Path) -> None:
    (folder / "data-00001.bin").write_bytes(b"")


@pytest.mark.parametrize("harm", [_truncate, _delete, _make_folder, _replace, _add])
def test_other_damage_is_found(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    ref = publish(store)
    folder = store.open(ref)
    age(store, folder, monkeypatch)
    harm(folder)
    assert store.find("thing", "k1") is None
    with pytest.raises(DamagedArtifact, match="data"):
        store.open(ref)


def test_a_hidden_file_is_no_damage(store: Store, publish: Publish) -> None:
    ref = publish(store)
    (store.open(ref) / ".DS_Store").write_bytes(b"")
    assert store.find("thing", "k1") == ref


def test_any_flipped_bit_of_the_manifest_is_found(store: Store, publish: Publish) -> None:
    ref = publish(store, values={"loss": 0.25}, parents={"corpus": "ab" * 32})
    place = store.open(ref) / MANIFEST
    whole = place.read_bytes()
    for position in range(len(whole)):
        flipped = whole[:position] + bytes([whole[position] ^ (1, 2, 64)[position % 3]]) + whole[position + 1 :]
        place.write_bytes(flipped)
        if store.find("thing", "k1") is not None:  # a line break that became a blank
            assert json.loads(flipped) == json.loads(whole), flipped[position : position + 20]
    place.write_bytes(whole)
    assert store.find("thing", "k1") == ref


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b"null", b'{"kind": 1'])
def test_a_manifest_that_is_none_is_damage(store: Store, publish: Publish, content: bytes) -> None:
    ref = publish(store)
    (store.open(ref) / MANIFEST).write_bytes(content)
    assert store.find("thing", "k1") is None
    with pytest.raises(DamagedArtifact, match=MANIFEST):
        store.open(ref)


def test_an_artifact_moved_to_another_key_is_damage(store: Store, publish: Publish) -> None:
    publish(store)
    folder = store.artifact_folder("thing", "k1")
    shutil.copytree(folder, store.artifact_folder("thing", "k2"))
    assert store.find("thing", "k2") is None
    folder.rename(store.artifact_folder("thing", "k3"))
    assert store.find("thing", "k3") is None


def test_a_damaged_artifact_is_replaced(store: Store, publish: Publish) -> None:
    ref = publish(store)
    flip(store.open(ref) / "data.bin")
    assert publish(store) == ref
    assert store.find("thing", "k1") == ref
    assert not list((store.root / "work").iterdir())


def test_open_wants_the_digest_of_the_ref(store: Store, publish: Publish) -> None:
    ref = publish(store)
    with pytest.raises(DamagedArtifact, match="expected 000000000000"):
        store.open(ref.model_copy(update={"digest": "0" * 64}))


@pytest.mark.parametrize("uri", ["../outside", "artifacts/../../outside", "/etc", "artifacts/thing/link"])
def test_a_ref_cannot_lead_outside(store: Store, publish: Publish, tmp_path: Path, uri: str) -> None:
    ref = publish(store)
    shutil.copytree(store.open(ref), tmp_path / "outside")
    (store.root / "artifacts/thing/link").symlink_to(tmp_path / "outside")
    for read in (store.open, store.manifest):
        with pytest.raises(ValueError, match="outside the store"):
            read(ref.model_copy(update={"uri": uri}))


def test_a_ref_to_nothing(store: Store, publish: Publish) -> None:
    ref = publish(store)
    with pytest.raises(FileNotFoundError, match="artifacts/thing/k2"):
        store.open(ref.model_copy(update={"uri": "artifacts/thing/k2"}))


# ---- stamps


def test_settled_files_are_not_read_again(store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = publish(store)
    age(store, store.open(ref), monkeypatch)

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(stamps, "hash_file", refuse)
    assert store.find("thing", "k1") == ref


def test_a_coarse_clock_hides_no_change(store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose times do not move between two writes: the stamp of fresh files is not believed."""
    exact = stamps.file_stamp
    frozen = exact(store.root)[2]
    monkeypatch.setattr(stamps, "file_stamp", lambda path: [exact(path)[0], frozen, frozen, exact(path)[3]])
    ref = publish(store)
    folder = store.open(ref)
    assert store.find("thing", "k1") == ref
    flip(folder / "data.bin")
    assert store.find("thing", "k1") is None


@pytest.mark.parametrize("content", ["", "[]", "5", '{"data.bin": 5}', '{"data.bin": []}'])
def test_damaged_stamps_are_passed_over(store: Store, publish: Publish, content: str) -> None:
    ref = publish(store)
    place = store.root / "verified" / "thing-k1.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(content)
    assert store.find("thing", "k1") == ref


def test_stamps_that_cannot_be_written_cost_time_only(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = publish(store)

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(stamps, "write_atomic", full)
    monkeypatch.setattr(stamps, "SETTLED_NS", -(10**12))
    assert store.find("thing", "k1") == ref


def test_an_artifact_that_was_built_again_is_not_called_damaged(store: Store, publish: Publish) -> None:
    before = publish(store, files={"a": b"1"}, volatile=())
    after = publish(store, files={"a": b"2"}, volatile=())
    created = store.manifest(after).created
    text = (
        f"^artifacts/thing/k1: was built again, on {created[:10]} at {created[11:19]} UTC, with other content:"
        f" found {after.digest[:12]}, expected {before.digest[:12]}; name a run since then$"
    )
    with pytest.raises(DamagedArtifact, match=text):
        store.open(before)
    (store.open(after) / "a").write_bytes(b"3")
    with pytest.raises(DamagedArtifact, match="a was changed after publishing"):
        store.open(before)


# ---- writing


@pytest.mark.parametrize("resume", [False, True])
def test_begin_gives_an_empty_folder_or_what_was_left(store: Store, resume: bool) -> None:
    work = store.begin("thing", "k1", resume=resume)
    (work / "half").write_text("x")
    (work / MANIFEST).write_text("x")
    (work / f".{MANIFEST}.0123").write_text("x")
    assert [path.name for path in store.begin("thing", "k1", resume=resume).iterdir()] == (["half"] if resume else [])


@pytest.mark.parametrize(
    ("files", "values", "volatile", "expected"),
    [
        ({}, {}, (), "stage make: did not write .*any file"),
        ({"a": b""}, {}, ("b",), "stage make: did not write .*b"),
        ({"a": b""}, {"loss": float("nan")}, (), "stage make: the finding loss is nan"),
        ({"a": b""}, {"loss": [float("inf")]}, (), "stage make: the finding loss is .inf"),
        ({"a": b""}, {"loss": object()}, (), "stage make: the finding loss is <object"),
    ],
)
def test_a_bad_result_is_not_published(
    store: Store,
    publish: Publish,
    files: dict[str, bytes],
    values: dict[str, object],
    volatile: tuple[str, ...],
    expected: str,
) -> None:
    with pytest.raises(ValueError, match=expected):
        publish(store, files=files, values=values, volatile=volatile)
    assert not list(store.root.glob("artifacts/*/*"))


def test_a_link_is_not_published(store: Store, tmp_path: Path) -> None:
    work = store.begin("thing", "k1", resume=False)
    (work / "a").write_text("a")
    (work / "b").symlink_to(tmp_path)
    given = {"stage": "make", "version": 1, "kind": "thing", "key": "k1", "code": "", "seconds": 0.0}
    with pytest.raises(ValueError, match="wrote the link b"):
        store.publish(work, Stats(counts={}), parameters={}, parents={}, runtime={}, environment={}, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_a_root_that_is_a_file_is_refused(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        Store(tmp_path / root)


# ---- gc


def test_gc_keeps_ancestors_and_deletes_the_rest(store: Store, publish: Publish) -> None:
    one = publish(store, "a1", kind="corpus", files={"a": b"1"}, volatile=())
    two = publish(store, "a2", files={"a": b"2"}, volatile=(), parents={"corpus": one.digest, "outside": "hub:x@1"})
    three = publish(store, "a3", files={"a": b"3"}, volatile=(), parents={"thing": two.digest})
    publish(store, "a4", files={"a": b"4"}, volatile=(), parents={"thing": two.digest})
    publish(store, "a5", files={"a": b"5"}, volatile=())
    (store.artifact_folder("thing", "a5") / MANIFEST).write_text("damaged")
    store.begin("thing", "dead", resume=False)
    (store.root / "work" / "trash-0").mkdir()
    assert sorted(store.gc({three.digest})) == [
        *("thing/a4", "thing/a5", "work/thing-dead.once", "work/trash-0"),
    ]
    assert [store.find(ref.kind, ref.key) for ref in (one, two, three)] == [one, two, three]
    assert not list((store.root / "work").iterdir())
    assert store.gc({three.digest}) == []
    assert len(store.gc(set())) == 3


def test_gc_ends_where_a_stage_kept_the_digest_of_its_input(store: Store, publish: Publish) -> None:
    one = publish(store, "a1", kind="corpus", files={"a": b"1"}, volatile=())
    publish(store, "a2", files={"a": b"1"}, volatile=(), parents={"corpus": one.digest})
    assert store.gc({one.digest}) == []


def test_gc_leaves_half_done_work_that_was_in_use_since(store: Store) -> None:
    for key, moment in (("old", 1000), ("new", 3000), ("again", 1000)):
        work = store.begin("thing", key, resume=True)
        (work / "half").write_text("x")
        os.utime(work, (moment, moment))
    store.begin("thing", "again", resume=True)  # killed before it wrote anything
    for name in ("thing-new.once", "trash-0", "fetch-thing-new"):  # what was fetched lies in the storage
        (store.root / "work" / name).mkdir()
    gone = ["work/fetch-thing-new", "work/thing-new.once", "work/thing-old", "work/trash-0"]
    assert sorted(store.gc(set(), begun_since=2000)) == gone
    assert sorted(store.gc(set())) == ["work/thing-again", "work/thing-new"]


def test_gc_leaves_what_is_being_built(store: Store, publish: Publish) -> None:
    """Both the work folder and the damaged artifact that a build is about to replace; and it does not wait."""
    publish(store, "a1")
    done = threading.Event()
    built = threading.Event()

    def build() -> None:
        with store.lock("thing", "a1"):
            (store.begin("thing", "a1", resume=False) / "half").write_text("x")
            built.set()
            done.wait(30)

    builder = threading.Thread(target=build)
    builder.start()
    try:
        assert built.wait(30)
        assert store.gc(set()) == []
        assert (store.work_folder("thing", "a1", resume=False) / "half").exists()
    finally:
        done.set()
        builder.join()
    assert sorted(store.gc(set())) == ["thing/a1", "work/thing-a1.once"]


def test_manifests_come_oldest_first_and_damaged_ones_not(store: Store, publish: Publish) -> None:
    for key in ("c", "a", "b"):
        publish(store, key)
    created = [manifest.created for manifest in store.manifests()]
    assert created == sorted(created)
    (store.artifact_folder("thing", "b") / MANIFEST).write_text(json.dumps({"kind": "thing"}))
    assert {manifest.key for manifest in store.manifests()} == {"a", "c"}
