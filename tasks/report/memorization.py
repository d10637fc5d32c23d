"""The study of memorization (arXiv 2407.14985): its numbers for report.json, and these arranged as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longloom.tasks.report.formats import NOTHING, decimal, integer, percent
from longloom.tasks.report.read import read_json, reading

#: Below it a correlation is bold, and its mark in the figure solid, as in the paper.
SIGNIFICANT = 0.05
TASK_GRAM, INFINITY_GRAM = "task-gram", "infinity-gram"

#: What the demo's tasks ask (tasks/corpus/standard_library/functions.py).
ASKED = {
    "knowledge": "from a function’s class and def line to the first line of its docstring",
    "translation": "from that line to the def line",
    "completion": "from class, def line and that line to the first lines of the body",
}

_ROW = ("set", "task", "n", "model", "parameters", "measure", "points", "records", "rho", "p", "low", "high")
_DROPPED = ("set", "task", "n", "pairs", "kept", "unseen", "zero", "rare", "unknown", "share_dropped")

Numbers = dict[str, Any]


def memorization_numbers(folder: Path) -> Numbers:
    """What trace.json says of memorization, all pairs that have a probability ranked, and of the pairs dropped.

    Returns:
        mode, gammas (n -> gamma), embedding, rows (`_ROW`) and dropped (`_DROPPED`), both in the study's order.

    Raises:
        ValueError: trace.json is unreadable or not a study's; names it.
    """
    path = folder / "trace.json"
    found = read_json(path)
    with reading(path):
        try:
            rows = [row for row in found["memorization"] if row["rule"] == "all"]
            return {
                "mode": found["mode"],
                "gammas": found["gammas"],
                "embedding": found["embeddings"][0],
                "rows": [{name: row[name] for name in _ROW} for row in rows],
                "dropped": [{name: row[name] for name in _DROPPED} for row in found["dropped"]],
            }
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"report: {path} is not a study of memorization: {error!r}") from error


@dataclass(frozen=True)
class Value:
    """One correlation, written out; `solid`: p < SIGNIFICANT."""

    rho: str
    interval: str
    p: str
    solid: bool


@dataclass(frozen=True)
class Line:
    """A task on a set, for one n.

    Attributes:
        task, set, n: which.
        values: one a model; None: the study has none.
        points: pairs (or, of the infinity-gram, output n-grams) that are ranked.
        pairs: mined; unseen: of them never together in a document; dropped: without a probability, with their share.
    """

    task: str
    set: str
    n: int
    values: list[Value | None]
    points: str
    pairs: str
    unseen: str
    dropped: str


def models_of(numbers: Numbers) -> list[tuple[str, int]]:
    """Name and parameters of the models, the smallest first."""
    return sorted({(row["model"], row["parameters"]) for row in numbers["rows"]}, key=lambda model: (model[1], model))


def memorization_lines(numbers: Numbers, measure: str) -> list[Line]:
    """A line a task, set and n; tasks in the study's order.

    Args:
        numbers: of `memorization_numbers`.
        measure: TASK_GRAM or INFINITY_GRAM.
    """
    models = [name for name, _ in models_of(numbers)]
    lost = {(row["task"], row["set"], row["n"]): row for row in numbers["dropped"]}
    found: dict[tuple[str, str, int], dict[str, Numbers]] = {}
    for row in numbers["rows"]:
        if row["measure"] == measure:
            found.setdefault((row["task"], row["set"], row["n"]), {})[row["model"]] = row
    tasks = list(dict.fromkeys(task for task, _, _ in found))
    return [
        _line(place, found[place], models, lost.get(place, {}))
        for place in sorted(found, key=lambda place: (tasks.index(place[0]), place[2]))
    ]


def _line(place: tuple[str, str, int], rows: Mapping[str, Numbers], models: Sequence[str], lost: Numbers) -> Line:
    task, name, n = place
    gone = NOTHING
    if lost:
        dropped = lost["zero"] + lost["rare"] + lost["unknown"]
        gone = integer(dropped) + (f" ({percent(dropped / lost['pairs'])})" if lost["pairs"] else "")
    points = {row["points"] for row in rows.values()}
    return Line(
        task,
        name,
        n,
        [_value(rows.get(model)) for model in models],
        integer(min(points)) if len(points) == 1 else f"{integer(min(points))} to {integer(max(points))}",
        integer(lost.get("pairs")),
        integer(lost.get("unseen")),
        gone,
    )


def _value(row: Numbers | None) -> Value | None:
    if row is None or row["rho"] is None:
        return None
    interval = "" if row["low"] is None else f"{decimal(row['low'], 3)} to {decimal(row['high'], 3)}"
    return Value(decimal(row["rho"], 3), interval, written_p(row["p"]), row["p"] < SIGNIFICANT)


def written_p(p: float) -> str:
    """0.0213 -> p = 0.021; what is smaller than can be written so is told as a bound."""
    return "p < 0.001" if p < 0.0005 else f"p = {p:.3f}"
