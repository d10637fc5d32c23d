"""The paper's figure of memorization against model size (arXiv 2407.14985, figure 3), a panel a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from longloom.tasks.report.figures import INK, MUTED, NEUTRAL, PAGE, SERIES, Drawing, drawing
from longloom.tasks.report.formats import decimal, shorten, tick
from longloom.tasks.report.memorization import SIGNIFICANT, TASK_GRAM, models_of

#: Panels side by side; of the width of the page.
ACROSS = 3
_WIDTH, _HEIGHT, _KEY, _ABOVE, _BELOW = 1040, 250, 30, 30, 46
#: Lines of n-grams of several sizes, the first n solid.
_DASHES = ("-", (0, (5, 3)), (0, (2, 2)), (0, (6, 2, 1, 2)))
#: How far sets stand apart at one size: factors on the logarithmic axis, so that intervals can be told apart.
_APART = 1.09

Numbers = dict[str, Any]


def memorization_curves(numbers: Numbers) -> Markup:
    """Mem_n against parameters: a colour a set, a dash an n; marks solid where p < .05, else hollow; 95% intervals."""
    rows = [row for row in numbers["rows"] if row["measure"] == TASK_GRAM and row["rho"] is not None]
    if not rows:
        return Markup()
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    sets = list(dict.fromkeys(row["set"] for row in rows))
    sizes = list(dict.fromkeys(row["n"] for row in rows))
    colours = {name: SERIES[position % len(SERIES)] for position, name in enumerate(sets)}
    bounds = [value for row in rows for value in (row["rho"], row["low"], row["high"]) if value is not None]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    margin = 0.06 * (high - low or 1)
    down = -(-len(tasks) // ACROSS)
    with drawing(_WIDTH, down * _HEIGHT + _KEY, label=f"Memorization against model size: {', '.join(tasks)}") as canvas:
        for number, task in enumerate(tasks):
            row, column = divmod(number, ACROSS)
            left, width = 46 + column * (_WIDTH - 46) // ACROSS, (_WIDTH - 46) // ACROSS - 34
            axes = canvas.axes(
                left=left,
                right=_WIDTH - left - width,
                top=_KEY + row * _HEIGHT + _ABOVE,
                bottom=(down - 1 - row) * _HEIGHT + _BELOW,
            )
            _panel(canvas, axes, [one for one in rows if one["task"] == task], models_of(numbers), sets, sizes, colours)
            axes.set_ylim(low - margin, high + margin)
            axes.set_title(shorten(task, width // 8), loc="left", fontsize=13, color=INK, pad=6)
            if not column:
                axes.set_ylabel("Mem (Spearman’s rho)")
            if not number:
                _key(axes, colours, sizes)
    return canvas.svg


def _panel(
    canvas: Drawing,
    axes: Axes,
    rows: Sequence[Numbers],
    models: Sequence[tuple[str, int]],
    sets: Sequence[str],
    sizes: Sequence[int],
    colours: dict[str, str],
) -> None:
    axes.set_xscale("log")
    axes.axhline(0, color=NEUTRAL, lw=1)
    lines = [(name, n) for n in sizes for name in sets]
    for number, (name, n) in enumerate(lines):
        points = sorted((row for row in rows if (row["set"], row["n"]) == (name, n)), key=lambda row: row["parameters"])
        if not points:
            continue
        apart = _APART ** (number - (len(lines) - 1) / 2)
        places = [row["parameters"] * apart for row in points]
        colour = colours[name]
        style: Any = _DASHES[sizes.index(n) % len(_DASHES)]
        axes.plot(places, [row["rho"] for row in points], ls=style, color=colour, lw=1.6, zorder=2)
        for place, row in zip(places, points, strict=True):
            if row["low"] is not None:
                axes.vlines(place, row["low"], row["high"], color=colour, lw=1.4, alpha=0.55, zorder=1)
            face = colour if row["p"] < SIGNIFICANT else PAGE
            axes.plot(place, row["rho"], "o", ms=8, mfc=face, mec=colour, mew=1.8, zorder=3)
            ends = "" if row["low"] is None else f" ({decimal(row['low'], 3)} to {decimal(row['high'], 3)})"
            text = f"{row['model']} on {row['set']}, n = {row['n']}: {decimal(row['rho'], 3)}{ends}, p {row['p']:.2g}"
            canvas.tell(axes, place, row["rho"], text)
    parameters = [size for _, size in models]
    axes.set_xlim(min(parameters) / 1.7, max(parameters) * 1.7)
    axes.set_xticks(parameters, [f"{shorten(name, 14)}\n{tick(size)}" for name, size in models])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(True, axis="y")
    axes.spines["left"].set_visible(False)


def _key(axes: Axes, colours: dict[str, str], sizes: Sequence[int]) -> None:
    """Names the sets, and where there are several n their dashes, in one line above the first panel."""
    handles = [axes.plot([], [], "o", ms=8, mew=0, color=colour)[0] for colour in colours.values()]
    names = [shorten(name, 30) for name in colours]
    if len(sizes) > 1:
        for number, n in enumerate(sizes):
            style: Any = _DASHES[number % len(_DASHES)]
            handles.append(axes.plot([], [], ls=style, color=MUTED)[0])
            names.append(f"n = {n}")
    options = {"frameon": False, "handletextpad": 0.4, "columnspacing": 1.6, "borderpad": 0, "borderaxespad": 0}
    above = 1 + (_ABOVE + 6) / (_HEIGHT - _ABOVE - _BELOW)  # of the axes' height: clear of the panel's title
    axes.legend(handles, names, loc="lower left", bbox_to_anchor=(0, above), ncols=len(handles), **options)
