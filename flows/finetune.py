"""Flow `finetune`: trains a model on an instruction pool or on a coreset of it."""

from __future__ import annotations

from prefect import flow

from longloom.flows.checks import check_coreset, check_model, check_sources
from longloom.flows.coreset import coreset_of, coresets_of
from longloom.flows.model import model_of
from longloom.flows.params import DEFAULT_STORE, FinetuneParams, InstructionsParams, ModelParams
from longloom.flows.params_coreset import CoresetParams
from longloom.flows.sources import of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.corpus.task import read_instructions
from longloom.tasks.training.task import finetune as finetune_task


@flow(name="finetune", flow_run_name="finetune-{model.source}")
def finetune(
    instructions: InstructionsParams = InstructionsParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    model: ModelParams = ModelParams(),  # noqa: B008
    coreset: CoresetParams | None = None,
    finetune: FinetuneParams = FinetuneParams(),  # noqa: B008
    chosen: str | None = None,
    store: str = DEFAULT_STORE,
) -> dict[str, ArtifactRef]:
    """Fine-tunes on everything, with `coreset` on what each of its methods chooses, or on a coreset of an earlier run.

    `chosen` is run:ID:LABEL of a coreset of the same instructions; it may have been chosen for another model.
    """
    if coreset is not None and chosen is not None:
        raise ValueError(f"found both parameters of coresets and a coreset, {chosen!r}; expected one of them")
    place = Store(store)
    check_sources(instructions.sources)
    check_model(place, model, trained=False)
    if coreset is not None:
        check_coreset(coreset)
    if chosen is not None:
        of_run(place, chosen, "coreset")
    given = {
        "instructions": instructions.model_dump(),
        "model": model.model_dump(),
        "coreset": coreset.model_dump() if coreset else None,
        "finetune": finetune.model_dump(),
        "chosen": chosen,
    }
    with RunLog(place, "finetune", given) as log:
        pool = log.add("instructions", read_instructions(place, **instructions.model_dump()))
        network = log.add("model", model_of(place, model, None, None))
        examples: dict[str, ArtifactRef | None] = {"all": None}
        if coreset is not None:
            examples = dict(coresets_of(place, log, network, pool, coreset))
        if chosen is not None:
            label = chosen.rpartition(":")[2].removeprefix("coreset/")
            examples = {label: log.add(f"coreset/{label}", coreset_of(place, chosen, pool))}
        return {
            label: log.add(
                f"finetune/{label}", finetune_task(place, network, pool, picked, label=label, **finetune.model_dump())
            )
            for label, picked in examples.items()
        }
