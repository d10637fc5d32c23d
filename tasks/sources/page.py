"""The page of explained texts, in the look of the report: each text with its spans marked, and what holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longloom.tasks.report import look as report

HERE = Path(__file__).parent
#: Strengths of a mark: the rarest third of the spans, the next, the rest. The page's colours have as many.
_LEVELS = 3


class Piece(NamedTuple):
    """Attributes: text: of the explained text. rank: of the rarest span that covers it, from 1; 0: none. level: of its
    mark, 1 the strongest; 0: none."""

    text: str
    rank: int
    level: int


def page(explained: Sequence[dict[str, Any]]) -> str:
    """The whole page for what `explain.build` found."""
    environment = Environment(
        loader=FileSystemLoader([HERE, report.HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = (HERE / "explain.css").read_text(encoding="utf-8")
    template = environment.get_template("explain.html")
    texts = [{**one, "pieces": pieces(one), "levels": _levels(len(one["spans"]))} for one in explained]
    return template.render(title="What stands in the corpus", look=report.look(more=own), texts=texts) + "\n"


def pieces(one: dict[str, Any]) -> list[Piece]:
    """An explained text cut at the borders of its spans; neighbours of one rank are together."""
    text = one["text"]
    ranks = [0] * len(text)
    for rank in range(len(one["spans"]), 0, -1):  # the rarest last, so that it is what is seen
        span = one["spans"][rank - 1]
        ranks[span["begin"] : span["end"]] = [rank] * (span["end"] - span["begin"])
    levels = [0, *_levels(len(one["spans"]))]
    found: list[Piece] = []
    begin = 0
    for place in range(1, len(text) + 1):
        if place == len(text) or ranks[place] != ranks[begin]:
            found.append(Piece(text[begin:place], ranks[begin], levels[ranks[begin]]))
            begin = place
    return found


def _levels(spans: int) -> list[int]:
    """The strength of each span's mark, by rank."""
    return [1 + rank * _LEVELS // spans for rank in range(spans)]
