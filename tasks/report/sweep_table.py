"""Sweeps of KV policies written out for the page: a table a suite, its rows by model and by bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longloom.tasks.report.formats import decimal, in_bytes, milliseconds, percent
from longloom.tasks.report.metrics import score_digits
from longloom.tasks.report.views import Cell

#: Up to so many tasks have columns of their own.
SHOWN_TASKS = 5

Numbers = dict[str, Any]


@dataclass
class Line:
    """One KV policy.

    Attributes:
        policy: with its settings.
        score: the mean over the tasks.
        size: bytes of a sample's cache, `largest` of the largest; seconds: of decoding a token. All as text.
        size_share, seconds_share: of the yardstick's, with the factor below; None: not known.
        scores: of the tasks, if they are few.
    """

    policy: str
    score: Cell
    size: str
    largest: str
    size_share: Cell | None
    seconds: str
    seconds_share: Cell | None
    scores: list[Cell]


@dataclass
class SweepTable:
    """The sweeps of a suite, or of one metric of lm-eval.

    Attributes:
        suite: its name.
        metric: empty: all of the suite.
        tasks: (name, metric) of the columns after the mean; none if there is but one task, or many.
        models: the lines of each.
        shared: whether any model ran under the yardstick; `timed`: whether any decode time is known.
    """

    suite: str
    metric: str
    tasks: list[tuple[str, str]]
    models: list[tuple[str, list[Line]]]
    shared: bool
    timed: bool


def sweep_tables(sweeps: Sequence[Numbers]) -> list[SweepTable]:
    """Arranges the sweeps of `sweep.sweeps`."""
    tables = []
    for suite, metric in dict.fromkeys((sweep["suite"], sweep["metric"]) for sweep in sweeps):
        own = [sweep for sweep in sweeps if (sweep["suite"], sweep["metric"]) == (suite, metric)]
        rows = [row for sweep in own for row in sweep["rows"]]
        tasks = own[0]["tasks"] if 1 < len(own[0]["tasks"]) <= SHOWN_TASKS else []
        digits = score_digits(score for row in rows for score in row["scores"])
        tables.append(
            SweepTable(
                suite=suite,
                metric=metric,
                tasks=tasks,
                models=[
                    (sweep["model"], [_line(row, digits, tasks=bool(tasks)) for row in sweep["rows"]]) for sweep in own
                ],
                shared=any(row["bytes_share"] is not None for row in rows),
                timed=any(row["seconds"] is not None for row in rows),
            )
        )
    return tables


def _line(row: Numbers, digits: int, *, tasks: bool) -> Line:
    interval = "" if row["low"] is None else f"{decimal(row['low'], digits)}–{decimal(row['high'], digits)}"
    return Line(
        policy=row["policy"],
        score=Cell(decimal(row["score"], digits), interval),
        size=in_bytes(row["bytes"]),
        largest=in_bytes(row["largest"]),
        size_share=_share(row["bytes_share"], "smaller", "larger"),
        seconds=milliseconds(row["seconds"]),
        seconds_share=_share(row["seconds_share"], "faster", "slower"),
        scores=[Cell(decimal(score, digits)) for score in row["scores"]] if tasks else [],
    )


def _share(share: float | None, less: str, more: str) -> Cell | None:
    """0.32 -> 32.0%, and below it 3.1× smaller."""
    if share is None:
        return None
    factor = decimal(max(share, 1 / share), 1)
    return Cell(percent(share), "" if factor == "1.0" else f"{factor}× {less if share < 1 else more}")
