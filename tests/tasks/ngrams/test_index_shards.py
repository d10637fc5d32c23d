"""Several shards: the cut, the same answers, killed builds that go on, faults that leave nothing half-written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams import build as module
from longloom.tasks.ngrams import sorters
from longloom.tasks.ngrams.build import PROGRESS, build, write_shards
from longloom.tasks.ngrams.layout import PARTS, TOKEN_TYPES, Shard, read_layout
from longloom.tasks.ngrams.query import open_index
from longloom.tasks.ngrams.sorters import PROCESS, Plan
from longloom.tasks.ngrams.suffix_array import sort_memory

TEXTS = [f"{'the loom weaves ' * (index % 4)}{index}" for index in range(12)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    with ShardWriter(folder, "documents", SCHEMA, rows_per_shard=5) as writer:
        writer.write([{"id": f"d{index}", "source": "s", "text": text} for index, text in enumerate(TEXTS)])
    return folder


def run(corpus: Path, out: Path, *, shard_tokens: int | None = 60, workers: str = "processes") -> dict[str, int]:
    out.mkdir(exist_ok=True)
    return build(corpus, None, out, threads=2, memory_gib=1, shard_tokens=shard_tokens, workers=workers).counts


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), entries=st.integers(1, 25))
def test_shards_are_cut_between_documents(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], entries: int
) -> None:
    out = tmp_path_factory.mktemp("shards")
    rows = [(f"d{index}", "s", np.full(length, index)) for index, length in enumerate(lengths)]
    shards = list(write_shards(rows, out, token_dtype="u16", entries=entries))
    found: list[list[int]] = []
    for number, shard in enumerate(shards):
        tokens = np.fromfile(out / f"tokenized.{number}", dtype=TOKEN_TYPES["u16"])
        offsets = np.fromfile(out / f"offset.{number}", dtype="<u8").astype(int) // 2
        assert (tokens[offsets] == 65535).all()
        assert (len(offsets), len(tokens)) == (shard.documents, shard.documents + shard.tokens)
        assert len(tokens) <= entries or shard.documents == 1
        lines = (out / f"metadata.{number}").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [
            f"d{index}" for index in range(len(found), len(found) + len(lines))
        ]
        found += [part.tolist()[1:] for part in np.split(tokens, offsets[1:])]
    assert found == [[index] * length for index, length in enumerate(lengths)]
    for (begin, shard), (end, _) in itertools.pairwise(zip(_starts(shards), shards, strict=True)):
        assert shard.tokens + shard.documents + 1 + lengths[end] > entries, begin  # none is cut sooner than it must be


def _starts(shards: list[Shard]) -> Iterator[int]:
    """The ordinal of each one's first document."""
    return itertools.accumulate([0, *(shard.documents for shard in shards[:-1])])


def test_any_number_of_shards_gives_the_same_counts(corpus: Path, tmp_path: Path) -> None:
    counts = [run(corpus, tmp_path / str(size), shard_tokens=size) for size in (None, 60, 1)]
    assert [count["shards"] for count in counts] == [1, 6, 12]
    assert len({(count["documents"], count["tokens"]) for count in counts}) == 1
    indexes = [open_index(tmp_path / str(size)) for size in (None, 60, 1)]
    for text in ("the", "loom weaves 1", "0", "e loom weaves t", "10", "nothing"):
        assert {index.count(text) for index in indexes} == {sum(other.count(text) for other in TEXTS)}
    assert not (tmp_path / "60" / PROGRESS).exists()


def test_threads_sort_to_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    """So do the workers of a scheduler: ../coreset/test_scheduler.py."""
    for workers in ("processes", "threads"):
        run(corpus, tmp_path / workers, workers=workers)
        assert contents(tmp_path / workers) == contents(tmp_path / "processes")
    assert len(list((tmp_path / "threads").glob("table.*"))) == 6


class Killed(BaseException):
    """Nothing is cleaned up after it."""


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_build_goes_on_with_whole_shards(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run(corpus, tmp_path / "whole")
    out = tmp_path / "killed"
    written = module.write_shards

    def dies(*args: Any, **options: Any) -> Iterator[Shard]:
        for count, shard in enumerate(written(*args, **options)):
            yield shard
            if count + 1 == after:
                (out / f"tokenized.{after}").write_bytes(b"half a shard")
                (out / ".table.0").write_bytes(b"half a table")
                raise Killed

    monkeypatch.setattr(module, "write_shards", dies)
    with pytest.raises(Killed):
        run(corpus, out)
    assert not (out / "index.json").exists()
    stamps = {name: (out / name).stat().st_mtime_ns for name in (f"tokenized.{n}" for n in range(after))}
    started: list[int] = []

    def goes_on(*args: Any, first: int, **options: Any) -> Iterator[Shard]:
        started.append(first)
        return written(*args, first=first, **options)

    monkeypatch.setattr(module, "write_shards", goes_on)
    run(corpus, out)
    assert started == [after]
    assert stamps == {name: (out / name).stat().st_mtime_ns for name in stamps}
    assert contents(out) == contents(tmp_path / "whole")
    run(corpus, out)  # killed between its last file and publishing
    assert started == [after]
    (out / "table.1").write_bytes(b"")
    run(corpus, out)  # not what it says: from the beginning
    assert contents(out) == contents(tmp_path / "whole")


def test_a_full_disk_is_one_error_and_the_next_build_is_right(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sorters, "write_table", full)
        with pytest.raises(OSError, match="No space left on device"):
            run(corpus, tmp_path / "out", shard_tokens=None)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            run(corpus, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()
    run(corpus, tmp_path / "out")
    assert read_layout(tmp_path / "out").documents == len(TEXTS)


def test_a_corpus_that_changes_while_it_is_read(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "count_rows", lambda *_: len(TEXTS) + 1)
    with pytest.raises(ValueError, match=r"found 12 documents, expected 13; did the corpus change while it was read\?"):
        run(corpus, tmp_path / "out")


def test_memory_decides_on_the_cut(corpus: Path, tmp_path: Path) -> None:
    one = Plan.of(threads=1, memory_gib=1)
    assert one.share == 2**30 - 2 * PROCESS
    assert one.entries("u8") > one.entries("u16") > one.entries("u32") > 10_000_000
    assert Plan.of(threads=2, memory_gib=1).entries("u8") < one.entries("u8")
    assert Plan.of(threads=64, memory_gib=1).workers < 4  # each needs some
    assert Plan.of(threads=1, memory_gib=1000).entries("u16") * 2 < 2**31
    least = (sort_memory(10**9, "u16") + 2 * PROCESS) / 2**30
    with pytest.raises(
        ValueError,
        match=rf"memory_gib is 1, expected at least {least:.2f} to sort a shard of 1000000000 tokens, 1 at a time",
    ):
        one.check(10**9, "u16")
    assert Plan.of(threads=1, memory_gib=least + 0.01).share >= sort_memory(10**9, "u16")


def test_every_part_of_every_shard_is_checked(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "index")
    for part in PARTS:
        path = tmp_path / "index" / f"{part}.3"
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(FileNotFoundError, match=rf"{part}\.3: is missing"):
            read_layout(tmp_path / "index")
        path.write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{part}|metaoff"):
            read_layout(tmp_path / "index")
        path.write_bytes(content)
    read_layout(tmp_path / "index")
