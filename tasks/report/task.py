"""Prefect tasks of the report, of comparing two reports and of the proof of coresets; and the store's start page."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import PAGES, Run
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.stage import Work, stage


@stage("report", version=9)
def _report(work: Work, *, title: str) -> Stats:
    from longloom.tasks.report.build import build

    manifests = {label: work.store.manifest(ref).model_dump() for label, ref in work.refs.items()}
    return build(work.inputs, manifests, work.out, title=title, progress=work.progress)


@stage("compare", version=5)
def _compare(work: Work) -> Stats:
    from longloom.tasks.report.compare import build

    pages = [f"../../../{work.refs[name].uri}/index.html" for name in ("first", "second")]  # as seen from its own
    return build(work.inputs["first"], work.inputs["second"], work.out, pages=(pages[0], pages[1]))


@stage("proof", version=1)
def _proof(work: Work, *, arms: list[dict[str, Any]]) -> Stats:
    from longloom.tasks.report.proof import build

    return build([work.inputs[str(number)] for number in range(len(arms))], work.out, arms=arms)


def report(store: Store, sections: dict[str, ArtifactRef], *, title: str) -> ArtifactRef:
    """One page over the artifacts of a run, label -> artifact."""
    return _report(store, sections, title=title)


def report_of(store: Store, run: Run) -> ArtifactRef:
    """The page of a run: the one it made, else one over all its artifacts.

    Raises:
        ValueError: it has none.
    """
    sections = {label: ref for label, ref in run.stages.items() if ref.kind not in PAGES}
    if not sections:
        raise ValueError(f"run {run.id} ({run.flow}, {run.state}): has no artifacts to report on")
    return run.stages.get("report") or report(store, sections, title=f"longloom: {run.flow} {run.id}")


def compare(store: Store, first: ArtifactRef, second: ArtifactRef) -> ArtifactRef:
    """Two reports side by side."""
    return _compare(store, {"first": first, "second": second})


def proof(store: Store, heldout: list[ArtifactRef], *, arms: list[dict[str, Any]]) -> ArtifactRef:
    """The held-out losses of many trainings in one table, with what they say of each selection method."""
    return _proof(store, {str(number): ref for number, ref in enumerate(heldout)}, arms=arms)


def start_page(store: Store) -> Path:
    """Writes the page that lists the store's runs with their reports, `<store>/index.html`."""
    from longloom.tasks.report.start import write_start

    return write_start(store)


def renew_start_page(store: Store) -> None:
    """`start_page` at the end of a run, which does not fail for it: everything else has been published."""
    with contextlib.suppress(OSError):
        start_page(store)
