"""A comparison of retrieval with direct long context, written out for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longloom.tasks.report.formats import decimal, duration, integer, p_value, percent, signed
from longloom.tasks.report.intervals import SIGNIFICANT
from longloom.tasks.report.metrics import score_digits
from longloom.tasks.report.views import Cell, mark_best

Numbers = dict[str, Any]


@dataclass
class Line:
    """One way to give a model its context.

    Attributes:
        name: "direct", or the retrieval; with the KV policy where the comparison has several.
        score: the mean over the tasks.
        difference: of that mean to direct long context, with its interval, and p as a note; None: not paired.
        verdict: "better" or "worse" than direct long context where that is unlikely to be chance.
        prompt_tokens, gold_recall, seconds, samples: as text.
        scores: of the tasks.
    """

    name: str
    score: Cell
    difference: Cell | None
    verdict: str
    prompt_tokens: str
    gold_recall: str
    seconds: str
    samples: str
    scores: list[Cell]


def retrieval_lines(comparison: Numbers, seconds: Mapping[tuple[str, str], float] | None = None) -> list[Line]:
    """The rows of a comparison of `retrieval.comparisons`.

    Args:
        comparison: of report.json.
        seconds: (policy, retrieval or "") -> time, where it is known.
    """
    rows = comparison["rows"]
    digits = score_digits(score for row in rows for score in (*row["scores"], row["score"]))
    several = len({row["policy"] for row in rows}) > 1
    lines = [_line(row, digits, several=several, seconds=seconds or {}) for row in rows]
    mark_best([line.score for line in lines], [row["score"] for row in rows])
    for position in range(len(comparison["tasks"])):
        mark_best([line.scores[position] for line in lines], [row["scores"][position] for row in rows])
    return lines


def _line(row: Numbers, digits: int, *, several: bool, seconds: Mapping[tuple[str, str], float]) -> Line:
    name = "direct" if row["retrieval"] is None else row["retrieval"]
    notes = (f"{integer(row['failed'])} failed",) if row["failed"] else ()
    interval = "" if row["low"] is None else f"{decimal(row['low'], digits)}–{decimal(row['high'], digits)}"
    against, difference, verdict = row["against"], None, ""
    if against:
        ends = " to ".join(signed(against[end], digits) for end in ("low", "high"))
        difference = Cell(signed(against["difference"], digits), ends, notes=(f"p {p_value(against['p'])}",))
        if against["p"] < SIGNIFICANT:
            verdict = "better" if against["difference"] > 0 else "worse"
    return Line(
        name=f"{name} · {row['policy']}" if several else name,
        score=Cell(decimal(row["score"], digits), interval, notes=notes),
        difference=difference,
        verdict=verdict,
        prompt_tokens=integer(row["prompt_tokens"]),
        gold_recall=percent(row["gold_recall"]),
        seconds=duration(seconds.get((row["policy"], row["retrieval"] or ""))),
        samples=integer(row["samples"]),
        scores=[Cell(decimal(score, digits)) for score in row["scores"]],
    )
