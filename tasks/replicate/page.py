"""The table of claims as a page in the look of the report: a row leads to the report's section and to its artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longloom.tasks.replicate.words import measured, runs, summary
from longloom.tasks.report import look as report

HERE = Path(__file__).parent
#: From an artifact's folder, `artifacts/<kind>/<key>`, to the store's root.
ROOT = "../../../"


def page(numbers: dict[str, Any], places: Mapping[str, str], *, shown_in: str) -> str:
    """The whole page.

    Args:
        numbers: of replicate.json.
        places: role of an artifact -> its place below the store's root.
        shown_in: the role of the page that the sections stand in.
    """
    groups = [
        (numbers["papers"][paper], list(rows)) for paper, rows in groupby(numbers["rows"], lambda row: row["paper"])
    ]
    template = _environment().get_template("replicate.html")
    shown = template.render(
        title="Seven papers in miniature",
        look=_look(),
        summary=summary(numbers),
        groups=groups,
        measured=measured,
        runs=runs,
        links={name: f"{ROOT}{place}/manifest.json" for name, place in places.items()},
        report=f"{ROOT}{places[shown_in]}/index.html" if shown_in in places else "",
    )
    return shown + "\n"


def _look() -> report.Look:
    return report.look(more=(HERE / "replicate.css").read_text(encoding="utf-8"))


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader([HERE, report.HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
