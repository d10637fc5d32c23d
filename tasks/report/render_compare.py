"""A comparison as a terminal table, as Markdown, as JSON, and as a page in the look of the report."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from longloom.tasks.report.compare_plots import SHOWN, difference_bars
from longloom.tasks.report.differences import Beside, Change, Comparison, Difference
from longloom.tasks.report.formats import NOTHING, decimal, p_value, plain, signed
from longloom.tasks.report.markdown import pipe_table, safe
from longloom.tasks.report.measures import Measure
from longloom.tasks.report.metrics import Unit, unit_digits, unit_of
from longloom.tasks.report.templates import environment

#: Of differences in a terminal.
_STYLES = {"better": "green", "worse": "red", "": ""}
FORMS = ("table", "markdown", "json", "page")
#: Decimals of measures: losses and perplexities differ in the third.
DIGITS = 3
SAME = "No parameter and no input differs."
_DIGEST = re.compile("[0-9a-f]{64}")


def render_compare(
    comparison: Comparison, form: str, *, width: int = 120, colour: bool = False, pages: tuple[str, str] = ("", "")
) -> str:
    """Writes a comparison.

    Args:
        comparison: of `compare`.
        form: "table" (for a terminal), "markdown", "json" or "page" (HTML).
        width: of the table, in characters.
        colour: let the table use a terminal's colours.
        pages: of both runs, for the page to link to; empty: not known.

    Raises:
        ValueError: another form.
    """
    if form == "table":
        return _table(comparison, width, colour)
    if form == "markdown":
        return _markdown(comparison)
    if form == "json":
        told = {
            name: [{**asdict(row), "difference": row.difference, "verdict": row.verdict} for row in rows]
            for name, rows in (("rows", comparison.rows), ("measures", comparison.measures))
        }
        whole = {**asdict(comparison), **told}
        return json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    if form == "page":
        template = environment().get_template("compare.html")
        text = template.render(
            title="Two runs compared",
            comparison=comparison,
            pages=pages,
            lines=_lines(comparison.rows),
            tested=sum(row.paired is not None for row in comparison.rows),
            figures=_figures(comparison.rows),
            shown=SHOWN,
            measures=[_measure(row) for row in comparison.measures],
            setting=_setting,
            same=SAME,
        )
        return text + "\n"
    raise ValueError(f"compare: unknown form {form!r}; known: {', '.join(FORMS)}")


def _lines(rows: Sequence[Difference]) -> list[dict[str, Any]]:
    """The rows written out."""
    digits = _digits(rows)
    return [_line(row, digits[unit_of(row.suite, row.metric)]) for row in rows]


def _line(row: Difference, digits: int) -> dict[str, Any]:
    names = ("suite", "task", "metric", "model", "policy", "verdict", "artifacts")
    found: dict[str, Any] = {name: getattr(row, name) for name in names}
    found["policy"] = " · ".join(filter(None, (row.policy, row.retrieval)))
    found |= {"a": decimal(row.a, digits), "b": decimal(row.b, digits)}
    found |= {"difference": signed(row.difference, digits), "samples": str(row.samples or NOTHING)}
    found |= {"interval": NOTHING, "p": NOTHING}
    if row.paired:
        found["interval"] = f"{signed(row.paired.low, digits)} to {signed(row.paired.high, digits)}"
        found["p"] = p_value(row.paired.p)
    return found


def _digits(rows: Sequence[Difference]) -> dict[Unit, int]:
    """The decimals of each suite's scores."""
    return unit_digits((row.suite, row.metric, value) for row in rows for value in (row.a, row.b))


def _figures(rows: Sequence[Difference]) -> dict[str, Markup]:
    """The picture of each suite that has one; of lm-eval's metrics each has its own."""
    units: dict[Unit, list[Difference]] = {}
    for row in rows:
        units.setdefault(unit_of(row.suite, row.metric), []).append(row)
    digits = _digits(rows)
    found = {", ".join(filter(None, unit)): difference_bars(own, digits=digits[unit]) for unit, own in units.items()}
    return {name: svg for name, svg in found.items() if svg}


def _measure(row: Beside) -> dict[str, Any]:
    """One measure written out."""
    found: dict[str, Any] = {"part": row.part, "name": row.name, "verdict": row.verdict}
    found |= {"a": _value(row.a), "b": _value(row.b), "difference": signed(row.difference, DIGITS)}
    found |= {"interval_a": _interval(row.a), "interval_b": _interval(row.b)}
    return {**found, "artifacts": (row.a.section if row.a else "", row.b.section if row.b else "")}


def _value(measure: Measure | None) -> str:
    return decimal(None if measure is None else measure.value, DIGITS)


def _interval(measure: Measure | None) -> str:
    if measure is None or measure.low is None or measure.high is None:
        return ""
    return f"{decimal(measure.low, DIGITS)} to {decimal(measure.high, DIGITS)}"


def _setting(change: Change, side: str) -> str:
    """A parameter's value in run `side`, or "not set"; of a digest its beginning, as everywhere."""
    value = getattr(change, side)
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:12]
    return plain(value) if change.only in ("", side) else "not set"


def _table(comparison: Comparison, width: int, colour: bool) -> str:
    output = io.StringIO()
    console = Console(
        file=output, width=width, force_terminal=colour, color_system="standard" if colour else None, highlight=False
    )
    a, b = comparison.titles
    console.print(Text(f"a: {a}\nb: {b}"))
    if comparison.rows:
        console.print(_scores_table(comparison.rows))
    moved = [row for row in comparison.measures if row.difference]
    if moved:
        console.print(_measures_table(moved))
    if comparison.changes:
        changes = Table(box=SIMPLE_HEAD, header_style="bold")
        for name in ("section", "parameter", "a", "b"):
            changes.add_column(name, overflow="fold")
        for change in comparison.changes:
            values = (change.section, change.parameter, _setting(change, "a"), _setting(change, "b"))
            changes.add_row(*map(Text, values))
        console.print(changes)
    else:
        console.print(SAME)
    for section, only in comparison.sections.items():
        console.print(Text(f"Only {only} has the section {section}."))
    return output.getvalue()


def _markdown(comparison: Comparison) -> str:
    a, b = (safe(title) for title in comparison.titles)
    blocks = ["# Two runs compared", f"a: {a}  \nb: {b}"]
    names = ("suite", "task", "metric", "model", "policy", "a", "b", "difference", "interval", "p", "samples")
    if comparison.rows:
        header = ["suite", "task", "metric", "model", "policy", "a", "b", "b - a", "95% interval", "p", "samples"]
        rows = [[safe(line[name]) for name in names] for line in _lines(comparison.rows)]
        blocks += ["## Scores", pipe_table(header, rows, left=5)]
    if comparison.measures:
        header = ["", "measure", "a", "a's interval", "b", "b's interval", "b - a"]
        columns = ("part", "name", "a", "interval_a", "b", "interval_b", "difference")
        rows = [[safe(_measure(row)[name]) for name in columns] for row in comparison.measures]
        blocks += ["## Other measures", pipe_table(header, rows, left=2)]
    changes = [
        [safe(text) for text in (change.section, change.parameter, _setting(change, "a"), _setting(change, "b"))]
        for change in comparison.changes
    ]
    header = ["section", "parameter", "a", "b"]
    blocks += ["## Parameters and inputs", pipe_table(header, changes, left=4) if changes else SAME]
    blocks += [f"Only {only} has the section {safe(section)}." for section, only in comparison.sections.items()]
    return "\n\n".join(blocks) + "\n"


def _scores_table(rows: Sequence[Difference]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    for name in ("suite", "task", "model", "policy"):
        table.add_column(name, overflow="fold")
    for name in ("a", "b", "b - a", "95% interval", "p", "samples"):
        table.add_column(name, justify="right", no_wrap=True)
    metrics = Counter((row.suite, row.task, row.model, row.policy, row.retrieval) for row in rows)
    previous = rows[0].suite
    for row, line in zip(rows, _lines(rows), strict=True):
        if previous != row.suite:
            table.add_section()
        previous = row.suite
        several = metrics[row.suite, row.task, row.model, row.policy, row.retrieval] > 1
        names = [row.suite, f"{row.task} {row.metric}" if several else row.task, row.model, line["policy"]]
        difference = Text(line["difference"], style=_STYLES[line["verdict"]])
        table.add_row(*map(Text, names), line["a"], line["b"], difference, line["interval"], line["p"], line["samples"])
    return table


def _measures_table(rows: Sequence[Beside]) -> Table:
    """The measures that differ."""
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    for name in ("", "measure"):
        table.add_column(name, overflow="fold")
    for name in ("a", "b", "b - a"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        line = _measure(row)
        difference = Text(line["difference"], style=_STYLES[row.verdict])
        table.add_row(Text(row.part), Text(row.name), line["a"], line["b"], difference)
    return table
