"""Damaged manifests, run records, stamps and references: an artifact is whole or it is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from longloom.storage.catalog import Catalog
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog, delete_runs, get_run, list_runs
from longloom.storage.stats import Stats
from longloom.storage.store import DamagedArtifact, Store

from .damage import ODD_VALUES, changed, damaged, damaged_json, examples, survives, written

KEY = "0123456789abcdef0123456789abcdef"
FILES = {"data.bin": b"0123456789", "deep/text.txt": b"text"}


def published(root: Path) -> tuple[Store, ArtifactRef]:
    store = Store(root)
    with store.lock("thing", KEY):
        work = store.begin("thing", KEY, resume=False)
        for name, content in FILES.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(content)
        ref = store.publish(
            *(work, Stats(counts={"files": 2}, values={"found": [1.5, None, "é"]})),
            stage="make",
            version=3,
            kind="thing",
            key=KEY,
            parameters={"size": 1},
            parents={},
            runtime={},
            seconds=0.5,
            code="",
            environment={"python": "3"},
        )
    return store, ref


def test_no_damaged_manifest_is_believed(tmp_path: Path) -> None:
    store, ref = published(tmp_path / "store")
    path = store.open(ref) / "manifest.json"
    whole = path.read_bytes()

    @examples(30)
    @given(damaged_json(json.loads(whole)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = store.find("thing", KEY)
        opened = survives(lambda: store.open(ref), names=(KEY, ref.uri))
        manifests = list(store.manifests())
        assert (found is None) == (opened is None)
        if found is not None:  # the same fields in another spelling
            assert found == ref
            assert [one.sealed() for one in manifests] == manifests
        Catalog(store).artifacts()

    check()
    path.write_bytes(whole)
    assert store.find("thing", KEY) == ref


def test_no_damaged_file_is_believed(tmp_path: Path) -> None:
    store, ref = published(tmp_path / "store")
    folder = store.open(ref)
    stamps = tmp_path / "store" / "verified" / f"thing-{KEY}.json"
    stamps.parent.mkdir(exist_ok=True)

    @examples(60)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(FILES)))
        content = data.draw(damaged(FILES[name]))
        (folder / name).write_bytes(content)
        stamps.write_bytes(data.draw(damaged_json({name: [10, 1, 1, 1, "0" * 64]})))
        assert (store.find("thing", KEY) is None) == (content != FILES[name])
        (folder / name).write_bytes(FILES[name])

    check()


def test_damaged_references_lead_nowhere(tmp_path: Path) -> None:
    store, ref = published(tmp_path / "store")
    (tmp_path / "secret").mkdir()

    def load(value: Any) -> Path | None:
        try:
            found = ArtifactRef.model_validate(value)
        except ValueError:  # pydantic's, which whoever reads references turns into a line
            return None
        return store.open(found)

    @examples(200)
    @given(changed(ref.model_dump()))
    def check(value: Any) -> None:
        folder = survives(lambda: load(value), names=("", str(tmp_path)))
        assert folder is None or folder == store.artifact_folder("thing", KEY)

    check()


def test_damaged_run_records_are_passed_over(tmp_path: Path) -> None:
    store, ref = published(tmp_path / "store")
    ids = []
    for _ in range(2):
        with RunLog(store, "demo", {"size": 1}) as log:
            log.add("thing", ref)
        ids.append(log.run.id)
    path = tmp_path / "store" / "runs" / f"{ids[0]}.json"
    whole = path.read_bytes()
    locks = store.root / "locks"

    @examples(60)
    @given(st.one_of(damaged_json(json.loads(whole)), changed(json.loads(whole) | {"state": "running"}).map(written)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        before = {one for one in tmp_path.rglob("*") if locks not in one.parents}
        runs = list_runs(store)
        assert ids[1] in [run.id for run in runs]
        assert {run.id for run in runs} <= {*ids}
        assert get_run(store, ids[1]).id == ids[1]
        assert {one for one in tmp_path.rglob("*") if locks not in one.parents} == before
        survives(lambda: get_run(store, ids[0]), names=ids[0])

    check()
    path.write_bytes(whole)
    assert {run.id for run in list_runs(store)} == {*ids}
    assert len(delete_runs(store, 0)) == 2


def test_odd_names_of_runs_and_artifacts_are_one_line(tmp_path: Path) -> None:
    store, ref = published(tmp_path / "store")
    for name in [value for value in ODD_VALUES if isinstance(value, str)]:
        survives(lambda name=name: get_run(store, name), names="match in the store")
        survives(lambda name=name: store.open(ref.model_copy(update={"uri": name})), names="")
    assert not isinstance(survives(lambda: store.open(ref), names=""), DamagedArtifact)
