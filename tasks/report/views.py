"""The numbers of a report arranged as its tables: the same arrangement serves the page and the Markdown summary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longloom.tasks.report.beyond import reaches_beyond
from longloom.tasks.report.breakdown import bucket_name, over_tasks
from longloom.tasks.report.formats import decimal, integer
from longloom.tasks.report.metrics import better, score_digits, unit_digits, unit_of
from longloom.tasks.report.order import group_rank, rank

#: Told once a row where all columns agree, else in each cell; and how, after the count.
COUNTED = {
    "samples": "samples",
    "failed": "failed",
    "truncated": "truncated",
    "beyond": "beyond the window",
    "contaminated": "left out",
}

#: What the parts of a score do not have.
_PART: dict[str, Any] = {
    "metric": "",
    "low": None,
    "high": None,
    "fixed": None,
    "failed": 0,
    "truncated": 0,
    "beyond": 0,
}
#: Two scores that differ by no more differ by their rounding.
_ROUNDING = {1: 0.0051, 3: 0.00051}

Numbers = dict[str, Any]
Column = tuple[str, str]


@dataclass
class Cell:
    """One score of the evaluation table, written out; `section` is the label of its artifact, where that is one."""

    score: str
    interval: str = ""
    best: bool = False
    notes: tuple[str, ...] = ()
    section: str = ""


@dataclass
class Row:
    """One task and metric; its `notes` are what all columns share, and each cell notes what they do not."""

    task: str
    metric: str
    cells: list[Cell | None]
    samples: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class Suite:
    """The rows of one suite, and their means where it has several tasks on one scale."""

    name: str
    rows: list[Row]
    mean: Row | None = None


@dataclass
class EvaluationTable:
    """Columns are (model, policy); `models` gives each model with how many columns it spans.

    `rows_are` names what the rows tell apart.
    """

    columns: list[Column] = field(default_factory=list)
    models: list[tuple[str, int]] = field(default_factory=list)
    suites: list[Suite] = field(default_factory=list)
    rows_are: str = "task"


def direct(scores: Iterable[Numbers]) -> list[Numbers]:
    """The scores of direct long context; those with retrieval have a table of their own."""
    return [row for row in scores if row.get("retrieval") is None]


def evaluation_table(scores: Iterable[Numbers]) -> EvaluationTable:
    """Arranges the scores of report.json: a row per task, a column per model and KV policy."""
    rows = sorted(direct(scores), key=lambda row: (row["suite"], row["task"], row["metric"]))
    return _table(rows, rows_are="task", means=True)


def length_table(rows: Iterable[Numbers]) -> EvaluationTable:
    """The rows of `breakdown.by_length`: a row per bucket of prompt tokens."""
    ordered = sorted(rows, key=lambda row: (row["suite"], row["metric"], row["bucket"]))
    return _table([{**_PART, **row, "task": bucket_name(row["bucket"])} for row in ordered], rows_are="prompt tokens")


def group_table(rows: Iterable[Numbers]) -> EvaluationTable:
    """The rows of `breakdown.by_group`, tasks taken together: a row per group."""
    ordered = sorted(over_tasks(rows), key=lambda row: (row["suite"], group_rank(row["group"])))
    return _table([{**_PART, **row, "task": row["group"]} for row in ordered], rows_are="group")


def task_group_table(rows: Iterable[Numbers]) -> EvaluationTable:
    """The rows of `breakdown.by_group` of suites with several tasks: a row per task and group."""
    rows = list(rows)
    tasks: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        tasks[row["suite"]].add(row["task"])
    ordered = sorted(
        (row for row in rows if len(tasks[row["suite"]]) > 1),
        key=lambda row: (row["suite"], row["task"], group_rank(row["group"])),
    )
    return _table([{**_PART, **row, "metric": row["group"]} for row in ordered], rows_are="task and group")


def _table(scores: Sequence[Numbers], *, rows_are: str, means: bool = False) -> EvaluationTable:
    """Rows in the order of the scores."""
    columns = sorted({(row["model"], row["policy"]) for row in scores}, key=lambda column: tuple(map(rank, column)))
    table = EvaluationTable(columns, rows_are=rows_are)
    for model, _ in columns:
        if not table.models or table.models[-1][0] != model:
            table.models.append((model, sum(1 for other, _ in columns if other == model)))
    by_suite: dict[str, dict[tuple[str, str], dict[Column, Numbers]]] = defaultdict(lambda: defaultdict(dict))
    for row in scores:
        by_suite[row["suite"]][row["task"], row["metric"]][row["model"], row["policy"]] = row
    for suite, rows in by_suite.items():
        own = [row for cells in rows.values() for row in cells.values()]
        digits = unit_digits((suite, row["metric"], row["score"]) for row in own)
        written = [
            _row(task, metric, cells, columns, digits[unit_of(suite, metric)]) for (task, metric), cells in rows.items()
        ]
        mean = _mean_row(suite, own, columns, next(iter(digits.values()))) if means and len(digits) == 1 else None
        table.suites.append(Suite(suite, written, mean))
    return table


def suite_means(scores: Iterable[Numbers], suite: str) -> dict[Column, float]:
    """Mean score of each column over all tasks of a suite; columns that lack one of them are left out.

    None have one where the suite's metrics are unlike each other (lm-eval's accuracy and perplexity).
    """
    own = [row for row in direct(scores) if row["suite"] == suite]
    if len({unit_of(suite, row["metric"]) for row in own}) > 1:
        return {}
    tasks = {(row["task"], row["metric"]) for row in own}
    found: dict[Column, list[float]] = defaultdict(list)
    for row in own:
        if row["score"] is not None:
            found[row["model"], row["policy"]].append(row["score"])
    return {column: float(np.mean(values)) for column, values in found.items() if len(values) == len(tasks)}


def _row(task: str, metric: str, cells: dict[Column, Numbers], columns: list[Column], digits: int) -> Row:
    differing = {name for name in COUNTED if len({row.get(name) for row in cells.values()}) > 1}
    written: list[Cell | None] = []
    for column in columns:
        row = cells.get(column)
        if row is None:
            written.append(None)
            continue
        interval = "" if row["low"] is None else f"{decimal(row['low'], digits)}–{decimal(row['high'], digits)}"
        notes = (*_fixed(row, digits), *_notes(row, differing))
        written.append(Cell(decimal(row["score"], digits), interval, notes=notes, section=row.get("section", "")))
    first = next(iter(cells.values()))
    mark_best(written, [cells.get(column, {}).get("score") for column in columns], lower=better(first) == "lower")
    samples = "" if "samples" in differing else integer(first["samples"])
    return Row(task, metric, written, samples, _notes(first, COUNTED.keys() - {"samples"} - differing))


def _mean_row(suite: str, rows: Sequence[Numbers], columns: list[Column], digits: int) -> Row | None:
    tasks = {(row["task"], row["metric"]) for row in rows}
    if len(tasks) < 2:
        return None
    means = suite_means(rows, suite)
    sections = {(row["model"], row["policy"]): row.get("section", "") for row in rows}
    cells = [
        Cell(decimal(means[column], digits), section=sections[column]) if column in means else None
        for column in columns
    ]
    mark_best(cells, [means.get(column) for column in columns], lower=better(rows[0]) == "lower")
    return Row("mean", f"{len(tasks)} tasks", cells)


def _notes(row: Numbers, names: set[str]) -> tuple[str, ...]:
    counts = {name: row[name] for name in COUNTED if name in names and row.get(name)}
    return tuple(
        f"{integer(count)} {'sample' if (name, count) == ('samples', 1) else COUNTED[name]}"
        for name, count in counts.items()
    )


def _fixed(row: Numbers, digits: int) -> tuple[str, ...]:
    """The score by the mended metric, where it differs from the official one by more than rounding."""
    official, fixed = row["score"], row.get("fixed")
    if official is None or fixed is None or abs(fixed - official) <= _ROUNDING[digits]:
        return ()
    text = decimal(fixed, digits)
    return () if text == decimal(official, digits) else (f"fixed {text}",)


def mark_best(cells: Sequence[Cell | None], values: Sequence[float | None], *, lower: bool = False) -> None:
    """Marks the best as written: cells that read the same are both best, and a row of equal cells has no best.

    Args:
        cells, values: of a row.
        lower: the lowest value is the best.
    """
    there = [(value, cell) for value, cell in zip(values, cells, strict=True) if cell and value is not None]
    if len({cell.score for _, cell in there}) < 2:
        return
    _, best = (min if lower else max)(there, key=lambda pair: pair[0])
    for _, cell in there:
        cell.best = cell.score == best.score


def copy_table(rows: Sequence[Numbers]) -> tuple[list[int], list[tuple[int, list[float | None]]]]:
    """Copy accuracies as (gaps, [(length, accuracy per gap)])."""
    gaps = sorted({row["gap"] for row in rows})
    lengths = sorted({row["length"] for row in rows})
    cells = {(row["length"], row["gap"]): row["accuracy"] for row in rows}
    return gaps, [(length, [cells.get((length, gap)) for gap in gaps]) for length in lengths]


def plain_grids(grids: Iterable[Numbers]) -> list[Numbers]:
    """The needle grids but those that `beyond.beyond_window` shows."""
    return [grid for grid in grids if grid["retrieval"] or not reaches_beyond(grid["window"], grid["lengths"])]


def grid_name(grid: Numbers, grids: Sequence[Numbers]) -> str:
    """What tells a needle grid from the others: model, policy and retrieval, and the task where there are several."""
    several = len({other["task"] for other in grids}) > 1
    return " · ".join(
        filter(None, (grid["model"], grid["policy"], grid["retrieval"], grid["task"] if several else None))
    )


def grid_scale(grid: Numbers, grids: Sequence[Numbers]) -> tuple[float, int]:
    """The top of the scale of a suite's needle grids, 100 or 1, and the decimals of their cells."""
    cells = (score for other in grids if other["suite"] == grid["suite"] for row in other["scores"] for score in row)
    return (100.0, 0) if score_digits(cells) == 1 else (1.0, 2)
