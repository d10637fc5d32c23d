"""The paper's figures (arXiv 2407.14985, figures 3 to 6): PNGs for a trace's folder, one panel a set and task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from longloom.tasks.report.figures import SERIES
from longloom.tasks.report.formats import shorten, tick

Row = Mapping[str, Any]
Draw = Callable[[Axes, Sequence[Row]], None]

#: Below it a correlation is drawn solid.
SIGNIFICANT = 0.05
#: Inches of a panel, and panels in a row.
WIDTH, HEIGHT, ACROSS = 4.4, 3.4, 3


def draw(tables: Mapping[str, Sequence[Row]], out: Path) -> list[str]:
    """Writes the figures that there are rows for, and returns their files' names.

    Args:
        tables: rows by table, as study.py has them.
        out: the folder.
    """
    written = []
    memorization = [row for row in tables["memorization"] if row["rule"] == "all"]
    figures: tuple[tuple[str, Sequence[Row], Draw], ...] = (
        ("memorization.png", memorization, _memorization),
        ("performance.png", tables["performance"], _performance),
        ("novelty.png", tables["novelty"], _novelty),
        ("influence.png", tables["influence"], _influence),
        ("sensitivity.png", tables["sensitivity"], _sensitivity),
    )
    for name, rows, panel in figures:
        if rows:
            _figure(rows, panel, out / name)
            written.append(name)
    return written


def _figure(rows: Sequence[Row], panel: Draw, path: Path) -> None:
    places = list(dict.fromkeys((row["set"], row["task"]) for row in rows))
    across = min(ACROSS, len(places))
    down = -(-len(places) // across)
    with matplotlib.style.context(["default", {"text.parse_math": False}]):
        figure = Figure(figsize=(WIDTH * across, HEIGHT * down), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes, (name, task) in zip(grid, places, strict=False):
            panel(axes, [row for row in rows if (row["set"], row["task"]) == (name, task)])
            axes.set_title(shorten(name if name == task else f"{name}: {task}", 40), loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=7)
        for axes in grid[len(places) :]:
            axes.set_visible(False)
        figure.savefig(path, metadata={"Software": None})


def _memorization(axes: Axes, rows: Sequence[Row]) -> None:
    """Rho against model size, the infinity-gram dashed; marks are solid where p < .05, else hollow."""
    found = [row for row in rows if row["rho"] is not None]
    lines = list(dict.fromkeys((row["measure"], row["n"]) for row in found))
    for number, (measure, n) in enumerate(lines):
        points = [row for row in _by_size(found) if (row["measure"], row["n"]) == (measure, n)]
        colour, style = SERIES[number % len(SERIES)], "-" if measure == "task-gram" else "--"
        sizes = [row["parameters"] for row in points]
        axes.plot(sizes, [row["rho"] for row in points], style, color=colour, lw=1.4, label=f"{measure}, n = {n}")
        for row in points:
            face = colour if row["p"] < SIGNIFICANT else "white"
            if row["low"] is not None:
                axes.vlines(row["parameters"], row["low"], row["high"], color=colour, lw=0.8, alpha=0.6)
            axes.plot(row["parameters"], row["rho"], "o", ms=6, mfc=face, mec=colour)
    axes.axhline(0, color="#8b939c", lw=0.7)
    axes.set_ylabel("memorization (Spearman's rho)")
    _sizes(axes, found)


def _performance(axes: Axes, rows: Sequence[Row]) -> None:
    """F1 by the summed pair count of a record, a line a model, for the smallest n."""
    least = min(row["n"] for row in rows)
    lows = sorted({row["low"] for row in rows if row["n"] == least})
    for number, model in enumerate(dict.fromkeys(row["model"] for row in _by_size(rows))):
        points = sorted(
            (row for row in rows if row["model"] == model and row["n"] == least), key=lambda row: row["low"]
        )
        colour = SERIES[number % len(SERIES)]
        places = [lows.index(row["low"]) for row in points]
        axes.plot(places, [row["f1"] for row in points], "o-", color=colour, ms=5, label=shorten(model, 24))
        for place, row in zip(places, points, strict=True):
            if row["f1_low"] is not None:
                axes.vlines(place, row["f1_low"], row["f1_high"], color=colour, lw=0.8, alpha=0.6)
    axes.set_xticks(range(len(lows)), ["0" if low == 0 else f"{tick(low)}+" for low in lows])
    axes.set_xlabel(f"pair count of a record (documents), n = {least}")
    axes.set_ylabel("F1")


def _novelty(axes: Axes, rows: Sequence[Row]) -> None:
    """Novel pairs of the generations against model size."""
    for number, n in enumerate(dict.fromkeys(row["n"] for row in rows)):
        points = [row for row in _by_size(rows) if row["n"] == n]
        axes.plot(
            [row["parameters"] for row in points], [row["novel"] for row in points], "o-",
            color=SERIES[number % len(SERIES)], label=f"n = {n}",
        )  # fmt: skip
    axes.set_ylabel("novel pairs")
    _sizes(axes, rows)


def _influence(axes: Axes, rows: Sequence[Row]) -> None:
    """Mean influence of both kinds of documents against model size, for the smallest n."""
    least = min(row["n"] for row in rows)
    points = [row for row in _by_size(rows) if row["n"] == least]
    for group, label, colour in (("pair", "both n-grams", SERIES[2]), ("output", "output's alone", SERIES[0])):
        sizes = [row["parameters"] for row in points]
        axes.plot(sizes, [row[group] for row in points], "o-", color=colour, label=f"{label}, n = {least}")
        for row in points:
            if row[f"{group}_low"] is not None:
                low, high = row[f"{group}_low"], row[f"{group}_high"]
                axes.vlines(row["parameters"], low, high, color=colour, lw=0.8, alpha=0.6)
    axes.set_ylabel("influence (gradients' dot product)")
    _sizes(axes, points)


def _sensitivity(axes: Axes, rows: Sequence[Row]) -> None:
    """Rho against gamma, a line a model, n and embedding; marks as in the first figure."""
    found = [row for row in rows if row["rho"] is not None]
    lines = list(dict.fromkeys((row["model"], row["n"], row["embedding"]) for row in _by_size(found)))
    for number, line in enumerate(lines):
        points = [row for row in found if (row["model"], row["n"], row["embedding"]) == line]
        colour = SERIES[number % len(SERIES)]
        model, n, embedding = line
        label = f"{shorten(model, 18)}, n = {n}, {shorten(embedding.rstrip('/').rpartition('/')[2], 20)}"
        axes.plot([row["gamma"] for row in points], [row["rho"] for row in points], "-", color=colour, label=label)
        for row in points:
            face = colour if row["p"] < SIGNIFICANT else "white"
            axes.plot(row["gamma"], row["rho"], "o", ms=5, mfc=face, mec=colour)
    axes.set_xlabel("gamma")
    axes.set_ylabel("memorization (Spearman's rho)")


def _by_size(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["parameters"])


def _sizes(axes: Axes, rows: Sequence[Row]) -> None:
    sizes = sorted({row["parameters"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [tick(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("parameters")
