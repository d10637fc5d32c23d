"""What a flow run shows on its page in the Prefect UI: tables of scores and the report."""

from __future__ import annotations

import re
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext

from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store

#: The server refuses parameters and artifacts beyond about 512 KB.
LIMIT = 400_000


def _key(text: str) -> str:
    """Prefect's keys: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def publish_scores(store: Store, ref: ArtifactRef, *, key: str) -> None:
    """The scores of one evaluation as a table artifact."""
    if FlowRunContext.get() is None:
        return
    import pyarrow.parquet as pq

    rows = [{"run": key, **row} for row in pq.read_table(store.open(ref) / "scores.parquet").to_pylist()]
    create_table_artifact(table=rows, key=_key(f"scores-{key}"), description=f"{key}, artifact {ref.short()}")


def publish_judgement(store: Store, ref: ArtifactRef, *, key: str) -> None:
    """The counts of a judge's verdicts as a table artifact."""
    if FlowRunContext.get() is None:
        return
    manifest = store.verify(store.open(ref))
    row = {"task": key, "win rate": manifest.values["win_rate"], **manifest.counts}
    create_table_artifact(table=[row], key=_key(f"judge-{key}"), description=f"{key}, artifact {ref.short()}")


def publish_heads(store: Store, ref: ArtifactRef, *, key: str) -> None:
    """The strongest heads of a profile as a table artifact; its description says where the heat map lies."""
    if FlowRunContext.get() is None:
        return
    folder = store.open(ref)
    description = f"{key}, artifact {ref.short()}, its heat map: {folder / 'heads.png'}"
    strongest: Any = store.verify(folder).values["strongest"]
    rows = [{"model": key, **row} for row in strongest]
    create_table_artifact(table=rows, key=_key(f"heads-{key}"), description=description)


def publish_trace(store: Store, ref: ArtifactRef, *, key: str) -> None:
    """Memorization by set, task, n and model as a table artifact; its description says where tables and figures lie."""
    if FlowRunContext.get() is None:
        return
    folder = store.open(ref)
    rows: Any = store.verify(folder).values["memorization"]
    description = f"{key}, artifact {ref.short()}, its tables and figures: {folder}"
    create_table_artifact(table=rows, key=_key(f"trace-{key}"), description=description)


def publish_contamination(store: Store, ref: ArtifactRef, *, key: str) -> None:
    """Flagged records, a row a task, as a table artifact; its description says where every record's row lies."""
    if FlowRunContext.get() is None:
        return
    folder = store.open(ref)
    manifest = store.verify(folder)
    tasks: Any = manifest.values["tasks"]
    rows = [{"task": task, "contaminated": flagged} for task, flagged in tasks.items()]
    rows.append({"task": f"all {manifest.counts['records']} records", "contaminated": manifest.counts["contaminated"]})
    description = f"{key}, artifact {ref.short()}, its records: {folder / 'contamination.parquet'}"
    create_table_artifact(table=rows, key=_key(f"contamination-{key}"), description=description)


def publish_report(store: Store, ref: ArtifactRef, *, key: str) -> None:
    """The report as a Markdown artifact; its description says where the page lies (the UI strips links to files)."""
    if FlowRunContext.get() is None:
        return
    folder = store.open(ref)
    text = (folder / "report.md").read_text(encoding="utf-8")
    description = f"artifact {ref.short()}, its page: {folder / 'index.html'}"
    create_markdown_artifact(markdown=text[:LIMIT], key=_key(f"report-{key}"), description=description)
