"""Flow `pretrain`, and how the other flows come to a model."""

from __future__ import annotations

import re

from prefect import flow

from longloom.flows.checks import check_model, check_sources, check_tokenizer
from longloom.flows.index import tokenizer_of
from longloom.flows.params import DEFAULT_STORE, SMALL, CorpusParams, IndexParams, ModelParams, PretrainParams
from longloom.flows.sources import RUN_PREFIX, of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.corpus.task import read_corpus
from longloom.tasks.training.task import import_model
from longloom.tasks.training.task import pretrain as pretrain_task


def model_of(
    store: Store, params: ModelParams, corpus: ArtifactRef | None, tokenizer: ArtifactRef | None
) -> ArtifactRef:
    """The model that `params` names: trained from scratch, trained further, or imported.

    Args:
        store: where it goes.
        params: what to start from.
        corpus: needed for `scratch`. `base`, and any model that is to be trained, is trained further on it; without one
            it is taken as it stands.
        tokenizer: needed for `scratch`.

    Raises:
        ValueError: `scratch` without a corpus and a tokenizer; no such run, or none of its models has that label.
    """
    if params.source == "scratch":
        if corpus is None or tokenizer is None:
            raise ValueError(
                "model scratch: needs a corpus and a tokenizer to train with; give a model folder or `base` here"
            )
        return _pretrain(store, corpus, tokenizer, "scratch", params)
    start = _named(store, params.source)
    if corpus is not None and (params.source == "base" or isinstance(params, PretrainParams)):
        return _pretrain(store, corpus, start, "continue", params)
    return start


def _named(store: Store, source: str) -> ArtifactRef:
    return of_run(store, source, "model") if source.startswith(RUN_PREFIX) else import_model(store, source)


def is_small(store: Store, model: ArtifactRef) -> bool:
    """Whether a model is trained by default as suits the demo's."""
    return sum(entry.bytes for entry in store.manifest(model).files) <= SMALL


def label_of(model: ModelParams) -> str:
    """What to call it: the last part of a path, of a hub name, of run:ID:finetune/tagcos."""
    return re.split("[/:]", model.source.rstrip("/"))[-1]


def _pretrain(store: Store, corpus: ArtifactRef, start: ArtifactRef, recipe: str, params: ModelParams) -> ArtifactRef:
    options = params.model_dump(exclude={"source"})
    return pretrain_task(store, corpus, start, recipe=recipe, **options)


@flow(name="pretrain", flow_run_name="pretrain-{model.source}")
def pretrain(
    corpus: CorpusParams = CorpusParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    index: IndexParams = IndexParams(),  # noqa: B008
    model: PretrainParams = PretrainParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> ArtifactRef:
    """Trains a small model on a corpus: from random weights, or one that is there further."""
    place = Store(store)
    check_sources(corpus.sources)
    check_model(place, model, trained=True)
    if model.source == "scratch":
        check_tokenizer(place, index.tokenizer)
    given = {"corpus": corpus.model_dump(), "index": index.model_dump(), "model": model.model_dump()}
    with RunLog(place, "pretrain", given) as log:
        documents = log.add("corpus", read_corpus(place, **corpus.model_dump()))
        tokenizer = None
        if model.source == "scratch":
            tokenizer = tokenizer_of(place, documents, index)
            if tokenizer is not None:
                log.add("tokenizer", tokenizer)
        return log.add("model", model_of(place, model, documents, tokenizer))
