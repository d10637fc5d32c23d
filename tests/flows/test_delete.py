"""The ids that the command takes, and how an index is cut by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from longloom.flows.delete import read_ids
from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store
from longloom.tasks.ngrams import task


def test_ids_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "ids"
    path.write_text("a b\n\nc\r\n d\n")
    assert read_ids(str(path)) == ["a b", "c", " d"]
    path.write_text(" \n")
    with pytest.raises(ValueError, match="holds no ids, expected one a line"):
        read_ids(str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"cannot read .*ids: "):
        read_ids(str(path))
    with pytest.raises(ValueError, match=r"cannot read .*nowhere: No such file or directory"):
        read_ids(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("characters", "given", "cut"), [(1000, None, False), (10**9, None, True), (1000, 50, True)])
def test_the_cut_is_a_part_of_the_key_where_memory_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, characters: int, given: int | None, cut: bool
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(task, "_index", lambda *_, **options: asked.append(options))
    corpus = ArtifactRef(
        kind="corpus",
        uri="artifacts/corpus/x",
        digest="0" * 64,
        schema_version=1,
        counts={"documents": 10, "characters": characters},
    )
    for memory in (1.0, 2.0):
        task.build_index(Store(tmp_path), corpus, None, threads=1, memory_gib=memory, shard_tokens=given)
    sizes = [options["shard_tokens"] for options in asked]
    if given:
        assert sizes == [given, given]
    elif cut:
        assert isinstance(sizes[0], int)
        assert isinstance(sizes[1], int)
        assert 0 < sizes[0] < sizes[1]
    else:
        assert sizes == [None, None]
