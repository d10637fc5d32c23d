"""Flow `heads`: which KV heads of a model look things up, for the KV policies that protect them."""

from __future__ import annotations

from prefect import flow

from longloom.flows.artifacts import publish_heads
from longloom.flows.checks import check_model
from longloom.flows.model import label_of, model_of
from longloom.flows.params import DEFAULT_STORE, ModelParams
from longloom.flows.params_evaluate import HeadsParams
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.longcontext.heads_task import heads as heads_task


@flow(name="heads", flow_run_name="heads-{model.source}")
def heads(
    model: ModelParams = ModelParams(),  # noqa: B008 (frozen; Prefect shows it as the form's default)
    heads: HeadsParams = HeadsParams(),  # noqa: B008
    store: str = DEFAULT_STORE,
) -> ArtifactRef:
    """Scores every KV head of a model, on random tokens or as published, and says which to protect."""
    place = Store(store)
    check_model(place, model, trained=False)
    with RunLog(place, "heads", {"model": model.model_dump(), "heads": heads.model_dump()}) as log:
        label = label_of(model)
        network = log.add("model", model_of(place, model, None, None))
        ref = heads_task(place, network, label=label, **heads.model_dump())
        publish_heads(place, ref, key=label)
        return log.add(f"heads/{label}", ref)
