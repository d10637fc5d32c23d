"""What longcache.py's answers say: means over the seeds, the claims, the grids of needles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from over_seeds import spread

WINDOW = 512
#: Tokens of prompt and answer -> haystacks at each depth. The first is within the window; the longest is dear.
HAYSTACKS = {480: 4, 1024: 2, 2048: 2, 8192: 2, 32_768: 1, 131_072: 1}
DEPTHS = [10, 30, 50, 70, 90]
#: Tokens of haystacks that hold a needle at each depth, of which one is asked for.
FIVE_AT = 32_768
STREAMING = "streaming:sink=32,window=480"
LONGCACHE = "longcache"
#: More and shorter spans: a window of 512 has room for 7 of the default's, the paper's window of 8,192 for 127.
DIVIDED = "longcache:local=128,span=16"
#: The same, but only the last tokens of a prompt and those of its answer search.
ASKING = "longcache:local=128,span=16,asking=16"


def share(cells: dict[str, list[float]]) -> float:
    """Of a length's needles, those found, in per cent."""
    return 100 * sum(hits for hits, _ in cells.values()) / sum(asked for _, asked in cells.values())


def _percent(found: dict[str, Any], what: str) -> float:
    return float(100 * found[what] / found["asked"])


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, with the least and the most."""
    first = seeds[0]
    return {
        "needles": {
            policy: {length: spread([share(seed["needles"][policy][length]) for seed in seeds]) for length in lengths}
            for policy, lengths in first["needles"].items()
        },
        "perplexity": {
            length: {
                name: spread([seed["perplexity"][length][name] for seed in seeds]) for name in rows if name != "tokens"
            }
            for length, rows in first["perplexity"].items()
        },
        "perplexity over the window's": {
            length: {
                name: spread(
                    [
                        100 * (seed["perplexity"][length][name] / seed["perplexity"][length]["in the window"] - 1)
                        for seed in seeds
                    ]
                )
                for name in rows
                if name not in ("tokens", "in the window")
            }
            for length, rows in first["perplexity"].items()
        },
        "five needles, % right": {
            policy: {str(FIVE_AT): spread([_percent(seed["five needles"][policy], "right") for seed in seeds])}
            for policy in first["five needles"]
        },
        "five needles, % another's number": {
            policy: {str(FIVE_AT): spread([_percent(seed["five needles"][policy], "another's") for seed in seeds])}
            for policy in first["five needles"]
        },
        "records": {
            suite: {way: spread([seed["records"][suite][way]["found"] for seed in seeds]) for way in ways}
            for suite, ways in first["records"].items()
        },
        **{
            task: {
                policy: {
                    length: spread([seed["ruler"][task][policy][length][0] for seed in seeds]) for length in lengths
                }
                for policy, lengths in policies.items()
            }
            for task, policies in first["ruler"].items()
        },
    }


def claims(table: dict[str, Any]) -> list[dict[str, Any]]:
    """What was asked, the figure found (a mean over the seeds), and whether it holds."""
    found = table["needles"]
    within = found["full"][str(min(HAYSTACKS))]["mean"]
    asked = []
    for policy in (LONGCACHE, DIVIDED, ASKING):
        for length, row in found[policy].items():
            if int(length) >= 16 * WINDOW:
                kept_share = 100 * row["mean"] / within
                times = f"{int(length) // WINDOW} times the window"
                claim = f"{policy}: needles at {times}, % of those within it: at least 95"
                asked.append((claim, kept_share, kept_share >= 95))
    for length, rows in table["perplexity over the window's"].items():
        times = f"{int(length) / WINDOW:g} times the window"
        for policy in (LONGCACHE, DIVIDED, ASKING):
            if policy in rows:
                above = rows[policy]["mean"]
                asked.append((f"{policy}: perplexity at {times}, % over the window's: at most 3", above, above <= 3))
        if "full" in rows:
            above = rows["full"]["mean"]
            asked.append((f"full attention's perplexity at {times}, % over the window's: collapsed", above, above > 20))
    for policy in ("full", STREAMING):
        for length, row in found[policy].items():
            if int(length) >= 16 * WINDOW:
                claim = (
                    f"{policy.partition(':')[0]} loses the needle at {int(length) // WINDOW} times the window, % found"
                )
                asked.append((claim, row["mean"], row["mean"] <= 10))
    return [{"claim": claim, "found": round(figure, 2), "holds": bool(holds)} for claim, figure, holds in asked]


def draw(seeds: list[dict[str, Any]], path: Path) -> None:
    """The grids, length by depth: full attention, streaming, a search in every chunk, and one at the prompt's end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown = {
        "full": "full attention",
        STREAMING: "streaming",
        DIVIDED: f"{DIVIDED}\n(every chunk searches)",
        ASKING: f"{ASKING}\n(only the prompt's end searches)",
    }
    untested, border = "#c9ced3", "crimson"
    lengths = [str(length) for length in HAYSTACKS if str(length) in seeds[0]["needles"][ASKING]]
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained", sharex=True, sharey=True)
    for axis, (policy, title) in zip(axes.flat, shown.items(), strict=True):
        cells = np.full((len(DEPTHS), len(lengths)), np.nan)
        for column, length in enumerate(lengths):
            for row, depth in enumerate(DEPTHS):
                pairs = [seed["needles"][policy].get(length, {}).get(f"{depth:g}") for seed in seeds]
                if found := [pair for pair in pairs if pair]:
                    cells[row, column] = 100 * sum(hits for hits, _ in found) / sum(asked for _, asked in found)
        axis.set_facecolor(untested)
        image = axis.imshow(cells, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(cells):
            if not np.isnan(value):
                colour = "black" if value > 60 else "white"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=10, color=colour)
        axis.axvline(0.5, color=border, linewidth=2)  # the window ends here
        axis.set_xticks(range(len(lengths)), [f"{int(length):,}" for length in lengths], fontsize=9)
        axis.set_yticks(range(len(DEPTHS)), [f"{depth}%" for depth in DEPTHS])
        axis.set_title(title, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("tokens of prompt and answer")
    for axis in axes[:, 0]:
        axis.set_ylabel("depth of the needle")
    figure.colorbar(image, ax=axes, label="found, %", aspect=40)
    named = [
        Line2D([], [], color=border, linewidth=2, label=f"window of {WINDOW}"),
        Patch(color=untested, label="not run"),
    ]
    figure.legend(handles=named, loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    figure.savefig(path, dpi=150)
