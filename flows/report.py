"""Flow `report`: a page over the artifacts of any run."""

from __future__ import annotations

from prefect import flow

from longloom.flows.artifacts import publish_report
from longloom.flows.params import DEFAULT_STORE
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import get_run
from longloom.storage.store import Store
from longloom.tasks.report.task import renew_start_page, report_of


@flow(name="report", flow_run_name="report-{run}")
def report(run: str = "latest", store: str = DEFAULT_STORE) -> ArtifactRef:
    """Builds the page of a run, or finds the one it made."""
    place = Store(store)
    found = get_run(place, run)
    ref = report_of(place, found)
    publish_report(place, ref, key=found.flow)
    renew_start_page(place)
    return ref
