"""Two runs side by side: what flow `compare` does, without Prefect, which would take longer than all of it."""

from __future__ import annotations

from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import Run, get_run, list_runs
from longloom.storage.store import Store
from longloom.tasks.report.task import compare


def _reported(store: Store, name: str) -> Run:
    """The run, which has a report; for `latest`, of the newest run that has one.

    Raises:
        ValueError: no such run, or one that did not come to its report.
    """
    run = get_run(store, name)
    if name == "latest" and "report" not in run.stages:
        run = next((other for other in list_runs(store) if "report" in other.stages), run)
    if "report" not in run.stages:
        raise ValueError(f"run {run.id} ({run.flow}, {run.state}): has no report; compare takes two pipeline runs")
    return run


def compared(store: Store, first: str, second: str) -> tuple[ArtifactRef, tuple[str, str]]:
    """Scores of two pipeline runs, their differences with intervals, and what differs in their parameters.

    Args:
        store: of both runs.
        first, second: ids, beginnings of ids, or `latest`, the newest run with a report.

    Returns:
        The comparison, and the ids of both runs, which it does not hold: equal reports have one comparison.
    """
    for name in (first, second):  # a name that no run has is told before a run that has no report
        get_run(store, name)
    a, b = (_reported(store, name) for name in (first, second))
    return compare(store, a.stages["report"], b.stages["report"]), (a.id, b.id)
