"""Prefect tasks of the report and of the comparison of two reports."""

from __future__ import annotations

from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage


@stage("report", version=5)
def _report(work: Work, *, title: str) -> Stats:
    from longloom.tasks.report.build import build

    manifests = {label: work.store.manifest(ref).model_dump() for label, ref in work.refs.items()}
    return build(work.inputs, manifests, work.out, title=title, progress=work.progress)


@stage("compare", version=2)
def _compare(work: Work) -> Stats:
    from longloom.tasks.report.compare import build

    return build(work.inputs["first"], work.inputs["second"], work.out)


def report(store: Store, sections: dict[str, ArtifactRef], *, title: str) -> ArtifactRef:
    """One page over the artifacts of a run, label -> artifact."""
    return _report(store, sections, title=title)


def compare(store: Store, first: ArtifactRef, second: ArtifactRef) -> ArtifactRef:
    """Two reports side by side."""
    return _compare(store, {"first": first, "second": second})
