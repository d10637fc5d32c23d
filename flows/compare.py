"""Flow `compare`: two runs side by side."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext

from longloom.flows.params import DEFAULT_STORE
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import get_run
from longloom.storage.store import Store
from longloom.tasks.report.task import compare as compare_task


def report_of(store: Store, name: str) -> ArtifactRef:
    """The report of a run.

    Raises:
        ValueError: no such run, or one that did not come to its report.
    """
    run = get_run(store, name)
    if "report" not in run.stages:
        raise ValueError(f"run {run.id} ({run.flow}, {run.state}): has no report; compare takes two pipeline runs")
    return run.stages["report"]


@flow(name="compare", flow_run_name="compare-{first}-{second}")
def compare(first: str, second: str, store: str = DEFAULT_STORE) -> ArtifactRef:
    """Scores of two pipeline runs, their differences with intervals, and what differs in their parameters."""
    place = Store(store)
    ref = compare_task(place, report_of(place, first), report_of(place, second))
    if FlowRunContext.get() is not None:
        text = (place.open(ref) / "compare.md").read_text(encoding="utf-8")
        create_markdown_artifact(markdown=text, key="compare", description=f"{first} and {second}")
    return ref
