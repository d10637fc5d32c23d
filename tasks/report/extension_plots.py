"""The picture of a context extension: perplexity by position, a line a model."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from longloom.tasks.report.figures import INK, MUTED, NEUTRAL, SERIES, drawing, spread
from longloom.tasks.report.formats import decimal, integer, shorten

Numbers = dict[str, Any]


def position_curves(perplexity: dict[str, list[Numbers]], *, window: int | None) -> Markup:
    """Perplexity against the position in the context, with the window that the model came with.

    Args:
        perplexity: name -> rows by position.
        window: of the model before; None: not known.
    """
    if not perplexity:
        return Markup()
    names = list(perplexity)
    with drawing(1040, 300, label=f"Perplexity by position: {', '.join(names)}") as canvas:
        axes = canvas.axes(left=60, right=150, top=22, bottom=46)
        axes.set_yscale("log")
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: integer(round(value))))
        axes.set_xlabel("tokens before")
        axes.set_ylabel("perplexity")
        ends: list[tuple[str, str, float, float]] = []
        for number, (name, rows) in enumerate(perplexity.items()):
            colour = NEUTRAL if name == "before" else SERIES[number % len(SERIES)]
            places = [(row["first"] + row["last"]) / 2 for row in rows]
            found = [row["perplexity"] for row in rows]
            axes.plot(places, found, color=colour, marker="o", markersize=3)
            texts = (
                f"{name}: {decimal(row['perplexity'], 3)}, tokens {integer(row['first'])} to {integer(row['last'])}"
                for row in rows
            )
            canvas.tell_line(axes, places, found, texts)
            ends.append((name, colour, places[-1], found[-1]))
        if window is not None:
            axes.axvline(window, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
            top = (window, 1)
            above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset pixels"}
            axes.annotate(f"window {integer(window)}", top, (5, 12), va="top", color=MUTED, **above)
        axes.autoscale_view()
        heights = [float(axes.transData.transform((place, end))[1]) for _, _, place, end in ends]
        for (name, colour, place, end), height, moved in zip(ends, heights, spread(heights, 17), strict=True):
            ink = INK if colour == NEUTRAL else colour
            label = f"{shorten(name, 16)}  {decimal(end, 2)}"
            offset = (9, moved - height)
            axes.annotate(label, (place, end), offset, textcoords="offset pixels", va="center", color=ink)
    return canvas.svg
