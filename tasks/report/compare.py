"""The compare stage: two reports in; their differences as JSON, Markdown, a terminal's table and a page out."""

from __future__ import annotations

from pathlib import Path

from longloom.storage.stats import Stats
from longloom.tasks.report.differences import compare
from longloom.tasks.report.read import read_json
from longloom.tasks.report.render_compare import render_compare

#: Name of the file -> its form.
FILES = {"compare.json": "json", "compare.md": "markdown", "compare.txt": "table", "index.html": "page"}


def build(first: Path, second: Path, out: Path, *, pages: tuple[str, str] = ("", "")) -> Stats:
    """Writes compare.json, compare.md, compare.txt (for a terminal of 120 columns) and index.html (volatile).

    Args:
        first, second: report artifacts, of which report.json is read.
        out: an empty folder.
        pages: where the pages of both lie, as seen from `out`; empty: the page links to none.

    Raises:
        ValueError: a report.json is unreadable; names it.
    """
    comparison = compare(read_json(first / "report.json"), read_json(second / "report.json"))
    for name, form in FILES.items():
        (out / name).write_text(render_compare(comparison, form, pages=pages), encoding="utf-8")
    counts = {
        "scores": len(comparison.rows),
        "measures": len(comparison.measures),
        "changes": len(comparison.changes),
    }
    return Stats(counts=counts, volatile=("index.html",))
