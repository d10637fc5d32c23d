"""Flow `rag`: retrieval against the whole context, on one suite and one model: every chunking, ranking, k and order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from prefect import flow

from longloom.flows.checks import check_encoder
from longloom.flows.evaluate import check_evaluation, check_start, evaluations_of, model_and_label
from longloom.flows.params import DEFAULT_STORE, ModelParams
from longloom.flows.params_evaluate import EndpointParams, EvaluateParams, RetrievalParams
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.longcontext.asked import check_contexts, makes_prompts, options_of
from longloom.tasks.longcontext.task import Passages
from longloom.tasks.retrieval.task import build_index, check_retrieval, needs_embeddings, rank_passages


def check_rag(suite: str, params: RetrievalParams) -> None:
    """Finds what cannot be done before the first stage runs (ValueError)."""
    check_contexts(suite)
    for chunker, size in product(params.chunkers, params.sizes):
        check_retrieval(chunker=chunker, size=size, rankers=params.rankers)
    embedding = [ranker for ranker in params.rankers if needs_embeddings(ranker)]
    if embedding and params.encoder is None:
        raise ValueError(f"ranker {embedding[0]!r} needs an encoder, a sentence-transformers folder or hub name")
    if params.encoder is not None and not embedding:
        raise ValueError(f"encoder is {params.encoder}, which {', '.join(params.rankers)} does not use; omit it")


def _check_endpoint(suite: str, params: RetrievalParams, endpoint: EndpointParams) -> None:
    """Finds what a model behind an endpoint, which brings no tokenizer, cannot be given (ValueError)."""
    if endpoint.url is None:
        return
    if "tokens" in params.chunkers:
        raise ValueError("chunker 'tokens' with an endpoint, which gives no tokenizer; expected words or sentences")
    if makes_prompts(suite):
        raise ValueError(f"suite {suite!r} makes its contexts by a model's tokenizer, which an endpoint does not give")
    if params.budgets and endpoint.tokenizer is None:
        raise ValueError("budgets are counted in tokens, expected endpoint.tokenizer, a folder or hub name")


def retrieved(
    store: Store,
    log: RunLog,
    model: ArtifactRef | str,
    params: EvaluateParams,
    retrieval: RetrievalParams,
    *,
    suite: str,
    data: ArtifactRef | str | None,
    tasks: list[str] | None = None,
) -> Iterator[Passages]:
    """What to read in place of the contexts, one combination after another; each index and ranking is made once.

    Args:
        store: where they go.
        log: of the run.
        model: under test; its tokenizer makes prompts of given lengths and chunks of tokens.
        params: limit, seed, options of suites.
        retrieval: the combinations.
        suite, data, tasks: as of the evaluation.
    """
    for chunker, size in product(retrieval.chunkers, retrieval.sizes):
        for ranker in retrieval.rankers:
            embedded = needs_embeddings(ranker)
            chunked = f"{chunker}={size}"
            asks_tokenizer = chunker == "tokens" or makes_prompts(suite)
            index = build_index(
                store,
                data,
                model=model if asks_tokenizer and isinstance(model, ArtifactRef) else None,
                encoder=retrieval.encoder if embedded else None,
                label=f"{suite}-{chunked}{'-embedded' if embedded else ''}",
                suite=suite,
                tasks=tasks,
                suite_options=options_of(suite, params.suite_options(suite)),
                limit=params.limit,
                seed=params.seed,
                chunker=chunker,
                size=size,
                query_prefix=retrieval.query_prefix if embedded else None,
                device=None,
            )
            log.add(f"retrieval/{suite}/{chunked}{'/embedded' if embedded else ''}", index)
            ranked = rank_passages(store, index, label=f"{suite}-{ranker}-{chunked}", ranker=ranker, most=None)
            log.add(f"passages/{suite}/{ranker}:{chunked}", ranked)
            amounts = [("k", count) for count in retrieval.k] + [("budget", count) for count in retrieval.budgets]
            for (name, count), order in product(amounts, retrieval.orders):
                if (name, count) == ("k", 1) and order != retrieval.orders[0]:
                    continue  # one chunk has no order
                yield Passages(
                    ranked,
                    k=count if name == "k" else None,
                    budget=count if name == "budget" else None,
                    order=order,
                    label=f"{ranker}:{chunked},{name}={count},order={order}",
                )


@flow(name="rag", flow_run_name="rag-{evaluate.suite}")
def rag(
    model: ModelParams = ModelParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    evaluate: EvaluateParams = EvaluateParams(),  # noqa: B008
    retrieval: RetrievalParams = RetrievalParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Evaluates a model with the whole contexts and with what is retrieved of them."""
    check_rag(evaluate.suite, retrieval)
    check_evaluation(evaluate)
    _check_endpoint(evaluate.suite, retrieval, evaluate.endpoint)
    place = Store(store)
    check_start(place, model, evaluate)
    check_encoder(place, retrieval)
    parameters = {
        "model": model.model_dump(),
        "evaluate": evaluate.model_dump(),
        "retrieval": retrieval.model_dump(),
    }
    with RunLog(place, "rag", parameters) as log:
        network, label = model_and_label(place, log, model, evaluate)
        asked: dict[str, Any] = {"suite": evaluate.suite, "data": evaluate.data, "tasks": evaluate.tasks or None}
        # All of them first: what cannot be retrieved costs no answer of the model.
        found = list(retrieved(place, log, network, evaluate, retrieval, **asked))
        refs: dict[str, ArtifactRef] = {}
        for passages in (None, *found):
            refs |= evaluations_of(place, log, label, network, evaluate, passages=passages, **asked)
        return refs
