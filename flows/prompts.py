"""Flow `prompts`: prompts ranked by how often their n-grams stand in the corpus, given ones and a model's rewrites."""

from __future__ import annotations

from prefect import flow

from longloom.flows.params import DEFAULT_STORE
from longloom.flows.params_sources import PromptsParams
from longloom.flows.sources import index_of
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.sources.task import prompts as prompts_task


@flow(name="prompts")
def prompts(prompts: PromptsParams, store: str = DEFAULT_STORE) -> ArtifactRef:
    """Ranks prompts from frequent to rare, and has a model rewrite one in both directions."""
    place = Store(store)
    with RunLog(place, "prompts", prompts.model_dump()) as log:
        options = prompts.model_dump(exclude={"index", "candidates", "endpoint"})
        options |= prompts.endpoint.model_dump()
        if prompts.model is None:  # then how many rounds it would get changes nothing
            options["rounds"] = 0
        ref = prompts_task(place, index_of(place, prompts.index), prompts.candidates, label="", **options)
        return log.add("prompts", ref)
