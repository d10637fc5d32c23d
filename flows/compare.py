"""Flow `compare`: two runs side by side."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from longloom.flows.compared import compared
from longloom.flows.params import DEFAULT_STORE
from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store


@flow(name="compare", flow_run_name="compare-{first}-{second}")
def compare(first: str, second: str, store: str = DEFAULT_STORE) -> ArtifactRef:
    """Scores of two runs, their differences with intervals, and what differs in their parameters and inputs."""
    place = Store(store)
    ref, runs = compared(place, first, second)
    text = (place.open(ref) / "compare.md").read_text(encoding="utf-8")
    create_markdown_artifact(markdown=text, key="compare", description=" and ".join(runs))
    return ref
