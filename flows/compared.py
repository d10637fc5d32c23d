"""Two runs side by side: what flow `compare` does, without Prefect, which would take longer than all of it."""

from __future__ import annotations

from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import get_run
from longloom.storage.store import Store
from longloom.tasks.report.task import compare


def report_of(store: Store, name: str) -> ArtifactRef:
    """The report of a run.

    Raises:
        ValueError: no such run, or one that did not come to its report.
    """
    run = get_run(store, name)
    if "report" not in run.stages:
        raise ValueError(f"run {run.id} ({run.flow}, {run.state}): has no report; compare takes two pipeline runs")
    return run.stages["report"]


def compared(store: Store, first: str, second: str) -> ArtifactRef:
    """Scores of two pipeline runs, their differences with intervals, and what differs in their parameters.

    Args:
        store: of both runs.
        first, second: ids, beginnings of ids, or `latest`.
    """
    return compare(store, report_of(store, first), report_of(store, second))
