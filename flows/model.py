"""Flow `pretrain`, and how the other flows come to a model."""

from __future__ import annotations

from prefect import flow

from longloom.flows.params import DEFAULT_STORE, CorpusParams, IndexParams, ModelParams
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.corpus.task import read_corpus, train_tokenizer
from longloom.tasks.training.task import import_model
from longloom.tasks.training.task import pretrain as pretrain_task


def model_of(
    store: Store, params: ModelParams, corpus: ArtifactRef | None, tokenizer: ArtifactRef | None
) -> ArtifactRef:
    """The model that `params` names: trained from scratch, trained further from the base, or imported.

    Args:
        store: where it goes.
        params: what to start from.
        corpus: needed for `base` and `scratch`; `base` without a corpus is the checkpoint as it stands.
        tokenizer: needed for `scratch`.

    Raises:
        ValueError: `scratch` without a corpus and a tokenizer.
    """
    if params.source == "scratch":
        if corpus is None or tokenizer is None:
            raise ValueError(
                "model scratch: needs a corpus and a tokenizer to train with; give a model folder or `base` here"
            )
        return _pretrain(store, corpus, tokenizer, "scratch", params)
    start = import_model(store, params.source)
    if params.source == "base" and corpus is not None:
        return _pretrain(store, corpus, start, "continue", params)
    return start


def _pretrain(store: Store, corpus: ArtifactRef, start: ArtifactRef, recipe: str, params: ModelParams) -> ArtifactRef:
    return pretrain_task(store, corpus, start, recipe=recipe, size=params.size, tokens=params.tokens, seed=params.seed)


@flow(name="pretrain", flow_run_name="pretrain")
def pretrain(
    corpus: CorpusParams = CorpusParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    index: IndexParams = IndexParams(),  # noqa: B008
    model: ModelParams = ModelParams(source="scratch"),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> ArtifactRef:
    """Trains a small model on a corpus, from random weights or from the repository's checkpoint."""
    place = Store(store)
    with RunLog(place, "pretrain", {"corpus": corpus.model_dump(), "model": model.model_dump()}) as log:
        documents = log.add("corpus", read_corpus(place, **corpus.model_dump()))
        tokenizer = None
        if model.source == "scratch":
            tokenizer = log.add("tokenizer", train_tokenizer(place, documents, vocab_size=index.vocab_size))
        return log.add("model", model_of(place, model, documents, tokenizer))
