"""The report's plots, each a function from numbers to inline SVG (see figures.py for the style)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from longloom.tasks.report.figures import (
    HEAT,
    INK,
    MUTED,
    NEUTRAL,
    ON_HEAT,
    RULE,
    SERIES,
    drawing,
    spread,
    token_axis,
)
from longloom.tasks.report.formats import compact, decimal, in_bytes, integer, percent, shorten

#: Beyond this share of the scale, the text of a heat map's cell is light.
LIGHT_TEXT = 0.7
#: Runs whose lengths differ by more are drawn over a logarithmic axis.
LOG_RATIO = 6

Numbers = dict[str, Any]


def source_bars(sources: Sequence[Numbers], other: Numbers | None) -> Markup:
    """Bytes of the largest sources as horizontal bars with the values at their ends."""
    rows = [(shorten(row["source"] or "(none)", 30), row["bytes"]) for row in sources]
    if other:
        rows.append((f"{other['sources']} others", other["bytes"]))
    with drawing(700, 26 * len(rows) + 12, label="Bytes by source") as canvas:
        axes = canvas.axes(left=210, right=80, top=4, bottom=4)
        values = [value for _, value in rows]
        colours = [SERIES[0]] * len(sources) + [NEUTRAL] * (len(rows) - len(sources))
        axes.barh(range(len(rows)), values, height=0.62, color=colours)
        for position, (name, value) in enumerate(rows):
            _row_name(axes, position, name)
            axes.annotate(in_bytes(value), (value, position), (6, 0), textcoords="offset pixels", va="center")
            share = value / max(1, sum(values))
            text = f"{name}: {in_bytes(value)}, {percent(share)} of the text"
            canvas.tell(axes, value / 2, position, text, width=value, height=0.62)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, max([*values, 1])))
        axes.axis("off")
    return canvas.svg


def loss_curves(runs: Mapping[str, Numbers], colours: Mapping[str, str]) -> Markup:
    """Training loss against tokens, one line a run with its name and final loss at its end."""
    runs = {name: run for name, run in runs.items() if run["curve"]["loss"]}
    if not runs:
        return Markup()
    ends = [run["curve"]["tokens"][-1] for run in runs.values()]
    log = max(ends) > LOG_RATIO * max(1.0, min(ends))
    with drawing(1040, 300, label=f"Training loss against tokens: {', '.join(runs)}") as canvas:
        axes = canvas.axes(left=46, right=150, top=14, bottom=46)
        token_axis(axes, log=log)
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel("loss (nats a token)")
        for name, run in runs.items():
            tokens, losses = run["curve"]["tokens"], run["curve"]["loss"]
            axes.plot(tokens, losses, color=colours[name])
            said = f"{shorten(name, 30)}: loss " if len(runs) > 1 else "loss "
            texts = (f"{said}{decimal(y, 3)} at {compact(x)} tokens" for x, y in zip(tokens, losses, strict=True))
            canvas.tell_line(axes, tokens, losses, texts)
        axes.margins(x=0.0 if len(runs) == 1 else 0.02)
        _name_ends(axes, runs, colours)
    return canvas.svg


def _name_ends(axes: Axes, runs: Mapping[str, Numbers], colours: Mapping[str, str]) -> None:
    low, high = axes.get_ylim()
    heights = [run["curve"]["loss"][-1] for run in runs.values()]
    # 17 px between labels, on axes that are 240 px high
    for (name, run), height in zip(runs.items(), spread(heights, 17 / 240 * (high - low)), strict=True):
        axes.plot(
            run["curve"]["tokens"][-1:], run["curve"]["loss"][-1:], "o", ms=4.5, color=colours[name], clip_on=False
        )
        axes.annotate(
            f"{shorten(name, 16)}  {decimal(run['final_loss'], 3)}",
            (run["curve"]["tokens"][-1], height),
            (9, 0),
            textcoords="offset pixels",
            va="center",
            color=INK if colours[name] == NEUTRAL else colours[name],
            annotation_clip=False,
        )


def head_map(scores: Sequence[Sequence[float]], *, title: str) -> Markup:
    """A score in [0, 1] for every head: layers downwards, heads to the right; values written in where they fit."""
    layers, heads = len(scores), len(scores[0])
    cell_width, cell_height = (52, 30) if heads <= 8 else (max(12, 400 // heads),) * 2
    written = cell_width >= 30
    width, height = heads * cell_width + 72, layers * cell_height + 62
    with drawing(width, height, label=f"{title} score by layer and head") as canvas:
        axes = canvas.axes(left=64, right=8, top=28, bottom=34)
        _heat(axes, scores, (lambda value: decimal(value, 2)) if written else None, top=1.0)
        for layer, row in enumerate(scores):
            for head, value in enumerate(row):
                text = f"layer {layer}, head {head}: {title} {decimal(value, 3)}"
                canvas.tell(axes, head, layer, text, width=1, height=1)
        axes.set_title(title, loc="left", fontsize=13, color=INK, pad=8)
        axes.set_xlabel("head", labelpad=1)
        _cell_ticks(axes, range(heads), [f"layer {layer}" for layer in range(layers)])
    return canvas.svg


def needle_grid(grid: Numbers, *, title: str, top: float, digits: int, window: int | None = None) -> Markup:
    """Needle scores: depth (per cent) downwards, length to the right, the values written in; `top` is full colour.

    Lengths within the model's `window` are parted from those beyond it by a line.
    """
    lengths, depths = grid["lengths"], grid["depths"]
    within = 0 if window is None else sum(length <= window for length in lengths)
    above = 18 if 0 < within < len(lengths) else 0
    width, height = max(260, len(lengths) * 46 + 54), len(depths) * 28 + 74 + above
    with drawing(width, height, label=f"Needle scores of {title} by length and depth") as canvas:
        axes = canvas.axes(left=46, right=8, top=26 + above, bottom=48)
        _heat(axes, grid["scores"], lambda value: decimal(value, digits), top)
        for row, (depth, values) in enumerate(zip(depths, grid["scores"], strict=True)):
            for column, (length, value) in enumerate(zip(lengths, values, strict=True)):
                text = f"{integer(length)} tokens, depth {depth:g}%: {decimal(value, digits + 1)}"
                canvas.tell(axes, column, row, text, width=1, height=1)
        if above:
            axes.axvline(within - 0.5, color=INK, lw=1.6)
            axes.annotate(
                f"window {integer(window)}", (within - 0.5, 1), (0, 3),
                xycoords=("data", "axes fraction"), textcoords="offset pixels", ha="center", fontsize=11, color=MUTED,
                annotation_clip=False,
            )  # fmt: skip
        shown = shorten(title, (width - 46) // 7)  # at about 7 pixels a character
        axes.set_title(shown, loc="left", fontsize=13, color=INK, pad=8 + above)
        axes.set_xlabel("length in tokens")
        _cell_ticks(axes, [integer(length) for length in lengths], [f"{depth:g}%" for depth in depths])
    return canvas.svg


def source_shares(
    sources: Sequence[Numbers], methods: Mapping[str, Numbers], pool: int, colours: Mapping[str, str]
) -> Markup:
    """Each source's share of the pool (a tick) and of what each method chose (dots), one line a source."""
    names = list(methods)
    with drawing(1040, 28 * len(sources) + 66, label="Share of each source in the pool and in the coresets") as canvas:
        axes = canvas.axes(left=230, right=40, top=30, bottom=36)
        for position, row in enumerate(sources):
            share = row["pool"] / max(1, pool)
            chosen = [row["chosen"][name] / max(1, methods[name]["examples"]) for name in names]
            axes.hlines(position, min(share, *chosen), max(share, *chosen), color=RULE, lw=2.5, zorder=1)
            axes.vlines(share, position - 0.3, position + 0.3, color=NEUTRAL, lw=3, zorder=2)
            source = shorten(row["source"] or "(none)", 32)
            canvas.tell(axes, share, position, f"{source}: {percent(share)} of the pool", height=0.6)
            for name, value in zip(names, chosen, strict=True):
                axes.plot(value, position, "o", ms=8, color=colours[name], zorder=3, clip_on=False)
                canvas.tell(axes, value, position, f"{source}: {percent(value)} of {name}’s choice")
            _row_name(axes, position, source)
        axes.set(ylim=(len(sources) - 0.5, -0.5), yticks=[])
        axes.set_xlim(left=0)
        axes.grid(True, axis="x")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(8))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        _key(axes, [("pool", NEUTRAL, "|"), *((name, colours[name], "o") for name in names)])
    return canvas.svg


def cluster_bars(clusters: Sequence[Numbers], chosen_share: float, colour: str) -> Markup:
    """Cluster sizes, largest first, above the share of each that was chosen."""
    sizes = np.array([row["examples"] for row in clusters])
    shares = np.array([row["chosen"] for row in clusters]) / np.maximum(sizes, 1)
    places = np.arange(len(clusters))
    with drawing(1040, 280, label="Cluster sizes and the share chosen of each") as canvas:
        upper = canvas.axes(left=46, right=110, top=24, bottom=160)
        lower = canvas.axes(left=46, right=110, top=162, bottom=40)
        upper.bar(places, sizes, width=0.75, color=NEUTRAL)
        lower.bar(places, shares, width=0.75, color=colour)
        for place, row in enumerate(clusters):
            size, share = sizes[place], shares[place]
            text = f"cluster {row['cluster']}: {integer(row['chosen'])} of {integer(size)} examples, {percent(share)}"
            canvas.tell(upper, place, size / 2, text, width=0.75, height=size)
            canvas.tell(lower, place, share / 2, text, width=0.75, height=share)
        lower.axhline(chosen_share, color=INK, lw=1, ls=(0, (4, 3)))
        lower.annotate(
            f"overall {percent(chosen_share)}", (1, chosen_share), (8, 0),
            xycoords=("axes fraction", "data"), textcoords="offset pixels", va="center", annotation_clip=False,
        )  # fmt: skip
        for axes, title in ((upper, "examples in the cluster"), (lower, "share chosen")):
            axes.set_title(title, loc="left", fontsize=12, color=MUTED, pad=6)
            axes.grid(True, axis="y")
            axes.spines["left"].set_visible(False)
            axes.set(xticks=[], xlim=(-0.7, len(clusters) - 0.3))
            axes.yaxis.set_major_locator(MaxNLocator(3))
        upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: integer(value)))
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        lower.set_xlabel(f"{len(clusters)} clusters, largest first", labelpad=8)
    return canvas.svg


def _row_name(axes: Axes, position: int, name: str) -> None:
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset pixels"}
    axes.annotate(name, (0, position), (-10, 0), **place, ha="right", va="center", annotation_clip=False)


def _key(axes: Axes, entries: Sequence[tuple[str, str, str]]) -> None:
    """Names the marks in one line above the axes."""
    handles = [
        axes.plot([], [], marker, ms=8, mew=3 if marker == "|" else 0, color=colour)[0] for _, colour, marker in entries
    ]
    names = [shorten(name, 24) for name, _, _ in entries]
    options = {"frameon": False, "handletextpad": 0.2, "columnspacing": 1.6, "borderpad": 0, "borderaxespad": 0}
    axes.legend(handles, names, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(entries), **options)


def _heat(axes: Axes, scores: Sequence[Sequence[float | None]], write: Any, top: float) -> None:
    """Cells in one hue, their opacity the value: so the page's own background is the scale's zero, light or dark."""
    for row, values in enumerate(scores):
        for column, value in enumerate(values):
            level = 0.0 if value is None else min(1.0, max(0.0, value / top))
            axes.add_patch(
                Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, facecolor=HEAT, alpha=0.05 + 0.95 * level, lw=0)
            )
            if write:
                colour = ON_HEAT if level > LIGHT_TEXT else INK
                axes.text(column, row, write(value), ha="center", va="center_baseline", color=colour)
    axes.set(xlim=(-0.5, len(scores[0]) - 0.5), ylim=(len(scores) - 0.5, -0.5))


def _cell_ticks(axes: Axes, columns: Sequence[object], rows: Sequence[str]) -> None:
    step = max(1, len(columns) // 12)
    axes.set_xticks(range(0, len(columns), step), [str(name) for name in columns[::step]])
    step = max(1, len(rows) // 16)
    axes.set_yticks(range(0, len(rows), step), rows[::step])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
