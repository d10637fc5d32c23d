"""Run by test_index_crashes.py as a process: builds a corpus and its index in a store, as the stages do.

python builder.py STORE SHARD_TOKENS [pause]        with `pause` it prints "<" in mid-build and waits for a line

Prints the index's reference as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

from longloom.storage.parquet import ShardWriter
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams.build import BATCH_DOCUMENTS, build
from longloom.tasks.stage import Work, _Plan, _run

TEXTS = [f"{'the loom weaves ' * (number % 4)}{number}" for number in range(2 * BATCH_DOCUMENTS + 1)]


def write_corpus(folder: Path, texts: list[str]) -> None:
    """`documents-*.parquet` in two files."""
    with ShardWriter(folder, "documents", SCHEMA, rows_per_shard=(len(texts) + 1) // 2) as writer:
        writer.write([{"id": f"d{number}", "source": "s", "text": text} for number, text in enumerate(texts)])


def corpus_body(work: Work) -> Stats:
    write_corpus(work.out, TEXTS)
    return Stats(counts={"documents": len(TEXTS)})


def index_body(work: Work, *, shard_tokens: int | None, pause: bool, threads: int) -> Stats:
    def progress(done: int, total: int | None) -> None:
        if pause and done == BATCH_DOCUMENTS:
            print("<", flush=True)
            sys.stdin.readline()

    return build(
        *(work.inputs["corpus"], None, work.out),
        threads=threads,
        memory_gib=1,
        shard_tokens=shard_tokens,
        progress=progress,
    )


def corpus_of(store: Store) -> ArtifactRef:
    """The corpus of TEXTS."""
    return _run(_Plan(corpus_body, "corpus", "corpus", 1, frozenset(), False), store, {}, "corpus", {}, {})


def indexed(store: Store, shard_tokens: int | None, *, pause: bool = False, threads: int = 2) -> ArtifactRef:
    """Its index, as the flow would have it."""
    plan = _Plan(index_body, "index", "index", 1, frozenset({"pause", "threads"}), True)
    parameters = {"shard_tokens": shard_tokens, "pause": pause, "threads": threads}
    return _run(plan, store, {"corpus": corpus_of(store)}, "index", {}, parameters)


if __name__ == "__main__":
    print(indexed(Store(sys.argv[1]), int(sys.argv[2]), pause="pause" in sys.argv).model_dump_json(), flush=True)
