"""The pages' templates, with the formats as filters. Jinja2 escapes whatever comes from data."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longloom.tasks.report import formats
from longloom.tasks.report.links import anchor
from longloom.tasks.report.look import look

#: Characters of a span that are shown in a table.
SHOWN_SPAN = 84
_FORMATS = ("integer", "compact", "in_bytes", "duration", "percent", "decimal", "short_digest", "plain")


def environment() -> Environment:
    """Templates of this folder, autoescaped; without matplotlib, so that pages without figures are there at once."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in _FORMATS:
        found.filters[name] = getattr(formats, name)
    found.filters["anchor"] = anchor
    found.filters["one_line"] = partial(formats.shorten, limit=SHOWN_SPAN)
    found.globals["look"] = look()
    return found
