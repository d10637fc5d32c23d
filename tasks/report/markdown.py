"""report.md: the short summary that a Prefect artifact shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from longloom.tasks.report.formats import NOTHING, decimal, integer, percent
from longloom.tasks.report.summary import summary
from longloom.tasks.report.views import evaluation_table, grid_name, grid_scale

Numbers = dict[str, Any]


def markdown(numbers: Numbers) -> str:
    """The summary paragraph and the tables of evaluation, coresets by source and needle grids.

    Args:
        numbers: report.json.
    """
    paragraph = "".join(f"**{safe(text)}**" if strong else safe(text) for text, strong in summary(numbers))
    blocks = [f"# {safe(numbers['title'])}", paragraph]
    evaluation = numbers.get("evaluation", {})
    if evaluation.get("scores"):
        blocks += ["## Evaluation", _evaluation(evaluation["scores"])]
    if numbers.get("coreset", {}).get("sources"):
        blocks += ["## Coresets by source", _sources(numbers["coreset"])]
    grids = evaluation.get("grids", [])
    for grid in grids:
        blocks += [f"## Needle: {safe(grid_name(grid, grids))}", _grid(grid, grid_scale(grid, grids)[1])]
    return "\n\n".join(filter(None, blocks)) + "\n"


def safe(text: str) -> str:
    """Text that Markdown shows as it is: on one line, no markup of its own, no HTML, no cell borders."""
    line = re.sub(r"\s+", " ", text)
    for character in "\\`*_[]|#~":
        line = line.replace(character, f"\\{character}")
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A pipe table; the first `left` columns are aligned left, the others (numbers) right."""
    rules = [":---" if position < left else "---:" for position in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rules, *rows))


def _evaluation(scores: Sequence[Numbers]) -> str:
    table = evaluation_table(scores)
    header = ["suite", "task", "metric", "samples", *(safe(" · ".join(column)) for column in table.columns)]
    rows: list[list[str]] = []
    for suite in table.suites:
        for row in [*suite.rows, *([suite.mean] if suite.mean else [])]:
            cells: list[str] = []
            for cell in row.cells:
                if cell is None:
                    cells.append(NOTHING)
                    continue
                text = f"**{cell.score}**" if cell.best else cell.score
                notes = ", ".join(cell.notes)
                cells.append(text + (f" ({cell.interval})" if cell.interval else "") + (f"; {notes}" if notes else ""))
            samples = ", ".join(filter(None, [row.samples, *row.notes]))
            rows.append([safe(suite.name), safe(row.task), safe(row.metric), samples, *cells])
    return (
        pipe_table(header, rows, left=3)
        + "\n\nIn brackets: 95% bootstrap intervals over samples. The best of a row is bold."
    )


def _sources(coreset: Numbers) -> str:
    methods, pool = coreset["methods"], coreset["pool"]
    header = ["source", *(["pool", "share"] if pool else [])]
    for method in methods:
        header += [safe(method), "share"]
    lines = [(safe(row["source"]), row) for row in coreset["sources"]]
    if coreset["other"]:
        lines.append((f"{coreset['other']['sources']} others", coreset["other"]))
    rows = [
        [
            name,
            *([integer(row["pool"]), percent(row["pool"] / pool)] if pool else []),
            *(
                text
                for method, found in methods.items()
                for text in (
                    integer(row["chosen"][method]),
                    percent(row["chosen"][method] / max(1, found["examples"])),
                )
            ),
        ]
        for name, row in lines
    ]
    return pipe_table(header, rows)


def _grid(grid: Numbers, digits: int) -> str:
    header = ["depth \\\\ length", *(integer(length) for length in grid["lengths"])]
    rows = [
        [f"{depth:g}%", *(decimal(score, digits) for score in scores)]
        for depth, scores in zip(grid["depths"], grid["scores"], strict=True)
    ]
    return pipe_table(header, rows)
