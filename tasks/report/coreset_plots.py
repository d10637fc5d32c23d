"""The picture of a coreset: examples as dots on two axes of their gradients, coloured by cluster, the chosen marked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from longloom.tasks.report.figures import INK, NEUTRAL, PAGE, SERIES, drawing
from longloom.tasks.report.formats import integer, shorten


def coreset_map(dots: Mapping[str, np.ndarray], *, title: str) -> Markup:
    """One panel.

    Args:
        dots: x and y, float [n]; cluster, int [n], -1 for none; chosen, bool [n].
        title: the method's name.
    """
    x, y, cluster, chosen = (dots[name] for name in ("x", "y", "cluster", "chosen"))
    picked = integer(int(chosen.sum()))
    label = f"Gradients of {integer(len(x))} examples in the plane, {picked} of them chosen by {title}"
    with drawing(500, 400, label=label) as canvas:
        axes = canvas.axes(left=10, right=10, top=32, bottom=10)
        for number, colour in cluster_colours(x, y, cluster).items():
            own = cluster == number
            _dots(axes, x[own], y[own], size=4.2, colour=colour, opacity=0.55)
        _dots(axes, x[chosen], y[chosen], size=7.5, colour=PAGE)
        _dots(axes, x[chosen], y[chosen], size=5, colour=INK)
        for left, top, number, taken in zip(x.tolist(), y.tolist(), cluster.tolist(), chosen.tolist(), strict=True):
            group = f"cluster {number}" if number >= 0 else "an example"
            canvas.tell(axes, left, top, f"{group}, chosen" if taken else group)
        axes.set_title(shorten(title, 60), loc="left", fontsize=13, color=INK, pad=10)
        axes.axis("off")
        axes.set_aspect("equal", "datalim")
        if len(x):
            axes.update_datalim(np.column_stack([x, y]))
            axes.autoscale_view()
    return canvas.svg


def cluster_colours(x: np.ndarray, y: np.ndarray, cluster: np.ndarray) -> dict[int, str]:
    """A colour a cluster, the largest first: of those that are there, the one whose clusters lie farthest away.

    Rows without a cluster are neutral.
    """
    names, sizes = np.unique(cluster, return_counts=True)
    found: dict[int, str] = {}
    places: dict[str, list[np.ndarray]] = {colour: [] for colour in SERIES}
    for number in names[np.lexsort((names, -sizes))].tolist():
        if number < 0:
            found[number] = NEUTRAL
            continue
        own = cluster == number
        here = np.array([x[own].mean(), y[own].mean()])
        away = {
            colour: min((float(np.linalg.norm(here - there)) for there in others), default=np.inf)
            for colour, others in places.items()
        }
        found[number] = max(away, key=lambda colour: away[colour])
        places[found[number]].append(here)
    return found


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, *, size: float, colour: str, opacity: float = 1.0) -> None:
    """Dots as the round ends of lines without length: one path for all, a tenth of the bytes of a mark for each."""
    if len(x) == 0:
        return
    vertices = np.repeat(np.column_stack([x, y]).astype(np.float64), 2, axis=0)
    path = Path(vertices, np.tile([Path.MOVETO, Path.LINETO], len(x)))
    path.should_simplify = False
    axes.add_patch(
        PathPatch(path, fill=False, edgecolor=colour, lw=size, alpha=opacity, capstyle="round", joinstyle="round")
    )
