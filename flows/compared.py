"""Two runs side by side: what flow `compare` does, without Prefect, which would take longer than all of it."""

from __future__ import annotations

from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import Run, get_run, list_runs
from longloom.storage.store import Store
from longloom.tasks.report.task import compare, report_of

#: Kinds of which a run has one that is worth comparing.
_SCORED = frozenset(("report", "evaluation", "preference-evaluation"))


def _run(store: Store, name: str) -> Run:
    """The run; `latest` passes over those without scores."""
    found = get_run(store, name)
    if name != "latest":
        return found
    runs = (run for run in list_runs(store) if _SCORED & {ref.kind for ref in run.stages.values()})
    return next(runs, found)


def compared(store: Store, first: str, second: str) -> tuple[ArtifactRef, tuple[str, str]]:
    """Scores of two runs, their differences with intervals, and what differs in their parameters and inputs.

    Args:
        store: of both runs.
        first, second: ids, beginnings of ids, or `latest`, the newest run with a report or an evaluation.

    Returns:
        The comparison, and the ids of both runs, which it does not hold: equal reports have one comparison.

    Raises:
        ValueError: no such run, or one without artifacts.
    """
    a, b = (_run(store, name) for name in (first, second))  # a name that no run has is told before all else
    return compare(store, report_of(store, a), report_of(store, b)), (a.id, b.id)
