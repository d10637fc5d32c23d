"""The pipeline's stage `trace`: what its models, a completion and an evaluation set owe to the corpus."""

from __future__ import annotations

from typing import Any

from longloom.flows.artifacts import publish_contamination, publish_trace
from longloom.flows.model import label_of, model_of
from longloom.flows.params_pipeline import TracingParams
from longloom.flows.params_sources import ContaminationParams, ExplainParams
from longloom.flows.params_trace import TraceParams
from longloom.flows.trace import named
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.corpus.task import ask_of_functions, plant_record
from longloom.tasks.sources.task import complete, contamination, explain
from longloom.tasks.trace.task import pairs_of, parameters_of, scores_of, study_of

#: Of n-grams: the model's own.
EMBEDDING = TraceParams.model_fields["embeddings"].default[0]
#: What the records' text is called in `planted.jsonl`.
TEXT = "text"


def explained(
    store: Store, log: RunLog, params: TracingParams, *, corpus: ArtifactRef, index: ArtifactRef, model: ArtifactRef
) -> None:
    """Greedy continuations of pieces of the corpus, and where what the model wrote stands."""
    written = log.add(
        "explain/completions",
        complete(
            store,
            model,
            corpus,
            count=params.completions,
            prompt_tokens=params.prompt_tokens,
            new_tokens=params.new_tokens,
            seed=params.seed,
        ),
    )
    shown = {name: ExplainParams.model_fields[name].default for name in ("documents", "context")}
    options: dict[str, Any] = {"text": None, "limit": None, "share": params.share, **shown}
    log.add("explain", explain(store, index, written, label="completions", **options))


def memorized(
    store: Store,
    log: RunLog,
    params: TracingParams,
    *,
    corpus: ArtifactRef,
    tokenizer: ArtifactRef,
    index: ArtifactRef,
    model: ArtifactRef,
    part: str = "trace",
) -> ArtifactRef:
    """The study of memorization on functions of the corpus and held-out ones, by two models.

    `part` begins the labels in the log, where a run studies several draws.
    """
    small = params.small
    name = small.size if small.source == "scratch" else label_of(small)
    _, name = named(["base", small.source], ["base", name], "model")
    models = {"base": model, name: log.add(f"{part}/model/{name}", model_of(store, small, corpus, tokenizer))}
    parts: list[tuple[str, tuple[Any, ...], ArtifactRef]] = []

    def add(kind: str, key: tuple[Any, ...], ref: ArtifactRef) -> ArtifactRef:
        parts.append((kind, key, ref))
        return log.add(f"{part}/{kind}/{'/'.join(map(str, key))}", ref)

    gammas = dict(zip(params.n, params.gamma, strict=True))
    for side, held_out in (("corpus", False), ("held-out", True)):
        asked = ask_of_functions(store, functions=params.functions, held_out=held_out, seed=params.seed)
        records = add("records", (side,), asked)
        for n, gamma in gammas.items():
            pairs = pairs_of(
                store, records, index, model, embedding=EMBEDDING, label=f"{side}-{n}", n=n, gamma=gamma,
                mode="paper", least=1,
            )  # fmt: skip
            add("pairs", (side, n, EMBEDDING), pairs)
        for label, network in models.items():
            scores = scores_of(
                store, records, network, label=f"{side}-{label}", batch=params.batch, new_tokens=0, device=None,
                dtype=None,
            )  # fmt: skip
            add("scores", (side, label), scores)
    sizes = {key[1]: parameters_of(store, ref) for kind, key, ref in parts if kind == "scores"}
    study = study_of(
        store, parts, gammas=gammas, label="functions", parameters=sizes, embeddings=[EMBEDDING], mode="paper"
    )
    publish_trace(store, study, key="functions")
    return log.add(part, study)


def flagged(store: Store, log: RunLog, params: TracingParams, *, index: ArtifactRef) -> None:
    """A small evaluation set with a record out of the corpus, looked up in it."""
    planted = log.add("planted", plant_record(store, clean=params.clean, seed=params.seed))
    by = ContaminationParams.model_fields["by"].default
    found = contamination(
        store, index, planted, None, suite=None, label="planted", tasks=None, suite_options={}, seed=0, fields=[TEXT],
        limit=None, by=by,
    )  # fmt: skip
    publish_contamination(store, found, key="planted")
    log.add("contamination/planted", found)
