"""Flow `coreset`: an instruction pool, gradients of its examples, and a selection by each method."""

from __future__ import annotations

from typing import Any

from prefect import flow

from longloom.flows.checks import check_coreset, check_model, check_sources
from longloom.flows.model import is_small, model_of
from longloom.flows.params import DEFAULT_STORE, InstructionsParams, ModelParams
from longloom.flows.params_coreset import WARMUP_RATE, CoresetParams
from longloom.flows.params_preference import ComparisonsParams
from longloom.flows.sources import of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.coreset.task import (
    check_budget,
    gradient_features,
    import_warmup,
    needs,
    needs_features,
    pool_size,
    select,
)
from longloom.tasks.corpus.task import read_instructions
from longloom.tasks.preference.task import read_comparisons, warm_up_reward
from longloom.tasks.training.task import warm_up


def coresets_of(
    store: Store,
    log: RunLog,
    model: ArtifactRef,
    instructions: ArtifactRef,
    params: CoresetParams,
    *,
    part: str = "",
) -> dict[str, ArtifactRef]:
    """One coreset a method; the gradients are taken once, and only if a method looks at them.

    `part` ends the labels in the log, where a run asks several times.
    """
    share = params.share if params.count is None else None
    if bool(params.preferences) != (instructions.kind == "comparisons"):
        raise ValueError(
            f"coreset.preferences: found {', '.join(params.preferences)}, expected none here; `longloom coreset`"
            " chooses from preference data"
        )
    check_budget(share, params.count, instructions)
    features = targets = None
    if any(needs_features(method) for method in params.methods):
        warmup = _warmup_of(store, model, instructions, params)
        log.add(f"warmup{part}", warmup)
        options = params.model_dump(
            include={"dimension", "seed", "max_length", "bias_correction", "threads", "workers"}
        )
        features = log.add(f"features{part}", gradient_features(store, model, instructions, warmup, **options))
        if params.targets:
            examples = log.add(f"targets{part}", _examples_of(store, params.targets, params))
            gradients = gradient_features(store, model, examples, warmup, **options, adam=False)
            targets = (examples, log.add(f"target-features{part}", gradients))
    return {
        method: log.add(
            f"coreset/{method}{part}",
            select(
                store,
                instructions,
                features if needs_features(method) else None,
                method=method,
                targets=targets if needs(method, "targets") else None,
                share=share,
                **params.model_dump(include={"count", "clusters", "mode", "side", "seed", "threads", "workers"}),
            ),
        )
        for method in params.methods
    }


def _examples_of(store: Store, sources: list[str], params: CoresetParams) -> ArtifactRef:
    """Preference data or instructions, whichever is chosen from."""
    if not params.preferences:
        return read_instructions(store, **InstructionsParams(sources=sources).model_dump())
    given = ComparisonsParams(sources=sources).model_dump(
        include={"sources", "contexts", "on_bad_record", "rows", "seed"}
    )
    return read_comparisons(store, side="train", **given)


def _warmup_of(store: Store, model: ArtifactRef, instructions: ArtifactRef, params: CoresetParams) -> ArtifactRef:
    """The warm-up that was given, or one that is trained here."""
    if params.warmup is not None:
        return import_warmup(store, model, params.warmup)
    options: dict[str, Any] = {
        "share": params.warmup_share,
        "checkpoints": params.checkpoints,
        "epochs": params.warmup_epochs,
        "batch": params.batch,
        "learning_rate": params.warmup_learning_rate or WARMUP_RATE.of(is_small(store, model)),
        "rank": params.rank,
        "alpha": params.alpha,
        "max_length": params.max_length,
        "seed": params.seed,
    }
    if params.preferences:
        return warm_up_reward(store, model, instructions, **options)
    return warm_up(store, model, instructions, dropout=0.0, **options)


def coreset_of(store: Store, source: str, instructions: ArtifactRef) -> ArtifactRef:
    """The coreset `run:ID:LABEL`, which names examples of these instructions, or comparisons, by their place.

    Raises:
        ValueError: there is none, or it was chosen from other instructions.
    """
    found = of_run(store, source, "coreset")
    if store.manifest(found).parents["instructions"] != instructions.digest:
        raise ValueError(
            f"coreset {source!r}: chosen from other {instructions.kind} ({found.counts['pool']} examples), expected"
            f" these {pool_size(instructions)}"
        )
    return found


@flow(name="coreset", flow_run_name="coreset-{model.source}")
def select_coreset(
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    model: ModelParams = ModelParams(),  # noqa: B008
    coreset: CoresetParams = CoresetParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Chooses a few percent of an instruction pool by gradient clusters and orthogonal matching pursuit (TAGCOS).

    With `coreset.preferences` the pool are comparisons, and the gradients those of a reward model's pairwise loss.
    """
    place = Store(store)
    check_coreset(coreset, preferences=True)
    if not coreset.preferences:
        check_sources(instructions.sources)
    check_model(place, model, trained=False)
    given = {"instructions": instructions.model_dump(), "model": model.model_dump(), "coreset": coreset.model_dump()}
    with RunLog(place, "coreset", given) as log:
        if coreset.preferences:
            pool = log.add("comparisons", _examples_of(place, coreset.preferences, coreset))
        else:
            pool = log.add("instructions", read_instructions(place, **instructions.model_dump()))
        network = log.add("model", model_of(place, model, None, None))
        return coresets_of(place, log, network, pool, coreset)
