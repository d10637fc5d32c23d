"""Flow `trace`: how far what models answer follows from how often it stands in their corpus, on anyone's of the three.

Source: Generalization v.s. Memorization (arXiv 2407.14985).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prefect import flow

from longloom.flows.artifacts import publish_trace
from longloom.flows.checks import check_model, check_place
from longloom.flows.model import label_of, model_of
from longloom.flows.params import DEFAULT_STORE, ModelParams
from longloom.flows.params_trace import TraceParams
from longloom.flows.sources import RUN_PREFIX, index_of, of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.trace.task import (
    check_embedding,
    check_template,
    gammas_of,
    influence_of,
    novelty_of,
    pairs_of,
    parameters_of,
    records_of,
    scores_of,
    study_of,
)

Part = tuple[str, tuple[Any, ...], ArtifactRef]


def name_of(data: str) -> str:
    """What to call an evaluation set: the file's or the folder's name, or an evaluation's label."""
    if data.startswith(RUN_PREFIX):
        return data.removeprefix(RUN_PREFIX).partition(":")[2].removeprefix("evaluation/")
    return Path(data).stem


def named(values: list[str], names: list[str], what: str) -> dict[str, str]:
    """Name -> value; what several values would share gets a number.

    Raises:
        ValueError: a name is empty.
    """
    found: dict[str, str] = {}
    for value, name in zip(values, names, strict=True):
        if not name:
            raise ValueError(f"{what} {value!r}: has no name that could be told, expected a file, folder or hub name")
        number = 1
        while (unique := name if number == 1 else f"{name} ({number})") in found:
            number += 1
        found[unique] = value
    return found


@flow(name="trace", flow_run_name="trace-{trace.mode}")
def trace(trace: TraceParams, store: str = DEFAULT_STORE) -> ArtifactRef:
    """Traces models' answers back to the corpus: memorization, performance, novelty and influence by model size."""
    place = Store(store)
    gammas = gammas_of(trace.n, trace.gamma, trace.thresholds)
    if trace.influence and trace.mode == "released":
        raise ValueError(
            f"influence is {trace.influence} in mode released, whose pairs may stand in no document; omit it"
        )
    _check_places(place, trace)
    with RunLog(place, "trace", {"trace": trace.model_dump()}) as log:
        index = index_of(place, trace.index)
        if isinstance(index, ArtifactRef):
            log.add("index", index)
        models = {
            name: (source, log.add(f"model/{name}", model_of(place, ModelParams(source=source), None, None)))
            for name, source in named(
                trace.models, [label_of(ModelParams(source=s)) for s in trace.models], "model"
            ).items()
        }
        embeddings = named(trace.embeddings, [re.split("/", e.rstrip("/"))[-1] for e in trace.embeddings], "embedding")
        parts: list[Part] = []
        for name, data in named(trace.data, [name_of(data) for data in trace.data], "data").items():
            given = of_run(place, data, "evaluation") if data.startswith(RUN_PREFIX) else data
            records = records_of(place, given, trace.evaluated, label=name, template=trace.prompt, limit=trace.limit)
            parts.append(("records", (name,), log.add(f"records/{name}", records)))
            parts += _parts(place, log, trace, name, records, index, models, embeddings, gammas)
        sizes = {key[1]: parameters_of(place, ref) for kind, key, ref in parts if kind == "scores"}
        ref = study_of(
            place,
            parts,
            gammas=gammas,
            label=trace.mode,
            parameters=sizes,
            embeddings=list(embeddings),
            mode=trace.mode,
        )
        publish_trace(place, ref, key=trace.mode)
        return log.add("trace", ref)


def _check_places(store: Store, params: TraceParams) -> None:
    """Finds what is not there before the first stage runs (ValueError, FileNotFoundError)."""
    check_template(params.prompt)
    for data in params.data:
        if data.startswith(RUN_PREFIX):
            of_run(store, data, "evaluation")
        else:
            check_place(data)
    check_place(params.evaluated)
    for source in params.models:
        check_model(store, ModelParams(source=source), trained=False)
    for embedding in params.embeddings:
        check_embedding(embedding)


def _parts(
    store: Store,
    log: RunLog,
    params: TraceParams,
    name: str,
    records: ArtifactRef,
    index: ArtifactRef | str,
    models: dict[str, tuple[str, ArtifactRef]],
    embeddings: dict[str, str],
    gammas: dict[int, float],
) -> list[Part]:
    """What is mined, looked up and scored of one evaluation set."""
    parts: list[Part] = []
    _, first = next(iter(models.values()))

    def add(kind: str, key: tuple[Any, ...], ref: ArtifactRef) -> ArtifactRef:
        log.add(f"{kind}/{'/'.join(map(str, key))}", ref)
        parts.append((kind, key, ref))
        return ref

    pairs = {
        (n, embedding): add(
            "pairs",
            (name, n, embedding),
            pairs_of(
                store, records, index, first, embedding=source, label=f"{name}-{n}-{embedding}", n=n, gamma=gamma,
                mode=params.mode, least=params.least,
            ),
        )
        for n, gamma in gammas.items()
        for embedding, source in embeddings.items()
    }  # fmt: skip
    main, embedding = next(iter(embeddings.items()))
    for model, (source, network) in models.items():
        label = f"{name}-{model}"
        scores = scores_of(
            store,
            records,
            network,
            label=label,
            batch=params.batch,
            new_tokens=params.new_tokens,
            device=None,
            dtype=None,
        )
        add("scores", (name, model), scores)
        for n, gamma in gammas.items():
            if params.new_tokens:
                novelty = novelty_of(
                    store, records, scores, index, first, embedding=embedding, label=f"{label}-{n}", n=n, gamma=gamma
                )
                add("novelty", (name, n, model), novelty)
            if params.influence:
                influence = influence_of(
                    store, records, pairs[n, main], index, network, source, label=f"{label}-{n}", gamma=gamma,
                    count=params.influence, documents=params.documents, seed=params.seed, device=None,
                )  # fmt: skip
                add("influence", (name, n, model), influence)
    return parts
