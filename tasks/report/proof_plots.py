"""The curve of the proof: held-out loss against the share of the examples that is trained on, a line a method."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from longloom.tasks.report.figures import INK, MUTED, NEUTRAL, Drawing, drawing
from longloom.tasks.report.formats import decimal, shorten
from longloom.tasks.report.proof import ALL, UNTRAINED, YARDSTICK
from longloom.tasks.report.proof_words import share_name
from longloom.tasks.report.score_plots import KEY_HEIGHT, key, key_rows, series_style

#: How far methods stand apart at one share: factors on the logarithmic axis, so that their ranges can be told apart.
_APART = 1.035
#: The untrained model's line is drawn only where it lies within so many times the height of all else.
_HIGH = 1.5
_ACROSS: dict[str, Any] = {"lw": 1.4, "zorder": 1}

Numbers = dict[str, Any]


def proof_curve(numbers: Numbers) -> Markup:
    """Mean held-out loss with the range over seeds, the whole pool as a band across, the untrained model dotted.

    Args:
        numbers: of `proof.proof_numbers`.

    Returns:
        Nothing without a selection.
    """
    methods = list(dict.fromkeys(row["method"] for row in numbers["rows"]))
    if not methods:
        return Markup()
    rows = key_rows(methods)
    label = f"Held-out loss against the share of examples trained on: {', '.join(methods)}"
    with drawing(1040, 330 + KEY_HEIGHT * rows, label=label) as canvas:
        axes = canvas.axes(left=60, right=190, top=22 + KEY_HEIGHT * rows, bottom=46)
        shares = sorted({row["share"] for row in numbers["rows"]})
        axes.set_xscale("log")
        axes.set_xlim(shares[0] / 1.25, shares[-1] * 1.25)
        handles = [_draw(canvas, axes, numbers, method, place, len(methods)) for place, method in enumerate(methods)]
        _ends(axes, numbers)
        axes.set_xticks(shares, [share_name(share) for share in shares])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("examples trained on, of the pool")
        axes.set_ylabel("held-out loss, nats a token")
        key(axes, handles)
    return canvas.svg


def _draw(canvas: Drawing, axes: Axes, numbers: Numbers, method: str, place: int, count: int) -> Line2D:
    own = [row for row in numbers["rows"] if row["method"] == method]
    colour, marker = (INK, "o") if method == YARDSTICK else series_style(place)
    apart = _APART ** (place - (count - 1) / 2)
    places = [row["share"] * apart for row in own]
    axes.vlines(
        places,
        [row["loss"]["low"] for row in own],
        [row["loss"]["high"] for row in own],
        color=colour,
        lw=2.4,
        alpha=0.5,
    )
    style: Any = (0, (5, 3)) if method == YARDSTICK else "-"
    means = [row["loss"]["mean"] for row in own]
    texts = (
        f"{method} at {share_name(row['share'])}: {decimal(row['loss']['mean'], 4)}"
        f" ({decimal(row['loss']['low'], 4)} to {decimal(row['loss']['high'], 4)} over seeds)"
        for row in own
    )
    canvas.tell_line(axes, places, means, texts)
    return axes.plot(places, means, color=colour, marker=marker, ms=6.5, ls=style, label=shorten(method, 44))[0]


def _ends(axes: Axes, numbers: Numbers) -> None:
    """The whole pool and the untrained model: lines across, named at the right."""
    low, high = axes.get_ylim()
    whole, start = numbers["all"], numbers["untrained"]["loss"]["mean"]
    if whole is not None:
        loss = whole["loss"]
        low, high = min(low, loss["low"]), max(high, loss["high"])
        axes.axhspan(loss["low"], loss["high"], color=NEUTRAL, alpha=0.25, lw=0, zorder=0)
        axes.axhline(loss["mean"], color=MUTED, **_ACROSS)
        _name(axes, f"{ALL}, 100%  {decimal(loss['mean'], 3)}", loss["mean"])
    height = high - low
    if low - _HIGH * height <= start <= high + _HIGH * height:
        low, high = min(low, start), max(high, start)
        axes.axhline(start, color=MUTED, ls=(0, (1, 2)), **_ACROSS)
        _name(axes, f"{UNTRAINED}  {decimal(start, 3)}", start)
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    else:
        axes.set_ylim(low - 0.06 * height, high + 0.12 * height)
        arrow, end = ("↑", high + 0.07 * height) if start > high else ("↓", low)
        _name(axes, f"{arrow} {UNTRAINED}  {decimal(start, 3)}", end)


def _name(axes: Axes, text: str, height: float) -> None:
    axes.annotate(
        text, (1, height), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset pixels", va="center",
        color=MUTED, annotation_clip=False,
    )  # fmt: skip
