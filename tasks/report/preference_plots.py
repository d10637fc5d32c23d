"""Figures of preference evaluations: accuracy by condition, and with profiles inferred from samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MultipleLocator

from longloom.tasks.report.figures import INK, MUTED, NEUTRAL, SERIES, drawing
from longloom.tasks.report.formats import percent, shorten
from longloom.tasks.report.preference import NAMES, conditions_of
from longloom.tasks.report.score_plots import KEY_HEIGHT, key

#: Pixels of a row, and between two sets.
_ROW, _GAP = 24, 16
_COLOURS = {"nc": NEUTRAL, "ctx": SERIES[0], "nonsense": SERIES[3], "negated": SERIES[1], "inferred": SERIES[2]}
_CHANCE: dict[str, Any] = {"color": MUTED, "lw": 1.2, "ls": (0, (4, 3)), "zorder": 0}

Numbers = dict[str, Any]


def condition_bars(sets: Mapping[str, Numbers]) -> Markup:
    """A dot with its interval for each condition of each set, and chance as a line down.

    Args:
        sets: name -> numbers of `preference.json`.

    Returns:
        Nothing without a set.
    """
    rows = [(name, condition, own) for name, found in sets.items() for condition, own in conditions_of(found).items()]
    if not rows:
        return Markup()
    heights: list[float] = []
    for place, (name, *_) in enumerate(rows):
        first = place > 0 and rows[place - 1][0] != name
        heights.append((heights[-1] + _ROW if heights else 0) + (_GAP if first else 0))
    label = f"Accuracy by condition: {', '.join(sets)}"
    with drawing(820, int(heights[-1]) + _ROW + 62, label=label) as canvas:
        axes = canvas.axes(left=230, right=70, top=16, bottom=46)
        axes.axvline(0.5, **_CHANCE)
        for height, (name, condition, own) in zip(heights, rows, strict=True):
            colour = _COLOURS[condition]
            ends = "" if own["low"] is None else f" ({percent(own['low'])} to {percent(own['high'])})"
            if own["value"] is not None:
                canvas.tell(axes, own["value"], height, f"{name}, {NAMES[condition]}: {percent(own['value'])}{ends}")
            if own["low"] is not None:
                axes.hlines(height, own["low"], own["high"], color=colour, lw=5, alpha=0.35)
            axes.plot([own["value"]], [height], "o", color=colour, ms=7)
            axes.annotate(
                percent(own["value"]), (1, height), (10, 0), xycoords=("axes fraction", "data"),
                textcoords="offset pixels", va="center", color=INK, annotation_clip=False,
            )  # fmt: skip
        _share_axis(axes, horizontal=True)
        axes.set_ylim(heights[-1] + _ROW / 2, -_ROW / 2)
        axes.set_yticks(heights, [NAMES[condition] for _, condition, _ in rows])
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x")
        axes.set_xlabel("accuracy, with 95% intervals over prompts; dashed: chance")
        for name in sets:
            top = next(height for height, row in zip(heights, rows, strict=True) if row[0] == name)
            axes.annotate(
                shorten(name, 20), (0, top), (-222, 0), xycoords=("axes fraction", "data"),
                textcoords="offset pixels", va="center", weight="bold", annotation_clip=False,
            )  # fmt: skip
    return canvas.svg


def profile_curve(found: Numbers, *, title: str) -> Markup:
    """Accuracy on a profile's other comparisons against the samples it was inferred from, between no context and its
    own.

    Args:
        found: `profiles` of `preference.json`.
        title: of the set.
    """
    points: Sequence[Numbers] = found["points"]
    places = range(len(points))
    with drawing(500, 300 + KEY_HEIGHT, label=f"Accuracy by samples of a profile, {title}") as canvas:
        axes = canvas.axes(left=56, right=160, top=20 + KEY_HEIGHT, bottom=46)
        handles: list[Line2D] = []
        for position, (name, words) in enumerate((("inferred", "likeliest profile"), ("weighted", "all, weighted"))):
            colour, marker = SERIES[2 * position], "os"[position]
            apart = [place + 0.06 * (position - 0.5) for place in places]
            known = [point for point in points if point[f"{name}_low"] is not None]
            axes.vlines(
                [place for place, point in zip(apart, points, strict=True) if point in known],
                [point[f"{name}_low"] for point in known],
                [point[f"{name}_high"] for point in known],
                color=colour,
                lw=2.4,
                alpha=0.4,
            )
            handles += axes.plot(
                apart, [point[name] for point in points], color=colour, marker=marker, ms=6.5, label=words
            )
            for place, point in zip(apart, points, strict=True):
                text = f"{words}, {point['k']} samples: {percent(point[name])}"
                canvas.tell(axes, place, point[name], text)
        for name, words in (("ctx", "its own context"), ("nc", "no context")):
            axes.axhline(found[name], color=MUTED, lw=1.2, ls="-" if name == "ctx" else (0, (4, 3)), zorder=0)
            axes.annotate(
                f"{words}  {percent(found[name])}", (1, found[name]), (8, 0), xycoords=("axes fraction", "data"),
                textcoords="offset pixels", va="center", color=MUTED, annotation_clip=False,
            )  # fmt: skip
        _share_axis(axes, horizontal=False)
        axes.set_xticks(places, [str(point["k"]) for point in points])
        axes.set_xlim(-0.35, len(points) - 0.65)
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("samples of the profile’s preferences")
        axes.set_ylabel("accuracy on its others")
        key(axes, handles)
    return canvas.svg


def _share_axis(axes: Axes, *, horizontal: bool) -> None:
    """From 0 to 100%, or from 30% where nothing lies below."""
    axis = axes.xaxis if horizontal else axes.yaxis
    low, _ = axes.get_xlim() if horizontal else axes.get_ylim()
    limits = (0.3 if low >= 0.36 else 0.0, 1.02)
    if horizontal:
        axes.set_xlim(*limits)
    else:
        axes.set_ylim(*limits)
    axis.set_major_locator(MultipleLocator(0.1 if limits[0] else 0.2))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
