"""What is exported over, what gc keeps, and whose clock the runs are listed by."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longloom.flows.show import check_export, collect, export_artifact, show, show_runs
from longloom.storage.manifest import MANIFEST
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.stats import Stats
from longloom.storage.store import Store


def publish(store: Store, kind: str, key: str, **parents: ArtifactRef) -> ArtifactRef:
    with store.lock(kind, key):
        work = store.begin(kind, key, resume=False)
        (work / "index.html").write_text(f"<p>{kind} {key}")
        return store.publish(
            work, Stats(counts={}), stage=kind, version=1, kind=kind, key=key, parameters={},
            parents={name: parent.digest for name, parent in parents.items()}, runtime={}, seconds=0.0, code="",
            environment={},
        )  # fmt: skip


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    show({"scores": [{"score": float("nan"), "other": [float("inf"), 1.5]}]}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"scores": [{"score": None, "other": [None, 1.5]}]}


# ---- export


def test_a_folder_of_another_program_is_neither_deleted_nor_written_to(store: Store, tmp_path: Path) -> None:
    ref = publish(store, "model", "k1")
    mine = tmp_path / "extension"
    mine.mkdir()
    (mine / MANIFEST).write_text('{"name": "mine", "manifest_version": 3}')
    (mine / "work.js").write_text("years of work")
    for refuse in (
        lambda: check_export(str(mine), store.address),
        lambda: export_artifact(ref, store.address, str(mine)),
    ):
        with pytest.raises(ValueError, match=rf"^--export {mine}: holds .*, expected an empty folder, or an earlier"):
            refuse()
    assert (mine / "work.js").read_text() == "years of work"
    assert len(list(mine.iterdir())) == 2


def test_a_file_beside_an_earlier_export_stays(store: Store, tmp_path: Path) -> None:
    ref, target = publish(store, "model", "k1"), str(tmp_path / "out")
    for _ in range(2):
        export_artifact(ref, store.address, target)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out: holds notes\.txt, expected an empty folder"):
        check_export(target, store.address)


def test_an_artifact_is_not_exported_onto_its_store(store: Store) -> None:
    ref = publish(store, "model", "k1")
    for place in ("", "artifacts/model/k1", "artifacts/model/k2", "exports"):
        folder = str(store.root / place)
        with pytest.raises(ValueError, match=rf"^--export {folder}: lies in the store {store.address}, expected a"):
            check_export(folder, store.address)
        with pytest.raises(ValueError, match="lies in the store"):
            export_artifact(ref, store.address, folder)
    assert store.find("model", "k1") == ref


def test_links_and_the_folder_that_one_stands_in_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the store lies in that folder, as it does by default."""
    folder = tmp_path / "folder"
    store = Store(folder / ".longloom")
    ref = publish(store, "model", "k1")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for target in (".", str(tmp_path / "link")):
        check_export(target, store.address)
        export_artifact(ref, store.address, target)
        assert {path.name for path in folder.iterdir()} == {MANIFEST, "index.html", ".longloom"}
    assert store.find("model", "k1") == ref
    assert (tmp_path / "link").is_symlink()


# ---- gc


def test_half_done_work_of_a_kept_run_stays(store: Store) -> None:
    run = RunLog(store, "index", {}).__enter__()
    (store.begin("index", "k1", resume=True) / "shard-0").write_text("an hour of work")
    (store.begin("corpus", "k1", resume=False) / "half").write_text("begun anew anyhow")
    run.__exit__(KeyError, KeyError(), None)
    (store.root / "work" / "trash-0").mkdir()
    with RunLog(store, "evaluate", {}):
        pass
    assert collect(store.address, 2) == {"runs_deleted": 0, "artifacts_deleted": 2}
    assert (store.begin("index", "k1", resume=True) / "shard-0").exists()
    assert collect(store.address, 1) == {"runs_deleted": 1, "artifacts_deleted": 1}
    assert not list((store.root / "work").iterdir())


def test_pages_of_kept_runs_stay(store: Store) -> None:
    """`longloom report` and `longloom compare` leave no record of a run."""
    made = [publish(store, "corpus", f"{number}") for number in range(3)]
    for ref in made:
        with RunLog(store, "trace", {}) as log:
            log.add("corpus", ref)
    reports = [publish(store, "report", f"{number}", corpus=ref) for number, ref in enumerate(made)]
    comparison = publish(store, "compare", "of-kept", first=reports[1], second=reports[2])
    publish(store, "compare", "of-one-gone", first=reports[0], second=reports[1])
    assert collect(store.address, 2) == {"runs_deleted": 1, "artifacts_deleted": 3}
    assert all(store.find(ref.kind, ref.key) for ref in (*made[1:], *reports[1:], comparison))
    assert not list(store.root.glob("artifacts/*/0"))
    links = (store.root / "index.html").read_text()
    assert [f"artifacts/report/{number}/" in links for number in range(3)] == [False, True, True]
    assert "artifacts/compare/of-kept/" in links


# ---- runs


@pytest.fixture
def east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Five and a half hours before UTC."""
    monkeypatch.setenv("TZ", "XXX-05:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_people_read_their_own_time_and_machines_utc(
    store: Store, east: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for started in ("2026-03-01T20:15:30.123+00:00", "at noon"):
        with RunLog(store, "index", {}) as log:
            log.run.started = started
    show_runs(store.address, 5, html=False, as_json=False)
    shown = capsys.readouterr().out
    assert "2026-03-02 01:45:30+05:30" in shown
    assert "at noon" in shown
    show_runs(store.address, 5, html=False, as_json=True)
    found = json.loads(capsys.readouterr().out)["runs"]
    assert {run["started"] for run in found} == {"2026-03-01T20:15:30.123+00:00", "at noon"}
