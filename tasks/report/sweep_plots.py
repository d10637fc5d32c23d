"""The plot of a sweep of KV policies: scores against the measured cache and against decode time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from longloom.tasks.report.figures import INK, NEUTRAL, drawing
from longloom.tasks.report.formats import byte_tick, decimal, in_bytes, milliseconds, shorten
from longloom.tasks.report.metrics import score_digits
from longloom.tasks.report.order import natural
from longloom.tasks.report.plots import LOG_RATIO
from longloom.tasks.report.score_plots import KEY_HEIGHT, key, key_rows, magnitude_axis, score_axis, series_style
from longloom.tasks.report.sweep import YARDSTICK, family

#: What a panel runs along -> its name, and how its ticks are written.
_AMOUNTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "bytes_share": (f"KV cache, % of the {YARDSTICK} one", lambda share: f"{100 * share:g}%"),
    "bytes": ("KV cache of a sample, measured", byte_tick),
    "seconds": ("decode time, ms a token", lambda seconds: f"{1000 * seconds:g}"),
}
#: Pixels: a panel, the space left of each, and that right of the last.
_PANEL, _BEFORE, _AFTER = 456, 52, 24
#: How the yardstick is drawn: a line across, and a ring at its own cost.
_ACROSS: dict[str, Any] = {"color": INK, "lw": 1.4, "ls": (0, (4, 3))}
_RING: dict[str, Any] = {"marker": "o", "ms": 8, "mfc": "none", "mew": 1.8}
#: How the key shows the yardstick's interval.
_BAND: dict[str, Any] = {"color": NEUTRAL, "lw": 8, "alpha": 0.3, "solid_capstyle": "butt"}
#: Dashes of a family's further lines.
_VARIANT = (0, (1, 1.6))

Numbers = dict[str, Any]
#: Colour, marker and dashes.
Style = tuple[str, str, Any]


def line_styles(sweeps: Sequence[Numbers]) -> dict[str, Style]:
    """A style for each line of the sweeps of `sweep.sweeps`, the same on the whole page: a colour a family."""
    families: dict[str, set[str]] = defaultdict(set)
    for sweep in sweeps:
        for row in sweep["rows"]:
            if row["policy"] != sweep["yardstick"]:
                families[family(row["line"])].add(row["line"])
    return {
        line: (*series_style(position, variant), _VARIANT if variant else "-")
        for position, name in enumerate(sorted(families))
        for variant, line in enumerate(sorted(families[name], key=natural))
    }


def sweep_curves(sweep: Numbers, styles: Mapping[str, Style]) -> Markup:
    """Mean score against the cache and, where it was measured, against decode time: a line a policy, along its budgets.

    The yardstick stands across, dashed, with its interval, which the key names, and with a ring at its own cost.

    Args:
        sweep: of `sweep.sweeps`.
        styles: of `line_styles`.

    Returns:
        Nothing if no policy but the yardstick has a mean score and a place on the first panel.
    """
    rows = [row for row in sweep["rows"] if row["score"] is not None]
    first = "bytes" if all(row["bytes_share"] is None for row in rows) else "bytes_share"
    lines: dict[str, list[Numbers]] = defaultdict(list)
    for row in rows:
        if row[first] is not None:
            lines[row["line"]].append(row)
    yardstick = sweep["yardstick"]
    full = next(iter(lines.pop(yardstick, [])), None)
    if not lines:
        return Markup()
    panels = [first, *(["seconds"] if any(row["seconds"] for own in lines.values() for row in own) else [])]
    marks = [({**_ACROSS, **_RING}, yardstick)] if full else []
    if full and full["low"] is not None:
        marks.append((_BAND, f"{yardstick}’s 95% interval"))
    top = 16 + KEY_HEIGHT * key_rows([*lines, *marks])
    width = len(panels) * (_BEFORE + _PANEL) + _AFTER
    about = " ".join(filter(None, (sweep["suite"], sweep["metric"])))
    label = f"Mean score on {about} against KV cache and decode time, {sweep['model']}"
    digits = score_digits(row["score"] for row in rows)
    with drawing(width, 274 + top, label=label) as canvas:
        for position, amount in enumerate(panels):
            left = _BEFORE + position * (_BEFORE + _PANEL)
            axes = canvas.axes(left=left, right=width - left - _PANEL, top=top, bottom=46)
            score_axis(axes)
            _draw(axes, amount, lines, full, styles)
            for row in rows:
                if row[amount] is not None:
                    canvas.tell(axes, row[amount], row["score"], _said(row, decimal(row["score"], digits)))
            if position == 0:
                heights = axes.get_ylim()
                handles = [Line2D([], [], **_look(styles[name]), label=shorten(name, 44)) for name in lines]
                key(axes, handles + [Line2D([], [], **look, label=name) for look, name in marks])
                if len(sweep["tasks"]) == 1:
                    axes.set_ylabel(f"{about} score")
            else:
                axes.set(ylim=heights, ylabel="")
    return canvas.svg


def _draw(
    axes: Axes, amount: str, lines: Mapping[str, Sequence[Numbers]], full: Numbers | None, styles: Mapping[str, Style]
) -> None:
    for name, rows in lines.items():
        points = [(row[amount], row["score"]) for row in rows if row[amount] is not None]
        if points:
            # Less is kept along a line, but a step is not faster for it: there lines would fold back.
            folding = {"ls": "none"} if amount == "seconds" else {}
            axes.plot(*zip(*points, strict=True), **_look(styles[name]) | folding)
    if full:
        if full["low"] is not None:
            axes.axhspan(full["low"], full["high"], color=NEUTRAL, alpha=0.15, lw=0, zorder=0)
        axes.axhline(full["score"], **_ACROSS, zorder=1)
        if full[amount] is not None:
            axes.plot([full[amount]], [full["score"]], color=INK, lw=0, **_RING)
    name, write = _AMOUNTS[amount]
    every = [row for rows in lines.values() for row in rows] + ([full] if full else [])
    places = [row[amount] for row in every if row[amount] is not None]
    if amount == "seconds" and max(places) <= LOG_RATIO * min(places):
        axes.set_xlim(0, 1.06 * max(places))  # from 0, so that what looks twice as slow is
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    else:
        magnitude_axis(axes, write)
    axes.set_xlabel(name)


def _said(row: Numbers, score: str) -> str:
    """A policy's score and what it costs."""
    costs = [f"cache {in_bytes(row['bytes'])}" if row["bytes"] is not None else ""]
    costs.append(f"{milliseconds(row['seconds'])} a token" if row["seconds"] is not None else "")
    return ", ".join(filter(None, (f"{row['policy']}: {score}", *costs)))


def _look(style: Style) -> dict[str, Any]:
    return dict(zip(("color", "marker", "ls"), style, strict=True)) | {"ms": 6.5}
