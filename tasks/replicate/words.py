"""The table of claims in Markdown, and how its cells are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Numbers = dict[str, Any]
Row = Mapping[str, Any]
NOTHING = "–"


def measured(row: Row) -> str:
    """The mean and, of several runs, the least and the most: `18.3x`, `4.2 points (1.0 to 7.5)`."""
    values, digits, unit = row["values"], row["digits"], row["unit"]
    if not values:
        return NOTHING
    mean = f"{_fixed(sum(values) / len(values), digits)}{unit}"
    if len(values) == 1:
        return mean
    return f"{mean} ({_fixed(min(values), digits)} to {_fixed(max(values), digits)})"


def runs(row: Row) -> str:
    """How often it was measured, and where earlier: by which command, on which machine, when."""
    count = len(row["values"])
    text = f"{count} run{'' if count == 1 else 's'}" if count else f"not measured: {row['note']}"
    earlier = row["earlier"]
    if earlier is None:
        return text
    return f"{text}, measured earlier: `{earlier['command']}`, {earlier['machine']}, {earlier['date']}"


def summary(numbers: Numbers) -> str:
    """One sentence: how many claims hold."""
    found = numbers["verdicts"]
    told = [f"{found[name]} {words}" for name, words in _COUNTED.items() if found.get(name)]
    return f"Of {len(numbers['rows'])} claims of {len(numbers['papers'])} papers " + ", ".join(told) + "."


_COUNTED = {"holds": "hold", "partly": "hold partly", "does not": "do not hold", "not measured": "were not measured"}


def markdown(numbers: Numbers) -> str:
    """A table a run: paper, claim, the paper's figure, our measure, the verdict; below, the rules."""
    blocks = ["# Seven papers in miniature", summary(numbers), table(numbers)]
    rules = [
        f"- *{_safe(row['claim'])}*: {_safe(row['measure'])}; {_safe(row['rule'])}; {runs(row)}"
        for row in numbers["rows"]
    ]
    blocks += ["## What was measured, and the rules", "\n".join(rules)]
    return "\n\n".join(blocks) + "\n"


def table(numbers: Numbers) -> str:
    """The pipe table of the claims alone, as README has it."""
    lines = ["| paper | claim | the paper's figure | measured here | verdict |", "| --- | --- | --- | --- | --- |"]
    previous = ""
    for row in numbers["rows"]:
        paper = numbers["papers"][row["paper"]]
        name = f"[{paper['title']}](https://arxiv.org/abs/{paper['arxiv']})" if row["paper"] != previous else ""
        previous = row["paper"]
        figure = f"{row['figure']} ({row['place']})"
        shown = measured(row) + (f", earlier ({row['earlier']['date']})" if row["earlier"] else "")
        cells = (
            name,
            _safe(row["claim"]),
            _safe(figure),
            _safe(f"{row['measure']}: ") + shown,
            f"**{row['verdict']}**",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _fixed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
