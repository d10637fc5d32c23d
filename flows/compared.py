"""Two runs side by side: what flow `compare` does, without Prefect, which would take longer than all of it."""

from __future__ import annotations

from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import get_run, list_runs
from longloom.storage.store import Store
from longloom.tasks.report.task import compare


def report_of(store: Store, name: str) -> ArtifactRef:
    """The report of a run; for `latest`, of the newest run that has one.

    Raises:
        ValueError: no such run, or one that did not come to its report.
    """
    run = get_run(store, name)
    if name == "latest" and "report" not in run.stages:
        run = next((other for other in list_runs(store) if "report" in other.stages), run)
    if "report" not in run.stages:
        raise ValueError(f"run {run.id} ({run.flow}, {run.state}): has no report; compare takes two pipeline runs")
    return run.stages["report"]


def compared(store: Store, first: str, second: str) -> ArtifactRef:
    """Scores of two pipeline runs, their differences with intervals, and what differs in their parameters.

    Args:
        store: of both runs.
        first, second: ids, beginnings of ids, or `latest`, the newest run with a report.
    """
    for name in (first, second):  # a name that no run has is told before a run that has no report
        get_run(store, name)
    return compare(store, report_of(store, first), report_of(store, second))
