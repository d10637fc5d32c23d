"""How trainings went beside their losses: learning rate and gradient norm against tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from longloom.tasks.report.figures import drawing, token_axis
from longloom.tasks.report.formats import compact, shorten
from longloom.tasks.report.plots import LOG_RATIO

Numbers = dict[str, Any]

#: A curve's name in report.json, and what stands beside its axis.
PANELS = (("learning_rate", "learning rate"), ("grad_norm", "gradient norm"))


def schedule_curves(runs: Mapping[str, Numbers], colours: Mapping[str, str]) -> Markup:
    """Learning rate and gradient norm before clipping side by side, a line a run; nothing where no run tells them."""
    told = {name: run["curve"] for name, run in runs.items() if run["curve"]["tokens"] and "grad_norm" in run["curve"]}
    if not told:
        return Markup()
    ends = [curve["tokens"][-1] for curve in told.values()]
    with drawing(1040, 200, label=f"Learning rate and gradient norm against tokens: {', '.join(told)}") as canvas:
        for number, (name, title) in enumerate(PANELS):
            # On the left there is room for 0.00018.
            axes = canvas.axes(left=86 + 520 * number, right=540 - 520 * number, top=14, bottom=46)
            token_axis(axes, log=max(ends) > LOG_RATIO * max(1.0, min(ends)))
            axes.grid(True, axis="y")
            axes.spines["left"].set_visible(False)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.set_ylabel(title)
            for run, curve in told.items():
                values = [float("nan") if value is None else value for value in curve[name]]
                marker = "o" if len(values) == 1 else ""  # a line of one point is none
                axes.plot(curve["tokens"], values, color=colours[run], lw=1.2, marker=marker, ms=4.5)
                said = f"{shorten(run, 30)}: {title} " if len(told) > 1 else f"{title} "
                pairs = zip(curve["tokens"], values, strict=True)
                canvas.tell_line(
                    axes, curve["tokens"], values, (f"{said}{y:.3g} at {compact(x)} tokens" for x, y in pairs)
                )
            axes.set_ylim(bottom=0)
            axes.margins(x=0.0 if len(told) == 1 else 0.02)
    return canvas.svg
