"""What is ranked: for every pair of a set what the corpus gives its output n-gram, and what a model gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longloom.storage.parquet import read_table
from longloom.tasks.trace.pairs import KEPT, PAIRS, STATUSES, UNSEEN
from longloom.tasks.trace.probabilities import TokenScores
from longloom.tasks.trace.records import Record
from longloom.tasks.trace.statistics import Floats, Whole

#: What a model is compared with.
TASK_GRAM, INFINITY_GRAM = MEASURES = ("task-gram", "infinity-gram")
#: Which pairs are ranked: all that have a probability; of those that share words the best; those with a count above 0.
RULES = ("all", "disjoint", "seen")

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """The columns of `pairs.parquet`, float64 with NaN for null, [rows] each."""

    task: NDArray[Any]
    record: Whole
    y: NDArray[Any]
    begin: Whole
    end: Whole
    cosine: Floats
    disjoint: Flags
    status: NDArray[Any]
    together: Whole
    log_p: Floats
    log_infinity: Floats

    @classmethod
    def read(cls, folder: Path) -> Pairs:
        """What `pairs.build` wrote."""
        names = list(cls.__dataclass_fields__)
        table = read_table(folder, "pairs", names)
        assert set(names) <= set(PAIRS.names)
        return cls(**{name: table.column(name).to_numpy() for name in names})

    def above(self, gamma: float | None) -> Flags:
        """The pairs of a cosine above gamma; all of them for None, as mode `released` has it."""
        return np.ones(len(self.record), bool) if gamma is None else self.cosine > gamma


def model_logs(pairs: Pairs, records: Sequence[Record], scores: Sequence[TokenScores], mode: str) -> Floats:
    """log P_LLM of every pair's output n-gram [rows], NaN where the model's window does not hold it.

    Mode `released`: of all from the first match of the n-gram, be it in the prompt, to the end of the text.
    """
    found: dict[tuple[int, int, int], float] = {}
    logs = np.full(len(pairs.record), np.nan)
    for row, place in enumerate(zip(pairs.record.tolist(), pairs.begin.tolist(), pairs.end.tolist(), strict=True)):
        if place not in found:
            number, begin, end = place
            record = records[number]
            if mode == "released":
                span = (record.prompt + record.output).find(pairs.y[row].strip()), None
            else:
                span = len(record.prompt) + begin, len(record.prompt) + end
            log = scores[number].log_probability(*span)
            found[place] = np.nan if log is None else log
        logs[row] = found[place]
    return logs


def ranked(
    pairs: Pairs, logs: Floats, chosen: Flags, *, measure: str, rule: str, mode: str
) -> tuple[Floats, Floats, Whole]:
    """The two sides of a correlation, and the records they belong to, [points] each.

    A point is a pair; an output n-gram for the infinity-gram; in mode `released` an output n-gram too, with the mean
    over its pairs of log P, and pairs that were never counted are left out.

    Args:
        pairs: of one set.
        logs: from `model_logs`.
        chosen: pairs above gamma, of one task.
        measure, rule: one of MEASURES and of RULES.
        mode: paper or released.
    """
    statuses = (KEPT,) if mode == "released" or rule == "seen" else (KEPT, UNSEEN)
    chosen = chosen & np.isin(pairs.status, statuses) & ~np.isnan(logs)
    if rule == "disjoint":
        chosen &= pairs.disjoint
    corpus = pairs.log_p if measure == TASK_GRAM else pairs.log_infinity
    chosen &= ~np.isnan(corpus)
    rows = np.flatnonzero(chosen)
    if measure == TASK_GRAM and mode == "paper":
        return corpus[rows], logs[rows], pairs.record[rows]
    grams = np.stack([pairs.record[rows], pairs.begin[rows], pairs.end[rows]], axis=1)
    _, first, owner = np.unique(grams, axis=0, return_index=True, return_inverse=True)
    means = np.bincount(owner.ravel(), weights=corpus[rows], minlength=len(first)) / np.bincount(owner.ravel())
    return (means if len(rows) else corpus[rows]), logs[rows][first], pairs.record[rows][first]


def losses(pairs: Pairs, chosen: Flags) -> dict[str, int]:
    """How many of the chosen pairs there are, and how many of each status."""
    return {"pairs": int(chosen.sum()), **{name: int((pairs.status[chosen] == name).sum()) for name in STATUSES}}
