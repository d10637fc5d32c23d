"""Flow `finetune`: trains a model on an instruction pool or on a coreset of it."""

from __future__ import annotations

from prefect import flow

from longloom.flows.coreset import coresets_of
from longloom.flows.model import model_of
from longloom.flows.params import DEFAULT_STORE, CoresetParams, FinetuneParams, InstructionsParams, ModelParams
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.coreset.task import check_methods
from longloom.tasks.corpus.task import read_instructions
from longloom.tasks.training.task import finetune as finetune_task


@flow(name="finetune", flow_run_name="finetune-{model.source}")
def finetune(
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    model: ModelParams = ModelParams(),  # noqa: B008
    coreset: CoresetParams | None = None,
    finetune: FinetuneParams = FinetuneParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Fine-tunes on everything, or with `coreset` on what each of its methods chooses."""
    check_methods(coreset.methods if coreset else [])
    place = Store(store)
    given = {
        "instructions": instructions.model_dump(),
        "model": model.model_dump(),
        "coreset": coreset.model_dump() if coreset else None,
        "finetune": finetune.model_dump(),
    }
    with RunLog(place, "finetune", given) as log:
        pool = log.add("instructions", read_instructions(place, **instructions.model_dump()))
        network = log.add("model", model_of(place, model, None, None))
        chosen: dict[str, ArtifactRef | None] = {"all": None}
        if coreset is not None:
            chosen = dict(coresets_of(place, log, network, pool, coreset))
        return {
            label: log.add(
                f"finetune/{label}", finetune_task(place, network, pool, picked, label=label, **finetune.model_dump())
            )
            for label, picked in chosen.items()
        }
