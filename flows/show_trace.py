"""What `longloom trace` prints: memorization by set, task, n and model, what was dropped, where the rest lies."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from longloom.flows.show import console, show
from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store

_SHOWN = 40


def show_trace(ref: ArtifactRef, store: str, *, as_json: bool) -> None:
    """Tables for people, all of `trace.json` for machines."""
    folder = Store(store).open(ref)
    found: dict[str, Any] = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    if as_json:
        show({"trace": ref, "folder": str(folder), **found}, as_json=True)
        return
    rows = [row for row in found["memorization"] if row["rule"] == "all"]
    head = ("set", "task", "n", "model", "measure", "points", "rho", "95%", "p", "Kendall distance")
    table = Table(*head, box=None, pad_edge=False)
    for row in rows[:_SHOWN]:
        interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        numbers = ("" if row[name] is None else f"{row[name]:.3f}" for name in ("rho", "p", "distance"))
        rho, p, distance = numbers
        place = (row["set"], row["task"], str(row["n"]), row["model"], row["measure"], str(row["points"]))
        table.add_row(*place, rho, interval, p, distance)
    console().print(table)
    if len(rows) > _SHOWN:
        console().print(f"and {len(rows) - _SHOWN} more rows in {folder / 'memorization.parquet'}")
    lost = Table("set", "task", "n", "pairs", "kept", "unseen", "zero", "rare", "unknown", box=None, pad_edge=False)
    for row in found["dropped"][:_SHOWN]:
        lost.add_row(*(str(row[column.header]) for column in lost.columns))
    console().print(lost)
    console().print(f"tables and figures in {folder}", style="dim")
