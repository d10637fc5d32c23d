"""Which index answers where none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from longloom.flows.sources import index_of
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog, list_runs
from longloom.storage.stats import Stats
from longloom.storage.store import Store


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGLOOM_QUIET", raising=False)


def publish(store: Store, key: str) -> ArtifactRef:
    with store.lock("index", key):
        work = store.begin("index", key, resume=False)
        (work / "tokens").write_text(key)
        return store.publish(
            work, Stats(counts={}), stage="index", version=1, kind="index", key=key, parameters={}, parents={},
            runtime={}, seconds=0.0, code="", environment={},
        )  # fmt: skip


def record(store: Store, **stages: ArtifactRef) -> str:
    with RunLog(store, "index", {}) as log:
        for label, ref in stages.items():
            log.add(label, ref)
    return log.run.id


def test_the_index_that_a_run_had_last_answers(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = publish(store, "a"), publish(store, "b")
    record(store, index=a)
    record(store, index=b)
    again = record(store, index=a)  # unchanged, so it was built before the other
    record(store)
    assert index_of(store, None) == a
    assert capsys.readouterr().err == f"asks run:{again}:index, of 2 indexes in the store\n"
    c = publish(store, "c")
    delete = record(store, index=b, deletion=c)
    assert index_of(store, None) == c
    assert f"asks run:{delete}:deletion, of 3" in capsys.readouterr().err


def test_without_a_record_the_newest_answers(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="holds no index"):
        index_of(store, None)
    only = publish(store, "a")
    assert index_of(store, None) == only
    assert capsys.readouterr().err == ""  # there is no other to take it for
    record(store, index=only.model_copy(update={"uri": "artifacts/index/gone"}))
    newest = publish(store, "b")
    assert index_of(store, None) == newest
    assert capsys.readouterr().err == "asks artifacts/index/b, of 2 indexes in the store\n"


def test_an_index_that_was_built_again_is_the_one_that_is_there(store: Store) -> None:
    there = publish(store, "a")
    record(store, index=there.model_copy(update={"digest": "0" * 64}))
    assert index_of(store, None) == there


def test_a_named_index_needs_no_words(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = publish(store, "a"), publish(store, "b")
    record(store, index=b)
    assert index_of(store, str(Path(store.root, a.uri))) == a
    assert index_of(store, f"run:{list_runs(store)[0].id}:index") == b
    assert capsys.readouterr().err == ""
