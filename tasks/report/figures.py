"""Matplotlib figures as inline SVG that follows the page: its font, and its colours in light and in dark.

Figures are drawn in fixed hex colours, each of which is then replaced by a CSS variable of style.css (the hex stays as
the fallback). Text stays text, so it takes the page's font, can be selected and is escaped by the SVG writer. One unit
of the drawing is one CSS pixel. No pyplot, no global state, no ids or dates that vary between runs.

What a figure's marks stand for goes with it as JSON in `data-points`; page.js tells it at the pointer and by the keys.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import matplotlib.style
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from longloom.tasks.report.formats import tick

INK, MUTED, RULE, NEUTRAL, HEAT, ON_HEAT = "#1b1f24", "#656d76", "#d0d5da", "#8b939c", "#00568f", "#fefefe"
#: The page's own background, for marks that are hollow.
PAGE = "#fffffe"
#: Okabe and Ito's palette (2008), told apart with any colour vision; ordered by contrast to the page.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    NEUTRAL: "neutral",
    HEAT: "heat",
    ON_HEAT: "on-heat",
    PAGE: "page",
    **{colour: f"series-{number}" for number, colour in enumerate(SERIES, start=1)},
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "longloom",
    "text.parse_math": False,  # names of sources and tasks come from data; a dollar sign is one
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 12,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Told:
    """What one mark stands for.

    Attributes:
        axes: that it stands in.
        x, y: its middle, in their data's units.
        text: that is told.
        width, height: of a bar or a cell, in the same units; 0: a point.
    """

    axes: Axes
    x: float
    y: float
    text: str
    width: float
    height: float


@dataclass
class Drawing:
    """A figure under way; `svg` is there once its `drawing` block has ended."""

    figure: Figure
    width: int
    height: int
    svg: Markup = field(default_factory=Markup)
    told: list[Told] = field(default_factory=list)

    def axes(self, *, left: int, right: int, top: int, bottom: int) -> Axes:
        """Axes with margins in pixels."""
        width, height = self.width, self.height
        box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        return self.figure.add_axes(box)

    def tell(self, axes: Axes, x: float, y: float, text: str, *, width: float = 0, height: float = 0) -> None:
        """Says what stands at a place; in the order in which the arrow keys are to go through the figure."""
        if math.isfinite(x) and math.isfinite(y):
            self.told.append(Told(axes, x, y, text, width, height))

    def tell_line(self, axes: Axes, x: Sequence[float], y: Sequence[float], texts: Iterable[str]) -> None:
        """`tell` for every point of a line."""
        for left, top, text in zip(x, y, texts, strict=True):
            self.tell(axes, left, top, text)

    def points(self) -> list[list[float | str]]:
        """What was told, in pixels from the upper left: x, y, text and, of what has one, its extent."""
        found: list[list[float | str]] = []
        for one in self.told:
            corners = [(one.x - one.width / 2, one.y - one.height / 2), (one.x + one.width / 2, one.y + one.height / 2)]
            (left, low), (right, high) = one.axes.transData.transform(corners)
            point: list[float | str] = [
                round((left + right) / 2, 1),
                round(self.height - (low + high) / 2, 1),
                one.text,
            ]
            if one.width or one.height:
                point += [round(abs(right - left), 1), round(abs(high - low), 1)]
            found.append(point)
        return found


@contextmanager
def drawing(width: int, height: int, *, label: str) -> Iterator[Drawing]:
    """Draws a figure of the given size in CSS pixels; `label` describes it to who cannot see it."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # The browser draws the text; that matplotlib's own font lacks a script's glyphs does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        canvas = Drawing(figure, width, height)
        yield canvas
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    canvas.svg = _inline(buffer.getvalue(), width, height, label, canvas.points())


def _inline(svg: str, width: int, height: int, label: str, points: list[list[float | str]]) -> Markup:
    """The SVG element for HTML: no prolog, metadata or namespaces, ids of its own, CSS variables for colours."""
    body = svg[svg.index("<defs>") if "<defs>" in svg else svg.index("<g ") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    referenced = set(re.findall(r"#([\w-]+)[\")]", body))
    prefix = f"f{hashlib.sha256(body.encode()).hexdigest()[:8]}"
    body = re.sub(
        r' id="([\w.-]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in referenced else "", body
    )
    body = re.sub(r'(url\(#|href="#)([\w-]+)', rf"\g<1>{prefix}-\g<2>", body)
    for colour, name in _VARIABLES.items():
        body = re.sub(rf"(fill|stroke): {colour}\b", rf"\g<1>: var(--{name}, {colour})", body)
    head = f'<svg class="plot" role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    if points:
        text = json.dumps(points, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        escaped = html.escape(text, quote=False).replace("'", "&#39;")  # in single quotes, as JSON's own are double
        head += f" data-points='{escaped}'"
    return Markup(f'{head} aria-label="{html.escape(label)}">{body}')


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each model or method, the same on the whole page; base and pool are neutral."""
    found = {name: NEUTRAL for name in names if name in ("base", "pool")}
    others = [name for name in dict.fromkeys(names) if name not in found]
    return found | {name: SERIES[position % len(SERIES)] for position, name in enumerate(others)}


def token_axis(axes: Axes, *, log: bool) -> None:
    """A horizontal axis of tokens, written 2 M rather than 2000000."""
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.set_xlabel("tokens trained on")


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Moves positions apart until neighbours are at least `gap` from each other, each as little as a sweep allows."""
    order = sorted(range(len(positions)), key=lambda item: positions[item])
    moved = list(positions)
    for _ in range(50):
        for below, above in pairwise(order):
            overlap = gap - (moved[above] - moved[below])
            if overlap > 1e-6:
                moved[below] -= overlap / 2
                moved[above] += overlap / 2
    return moved
