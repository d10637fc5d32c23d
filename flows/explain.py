"""Flow `explain`: the verbatim spans of a text, or of an evaluation's answers, with the documents that hold them."""

from __future__ import annotations

from prefect import flow

from longloom.flows.params import DEFAULT_STORE
from longloom.flows.params_sources import ExplainParams
from longloom.flows.sources import RUN_PREFIX, index_of, of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog
from longloom.storage.store import Store
from longloom.tasks.sources.task import explain as explain_task


def check_explain(params: ExplainParams) -> None:
    """Raises ValueError where there is nothing to explain."""
    if params.text is None and params.answers is None:
        raise ValueError("found no text and no answers, expected one of them to explain")
    if params.text is not None and not params.text.strip():
        raise ValueError("the text is blank, expected one to explain")


@flow(name="explain")
def explain(explain: ExplainParams, store: str = DEFAULT_STORE) -> ArtifactRef:
    """Finds what stands verbatim in the corpus, the rarest spans first."""
    check_explain(explain)
    place = Store(store)
    with RunLog(place, "explain", explain.model_dump(exclude={"text"})) as log:
        index = index_of(place, explain.index)
        answers: ArtifactRef | str | None = explain.answers
        if explain.answers is not None and explain.answers.startswith(RUN_PREFIX):
            answers = of_run(place, explain.answers, "evaluation")
        options = explain.model_dump(exclude={"index", "answers"})
        return log.add("explain", explain_task(place, index, answers, label="", **options))
