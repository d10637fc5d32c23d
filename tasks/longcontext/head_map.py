"""A head profile as a heat map: layers downwards, KV heads to the right, the heads that a policy protects framed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from longloom.kernels.kvcache.heads import HeadProfile, Scores

#: Inches of a cell and of what stands around a panel; cells shrink where heads or layers are many.
CELL, MARGIN, LARGEST = 0.34, 1.3, 11.0

Head = tuple[int, int]


def draw(profile: HeadProfile, chosen: Collection[Head], path: Path) -> None:
    """Writes a PNG: a panel for the induction scores (or the imported ones) and one for the echo scores.

    Args:
        profile: its scores.
        chosen: (layer, KV head) to be framed.
        path: of the file.
    """
    panels = [("induction" if profile.echo else profile.source, profile.induction)]
    if profile.echo:
        panels.append(("echo", profile.echo))
    layers, heads = profile.shape
    width, height = (min(LARGEST, max(1.6, CELL * count)) for count in (heads, layers))
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(len(panels) * (width + 1.6), height + MARGIN), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (title, scores) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _panel(axes, scores, chosen, title)
        figure.savefig(path, metadata={"Software": None})


def _panel(axes: Axes, scores: Scores, chosen: Collection[Head], title: str) -> None:
    flat = [score for row in scores for score in row]
    image = axes.imshow(scores, cmap="viridis", aspect="auto", vmin=min(0.0, *flat), vmax=max(flat), origin="upper")
    for layer, head in chosen:
        axes.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor="#d55e00", lw=2, clip_on=False))
    axes.set(title=title, xlabel="KV head", ylabel="layer")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.get_figure(root=True).colorbar(image, ax=axes)  # type: ignore[union-attr]  # the axes are in one
