"""Flow `index`: a corpus, its tokenizer, and an n-gram index over it."""

from __future__ import annotations

from prefect import flow

from longloom.flows.checks import check_sources, check_tokenizer
from longloom.flows.params import DEFAULT_STORE, CorpusParams, IndexParams
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.corpus.task import read_corpus, train_tokenizer
from longloom.tasks.ngrams.task import build_index as index_task
from longloom.tasks.training.task import import_model


def tokenizer_of(store: Store, corpus: ArtifactRef, params: IndexParams) -> ArtifactRef | None:
    """The tokenizer that `params` names; None for raw bytes."""
    if params.tokenizer == "bytes":
        return None
    if params.tokenizer == "train":
        return train_tokenizer(store, corpus, vocab_size=params.vocab_size)
    return import_model(store, params.tokenizer)


@flow(name="index", flow_run_name="index-{index.tokenizer}")
def build_index(
    corpus: CorpusParams = CorpusParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    index: IndexParams = IndexParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> ArtifactRef:
    """Reads a corpus and writes an n-gram index of it in infini-gram's format."""
    place = Store(store)
    check_sources(corpus.sources)
    check_tokenizer(place, index.tokenizer)
    with RunLog(place, "index", {"corpus": corpus.model_dump(), "index": index.model_dump()}) as log:
        documents = log.add("corpus", read_corpus(place, **corpus.model_dump()))
        tokenizer = tokenizer_of(place, documents, index)
        if tokenizer is not None:
            log.add("tokenizer", tokenizer)
        how = index.model_dump(include={"threads", "memory_gib", "shard_tokens", "workers"})
        return log.add("index", index_task(place, documents, tokenizer, **how))
