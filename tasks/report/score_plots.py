"""The plot of mean scores against prompt tokens, and what all plots of scores against costs share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence, Sized
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from longloom.tasks.report.figures import INK, NEUTRAL, SERIES, drawing, spread
from longloom.tasks.report.formats import decimal, integer, shorten, tick
from longloom.tasks.report.metrics import score_digits
from longloom.tasks.report.retrieval import line_name

#: Told apart by shape as well as by colour.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: Names in one line of a key, and the height of that line in pixels.
KEY_COLUMNS, KEY_HEIGHT = 3, 22

Numbers = dict[str, Any]


def retrieval_curves(comparison: Numbers) -> Markup:
    """Mean score against mean prompt tokens: a line a retrieval, along how much is retrieved; direct ones across.

    Args:
        comparison: of `retrieval.comparisons`.

    Returns:
        Nothing if no retrieval has both a mean score and a count of tokens.
    """
    direct: list[tuple[str, float, float | None]] = []
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    several = len({row["policy"] for row in comparison["rows"]}) > 1
    for row in comparison["rows"]:
        if row["score"] is None:
            continue
        if row["retrieval"] is None:
            direct.append((row["policy"], row["score"], row["prompt_tokens"]))
        elif row["prompt_tokens"] is not None:
            name = line_name(row["retrieval"]) + (f" · {row['policy']}" if several else "")
            lines[name].append((row["prompt_tokens"], row["score"]))
    if not lines:
        return Markup()
    digits = score_digits([score for points in lines.values() for _, score in points] + [one[1] for one in direct])
    rows = key_rows(lines)
    label = f"Mean score on {comparison['suite']} against prompt tokens, {comparison['model']}"
    with drawing(1040, 290 + KEY_HEIGHT * rows, label=label) as canvas:
        axes = canvas.axes(left=52, right=210, top=16 + KEY_HEIGHT * rows, bottom=46)
        score_axis(axes)
        handles = []
        for position, (name, points) in enumerate(lines.items()):
            colour, marker = series_style(position)
            tokens_of, scores_of = zip(*sorted(points), strict=True)
            handles += axes.plot(tokens_of, scores_of, color=colour, marker=marker, ms=6.5, label=shorten(name, 44))
            for amount, score in sorted(points):
                canvas.tell(
                    axes, amount, score, f"{name}: {decimal(score, digits)} with {integer(amount)} prompt tokens"
                )
        for position, (policy, score, tokens) in enumerate(direct):
            axes.axhline(score, color=_direct_colour(position), lw=1.4, ls=(0, (4, 3)), zorder=1)
            if tokens is not None:
                axes.plot([tokens], [score], "o", ms=8, mfc="none", mew=1.8, color=_direct_colour(position))
                text = f"direct, {policy}: {decimal(score, digits)} with {integer(tokens)} prompt tokens"
                canvas.tell(axes, tokens, score, text)
        magnitude_axis(axes, tick)
        axes.set_xlabel("prompt tokens, mean over samples")
        _name_direct(axes, direct, digits)
        key(axes, handles)
    return canvas.svg


def score_axis(axes: Axes) -> None:
    """A vertical axis of scores, with lines across."""
    axes.grid(True, axis="y")
    axes.spines["left"].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("mean score")
    axes.margins(x=0.06, y=0.14)


def magnitude_axis(axes: Axes, write: Callable[[float], str]) -> None:
    """A logarithmic horizontal axis: amounts differ by factors."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    low, high = axes.get_xlim()
    if high / low < 6:  # room for at least two ticks
        middle = (low * high) ** 0.5
        axes.set_xlim(middle / 2.5, middle * 2.5)


def series_style(position: int, variant: int = 0) -> tuple[str, str]:
    """Colour and marker of a line: those that share the one differ in the other. Variants share the colour."""
    return SERIES[position % len(SERIES)], MARKERS[(position + position // len(SERIES) + variant) % len(MARKERS)]


def _direct_colour(position: int) -> str:
    return INK if position == 0 else NEUTRAL


def _name_direct(axes: Axes, direct: Sequence[tuple[str, float, float | None]], digits: int) -> None:
    low, high = axes.get_ylim()
    # 17 px between names, on axes that are 228 px high
    heights = spread([score for _, score, _ in direct], 17 / 228 * (high - low))
    for position, ((policy, score, _), height) in enumerate(zip(direct, heights, strict=True)):
        axes.annotate(
            f"direct, {shorten(policy, 14)}  {decimal(score, digits)}", (1, height), (8, 0),
            xycoords=("axes fraction", "data"), textcoords="offset pixels", va="center",
            color=_direct_colour(position), annotation_clip=False,
        )  # fmt: skip


def key_rows(names: Sized) -> int:
    """Lines of a key of so many names."""
    return -(-len(names) // KEY_COLUMNS)


def key(axes: Axes, handles: Sequence[Line2D]) -> None:
    """Names the marks above the axes."""
    options: dict[str, Any] = {"frameon": False, "handletextpad": 0.5, "columnspacing": 1.6}
    options |= {"borderpad": 0, "borderaxespad": 0, "ncols": KEY_COLUMNS}
    options |= {"loc": "lower left", "bbox_to_anchor": (0, 1.02), "bbox_transform": axes.transAxes}
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(handles=list(handles), **options)  # axes have but one legend
