"""Needles beyond the model's window, written out: a line a KV policy, for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longloom.tasks.report.formats import decimal, duration, in_bytes
from longloom.tasks.report.metrics import score_digits
from longloom.tasks.report.views import Cell

Numbers = dict[str, Any]


@dataclass
class Line:
    """One KV policy.

    Attributes:
        policy: with its settings.
        within: the score within the window; None: nothing was asked there.
        at: the scores at each length beyond.
        size: bytes of the largest cache of a sample while it decodes; seconds: of a sample. Both as text.
    """

    policy: str
    within: Cell | None
    at: list[Cell | None]
    size: str
    seconds: str


def beyond_lines(entry: Numbers, costs: Mapping[str, Numbers] | None = None) -> list[Line]:
    """The lines of an entry of `beyond.beyond_window`.

    Args:
        entry: the entry.
        costs: policy -> its row of cost.parquet with `samples`; None: what costs is not told.
    """
    digits = beyond_scale(entry)[1]
    lines = []
    for row in entry["rows"]:
        cost = (costs or {}).get(row["policy"], {})
        seconds = cost["seconds"] / cost["samples"] if cost.get("seconds") and cost.get("samples") else None
        within, *at = (_cell(part, digits) for part in (row["within"], *row["at"]))
        lines.append(Line(row["policy"], within, at, in_bytes(cost.get("kv_bytes") or None), duration(seconds)))
    return lines


def beyond_scale(entry: Numbers) -> tuple[float, int]:
    """The top of the scale of an entry's scores, 100 or 1, and their decimals in a table."""
    digits = score_digits(score for row in entry["rows"] for line in row["grid"]["scores"] for score in line)
    return (100.0, digits) if digits == 1 else (1.0, digits)


def _cell(part: Numbers | None, digits: int) -> Cell | None:
    if part is None:
        return None
    interval = "" if part["low"] is None else f"{decimal(part['low'], digits)}–{decimal(part['high'], digits)}"
    return Cell(decimal(part["score"], digits), interval)
