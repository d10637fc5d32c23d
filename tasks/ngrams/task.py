"""Prefect tasks of the n-gram index."""

from __future__ import annotations

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage


@stage("index", version=3, runtime=("threads", "memory_gib", "workers"), resumable=True)
def _index(work: Work, *, threads: int, memory_gib: float, shard_tokens: int | None, workers: str) -> Stats:
    from longloom.tasks.ngrams.build import build

    return build(
        work.inputs["corpus"],
        work.inputs.get("tokenizer"),
        work.out,
        threads=threads,
        memory_gib=memory_gib,
        shard_tokens=shard_tokens,
        workers=workers,
        progress=work.progress,
    )


def build_index(
    store: Store,
    corpus: ArtifactRef,
    tokenizer: ArtifactRef | None,
    *,
    threads: int,
    memory_gib: float,
    shard_tokens: int | None = None,
    workers: str = "processes",
) -> ArtifactRef:
    """An index in infini-gram's format; without a tokenizer, of raw bytes.

    Memory and threads are no part of an artifact's key, but the cut into shards is: a corpus that may not fit into one
    shard is cut into shards of the size that the memory allows.
    """
    from longloom.tasks.ngrams.sorters import Plan

    if shard_tokens is None:
        fits = Plan.of(threads=threads, memory_gib=memory_gib).entries("u32" if tokenizer else "u8")
        counts = corpus.counts
        if counts["documents"] + 4 * counts["characters"] > fits:  # UTF-8 has four bytes a character at most
            shard_tokens = fits
    inputs = {"corpus": corpus} | ({"tokenizer": tokenizer} if tokenizer else {})
    return _index(store, inputs, threads=threads, memory_gib=memory_gib, shard_tokens=shard_tokens, workers=workers)


@stage("deletion", kind="index", version=1)
def _delete(work: Work, *, ids: list[str]) -> Stats:
    from longloom.tasks.ngrams.delete import build

    return build(work.inputs["index"], work.out, ids=ids)


def delete_documents(store: Store, index: ArtifactRef, *, ids: list[str]) -> ArtifactRef:
    """The index without some documents; its files are shared with the one that it is made of."""
    return _delete(store, {"index": index}, ids=sorted(set(ids)))
