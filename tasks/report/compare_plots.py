"""The picture of a comparison: each paired difference with its interval, a panel a suite."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator

from longloom.tasks.report.differences import Difference
from longloom.tasks.report.figures import INK, MUTED, NEUTRAL, SERIES, drawing
from longloom.tasks.report.formats import shorten, signed

#: Differences of a suite that are drawn, the largest of them.
SHOWN = 40
_ROW = 24
_COLOURS = {"better": SERIES[0], "worse": SERIES[1], "": NEUTRAL}


def drawn(rows: Sequence[Difference]) -> list[Difference]:
    """The rows of a suite that its picture shows, in their order: the largest differences over the same samples."""
    moved = [row for row in rows if row.paired and row.paired.difference != 0]
    largest = sorted(moved, key=lambda row: -abs(row.paired.difference if row.paired else 0))[:SHOWN]
    return [row for row in moved if row in largest]


def difference_bars(rows: Sequence[Difference], *, digits: int) -> Markup:
    """b - a with its 95% interval: a dot and a bar a row, coloured where b is better or worse beyond chance.

    Args:
        rows: of one suite.
        digits: decimals of its scores.

    Returns:
        Nothing where no row differs.
    """
    shown = drawn(rows)
    if not shown:
        return Markup()
    names = [" · ".join(filter(None, (row.task, row.model, row.policy, row.retrieval))) for row in shown]
    with drawing(1040, _ROW * len(shown) + 62, label=f"Differences on {shown[0].suite}, b less a") as canvas:
        axes = canvas.axes(left=430, right=70, top=8, bottom=46)
        axes.axvline(0, color=MUTED, lw=1.2, zorder=0)
        for place, (row, name) in enumerate(zip(shown, names, strict=True)):
            assert row.paired is not None
            colour, paired = _COLOURS[row.verdict], row.paired
            axes.hlines(place, paired.low, paired.high, color=colour, lw=5, alpha=0.4)
            axes.plot([paired.difference], [place], "o", color=colour, ms=7)
            ends = f"{signed(paired.low, digits)} to {signed(paired.high, digits)}"
            text = f"{name}: {signed(paired.difference, digits)} ({ends}), p {paired.p:.2g}"
            canvas.tell(axes, paired.difference, place, text)
            axes.annotate(
                shorten(name, 64), (0, place), (-12, 0), xycoords=("axes fraction", "data"),
                textcoords="offset pixels", ha="right", va="center", color=INK, annotation_clip=False,
            )  # fmt: skip
        axes.set(ylim=(len(shown) - 0.5, -0.5), yticks=[])
        axes.margins(x=0.04)
        axes.grid(True, axis="x")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        axes.set_xlabel("b − a, with its 95% interval")
    return canvas.svg
