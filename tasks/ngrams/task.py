"""Prefect task of the n-gram index."""

from __future__ import annotations

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage


@stage("index", version=1, runtime=("threads", "memory_gib"))
def _index(work: Work, *, threads: int, memory_gib: float) -> Stats:
    from longloom.tasks.ngrams.build import build

    return build(
        work.inputs["corpus"],
        work.inputs.get("tokenizer"),
        work.out,
        threads=threads,
        memory_gib=memory_gib,
        progress=work.progress,
    )


def build_index(
    store: Store, corpus: ArtifactRef, tokenizer: ArtifactRef | None, *, threads: int, memory_gib: float
) -> ArtifactRef:
    """An index in infini-gram's format; without a tokenizer, of raw bytes."""
    inputs = {"corpus": corpus} | ({"tokenizer": tokenizer} if tokenizer else {})
    return _index(store, inputs, threads=threads, memory_gib=memory_gib)
