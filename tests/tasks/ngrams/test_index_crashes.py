"""The index's build in processes of its own: killed, twice at once, on a full disk, over a corpus that changes."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from longloom.storage.store import Store
from longloom.tasks.corpus import build as corpus_module
from longloom.tasks.corpus import task as corpus_task
from longloom.tasks.ngrams import build as module
from longloom.tasks.ngrams.build import PROGRESS, build
from longloom.tasks.ngrams.query import open_index
from longloom.tasks.stage import _Plan, _run

from ...waiting import SECONDS, wait_until

SCRIPT = Path(__file__).with_name("builder.py")
SHARD_TOKENS = 4000


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("index_builder", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


builder = _load()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGLOOM_QUIET", "1")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, str]:
    """Digests of the builds that nothing happened to: cut into shards, and not."""
    store = Store(tmp_path_factory.mktemp("whole"))
    return {size: builder.indexed(store, size).digest for size in (SHARD_TOKENS, None)}


def start(store: Store, shard_tokens: int, *options: str) -> psutil.Popen:
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {name: value for name, value in os.environ.items() if name != "LONGLOOM_QUIET"}
    command = [sys.executable, str(SCRIPT), str(store.root), str(shard_tokens), *options]
    return psutil.Popen(command, text=True, bufsize=1, env=environment, **pipes)


def expect_whole(store: Store) -> None:
    (folder,) = store.root.glob("artifacts/index/*")
    assert not list(store.root.glob("work/index-*"))
    index = open_index(folder)
    for text in ("loom", "the loom weaves 1", "103", "weaves the", "nowhere"):
        assert index.count(text) == sum(other.count(text) for other in builder.TEXTS)


def test_a_killed_build_goes_on_after_its_last_whole_shard(tmp_path: Path, expected: dict[int | None, str]) -> None:
    store = Store(tmp_path / "store")
    with start(store, SHARD_TOKENS, "pause") as process:
        assert process.stdout.readline() == "<\n"
        # They start while the next shards are written.
        workers = wait_until(lambda: process.children(recursive=True), lambda: "no process sorts")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(SECONDS)
    _, left = psutil.wait_procs(workers, timeout=SECONDS)
    assert left == []  # they would write into the folder of the next build
    assert not list(store.root.glob("artifacts/index/*"))
    (work,) = store.root.glob("work/index-*")
    shards = json.loads((work / PROGRESS).read_text())["shards"]
    assert 1 < len(shards) < 6
    names = [f"tokenized.{number}" for number in range(len(shards))]
    stamps = {name: (work / name).stat().st_mtime_ns for name in names}
    assert builder.indexed(store, SHARD_TOKENS).digest == expected[SHARD_TOKENS]
    (folder,) = store.root.glob("artifacts/index/*")
    assert {name: (folder / name).stat().st_mtime_ns for name in names} == stamps
    expect_whole(store)


def test_two_builds_of_one_index_at_once(tmp_path: Path, expected: dict[int | None, str]) -> None:
    store = Store(tmp_path / "store")
    with start(store, 10**6, "pause") as first:  # one shard
        assert first.stdout.readline() == "<\n"
        with start(store, 10**6) as second:
            assert any("waits for another process" in line for line in second.stderr)
            assert not list(store.root.glob("artifacts/index/*"))
            told, _ = first.communicate("\n", SECONDS)
            again, said = second.communicate(timeout=SECONDS)
    assert (first.returncode, second.returncode) == (0, 0)
    assert json.loads(told)["digest"] == expected[None]
    assert again == told
    assert "unchanged" in said
    expect_whole(store)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A small file system: called with its size in KiB, which may be changed; returns where it is."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(kib: int) -> Path:
        options = f"size={kib}k" + (",remount" if os.path.ismount(place) else "")
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "longloom-test", place], capture_output=True, text=True
            )
        except FileNotFoundError:
            pytest.skip("no mount here")
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        return place

    try:
        yield sized
    finally:
        if os.path.ismount(place):
            subprocess.run(["umount", "--lazy", place], check=True)  # an index may still be mapped


def test_a_full_disk_at_any_point_of_the_build(disk: Callable[[int], Path], expected: dict[int | None, str]) -> None:
    """One shard, sorted in this process, on a disk that grows by a page until the index fits."""
    store = Store(disk(4096) / "store")
    builder.corpus_of(store)
    kib = sum(path.stat().st_blocks for path in store.root.rglob("*") if path.is_file()) // 2
    parts: set[str] = set()
    for more in range(0, 1024, 4):
        disk(kib + more)
        try:
            digest = builder.indexed(store, None, threads=1).digest
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            assert not list(store.root.glob("artifacts/index/*"))
            parts |= {path.name for work in store.root.glob("work/index-*") for path in work.iterdir()}
        else:
            break
    assert digest == expected[None]
    assert {"tokenized.0", PROGRESS} <= parts  # it was full in the tokens and in the table
    expect_whole(store)


def test_a_disk_that_is_full_for_a_worker(disk: Callable[[int], Path], expected: dict[int | None, str]) -> None:
    store = Store(disk(4096) / "store")
    with start(store, SHARD_TOKENS, "pause") as process:
        assert process.stdout.readline() == "<\n"
        used = os.statvfs(store.root)
        disk((used.f_blocks - used.f_bfree) * used.f_frsize // 1024 + 8)
        _, said = process.communicate("\n", SECONDS)
    assert process.returncode == 1
    assert "No space left on device" in said.splitlines()[-1]
    assert not list(store.root.glob("artifacts/index/*"))
    disk(4096)
    assert builder.indexed(store, SHARD_TOKENS).digest == expected[SHARD_TOKENS]
    expect_whole(store)


@pytest.mark.parametrize("how", ["other text", "fewer", "truncated", "deleted"])
def test_a_corpus_that_changes_while_it_is_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 2)
    texts = [f"text {number}" for number in range(12)]
    corpus, other, out = tmp_path / "corpus", tmp_path / "other", tmp_path / "index"
    for folder in (corpus, other, out, tmp_path / "new"):
        folder.mkdir()
    builder.write_corpus(corpus, texts)
    builder.write_corpus(other, [text.upper() for text in texts[: 10 if how == "fewer" else 12]])
    path = corpus / "documents-00001.parquet"

    def change(done: int, total: int | None) -> None:
        if done != 4:
            return
        if how == "truncated":
            path.write_bytes(path.read_bytes()[:-8])
        elif how == "deleted":
            path.unlink()
        else:
            path.write_bytes((other / path.name).read_bytes())

    options: dict[str, Any] = {"threads": 1, "memory_gib": 1, "shard_tokens": 20}
    with pytest.raises(ValueError, match=r"corpus: the corpus changed while it was read; run again$"):
        build(corpus, None, out, **options, progress=change)
    assert not (out / "index.json").exists()
    for path_ in other.iterdir():
        (corpus / path_.name).write_bytes(path_.read_bytes())
    build(corpus, None, out, **options)  # nothing of the old one is gone on with
    build(corpus, None, tmp_path / "new", **options)
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (out, tmp_path / "new")]
    assert contents[0] == contents[1]


def test_what_a_killed_build_of_another_corpus_left_is_not_gone_on_with(tmp_path: Path) -> None:
    options: dict[str, Any] = {"threads": 1, "memory_gib": 1, "shard_tokens": 20}

    def killed(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    corpora = [tmp_path / name for name in ("one", "two")]
    for corpus, text in zip(corpora, ("abcdefgh", "ABCDEFGH"), strict=True):
        corpus.mkdir()
        builder.write_corpus(corpus, [f"{text} {number}" for number in range(12)])
    out = tmp_path / "index"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        build(corpora[0], None, out, **options, progress=killed)
    assert json.loads((out / PROGRESS).read_text())["shards"]
    build(corpora[1], None, out, **options)
    index = open_index(out)
    assert (index.count("ABCD"), index.count("abcd")) == (12, 0)


def test_sources_that_change_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for number in range(3):
        (sources / f"{number}.txt").write_text(f"text {number}")
    store = Store(tmp_path / "store")
    read = corpus_module.read

    def changing(*args: Any, **options: Any) -> Iterator[Any]:
        for number, document in enumerate(read(*args, **options)):
            if number == 0:
                (sources / "2.txt").write_text("more text")
            yield document

    def corpus() -> Any:
        given = [str(sources)]
        identity = corpus_task.identity_of(store, given)
        fields = {"text_field": "text", "id_field": "id", "on_bad_record": "stop"}
        body: Any = corpus_task._files
        plan = _Plan(body.__wrapped__, "corpus", "corpus", 1, frozenset({"expected"}), False)
        return _run(
            plan, store, {}, "corpus", {"sources": identity}, {"expected": identity, "sources": given, **fields}
        )

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "read", changing)
        with pytest.raises(ValueError, match="sources: changed while it was read; run again"):
            corpus()
    assert not list(store.root.glob("artifacts/*/*"))
    assert not list((store.root / "work").iterdir())
    assert corpus().counts["documents"] == 3
