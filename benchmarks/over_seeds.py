"""Figures of several seeds, as the benchmarks tell them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, least and most."""
    return {"mean": round(statistics.fmean(values), 2), "least": round(min(values), 2), "most": round(max(values), 2)}


def show(table: dict[str, Any], claims: list[dict[str, Any]]) -> None:
    """Prints a summary, part -> name -> column -> spread, and whether each claim holds."""
    for part, rows in table.items():
        print(f"\n{part}")
        for name, cells in rows.items():
            shown = "  ".join(f"{key} {c['mean']:g} ({c['least']:g}-{c['most']:g})" for key, c in cells.items())
            print(f"  {name:40} {shown}")
    print()
    for claim in claims:
        print(f"{'holds' if claim['holds'] else 'FAILS':6} {claim['claim']}: {claim['found']}")
