"""What `longloom replicate` prints: a row a claim, and where the page lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rich.table import Table

from longloom.flows.show import console, show
from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store


def show_replication(refs: dict[str, ArtifactRef], store: str, out: str | None, *, as_json: bool) -> None:
    """A table for people, all of `replicate.json` for machines; with `out`, both files for a repository."""
    from longloom.tasks.replicate.build import MARKDOWN, NUMBERS, PAGE
    from longloom.tasks.replicate.words import measured, summary

    place = Store(store)
    folder = place.open(refs["replicate"])
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / NUMBERS, Path(out) / NUMBERS)
        shutil.copyfile(folder / MARKDOWN, Path(out) / NUMBERS.replace(".json", ".md"))
    numbers: dict[str, Any] = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    page = folder / PAGE
    if as_json:
        show({**refs, "page": str(page), **numbers}, as_json=True)
        return
    table = Table("paper", "claim", "measured here", "runs", "verdict", box=None, pad_edge=False)
    previous = ""
    for row in numbers["rows"]:
        paper = numbers["papers"][row["paper"]]["title"] if row["paper"] != previous else ""
        previous = row["paper"]
        count = "earlier" if row["earlier"] else str(len(row["values"]) or "")
        table.add_row(paper, row["claim"], measured(row), count, row["verdict"])
    console().print(table)
    console().print(summary(numbers))
    console().print(f"page    {page}")
    console().print(f"report  {place.open(refs['report']) / PAGE}")
