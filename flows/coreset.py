"""Flow `coreset`: an instruction pool, gradients of its examples, and a selection by each method."""

from __future__ import annotations

from prefect import flow

from longloom.flows.model import model_of
from longloom.flows.params import DEFAULT_STORE, CoresetParams, InstructionsParams, ModelParams
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.coreset.task import check_methods, gradient_features, needs_features, select
from longloom.tasks.corpus.task import read_instructions
from longloom.tasks.training.task import warm_up


def coresets_of(
    store: Store, log: RunLog, model: ArtifactRef, instructions: ArtifactRef, params: CoresetParams
) -> dict[str, ArtifactRef]:
    """One coreset a method; the gradients are taken once, and only if a method looks at them."""
    features = None
    if any(needs_features(method) for method in params.methods):
        warmup = warm_up(
            store,
            model,
            instructions,
            share=params.warmup_share,
            checkpoints=params.checkpoints,
            epochs=params.warmup_epochs,
            batch=params.batch,
            learning_rate=params.warmup_learning_rate,
            rank=params.rank,
            alpha=params.alpha,
            dropout=0.0,
            max_length=params.max_length,
            seed=params.seed,
        )
        log.add("warmup", warmup)
        features = gradient_features(
            store,
            model,
            instructions,
            warmup,
            dimension=params.dimension,
            seed=params.seed,
            max_length=params.max_length,
        )
        log.add("features", features)
    return {
        method: log.add(
            f"coreset/{method}",
            select(
                store,
                instructions,
                features if needs_features(method) else None,
                method=method,
                share=params.share if params.count is None else None,
                count=params.count,
                clusters=params.clusters,
                mode=params.mode,
                seed=params.seed,
            ),
        )
        for method in params.methods
    }


@flow(name="coreset", flow_run_name="coreset-{model.source}")
def select_coreset(
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    model: ModelParams = ModelParams(),  # noqa: B008
    coreset: CoresetParams = CoresetParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Chooses a few percent of an instruction pool by gradient clusters and orthogonal matching pursuit (TAGCOS)."""
    check_methods(coreset.methods)
    place = Store(store)
    given = {"instructions": instructions.model_dump(), "model": model.model_dump(), "coreset": coreset.model_dump()}
    with RunLog(place, "coreset", given) as log:
        pool = log.add("instructions", read_instructions(place, **instructions.model_dump()))
        network = log.add("model", model_of(place, model, None, None))
        return coresets_of(place, log, network, pool, coreset)
