"""Needles beyond the model's window: each KV policy's score within it, and at each length beyond."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from longloom.tasks.report.evaluation import IDENTITY, Measured, grid, is_placed
from longloom.tasks.report.intervals import mean_interval
from longloom.tasks.report.order import natural, rank

Numbers = dict[str, Any]
#: Suite, task, model, window.
Case = tuple[str, str, str, int]


def beyond_window(measured: Sequence[Measured]) -> list[Numbers]:
    """What was found in prompts of given lengths, where some are longer than the window, with direct long context.

    Args:
        measured: of `Evaluations`.

    Returns:
        Dicts of suite, task, model, window (tokens), lengths (those beyond) and rows, one a policy: policy, within (of
        all lengths up to the window), at (one for each of `lengths`), grid (depths, lengths, scores). `within` and
        those in `at` hold score, low, high (its bootstrap interval; null for a single sample) and samples; null where
        nothing was asked.
    """
    groups: dict[Case, list[tuple[Measured, list[Numbers]]]] = defaultdict(list)
    for found in measured:
        row, placed = found.row, [sample for sample in found.samples if is_placed(sample)]
        if row["retrieval"] is None and reaches_beyond(row["window"], [sample["length"] for sample in placed]):
            groups[row["suite"], row["task"], row["model"], row["window"]].append((found, placed))
    result: list[Numbers] = []
    for case in sorted(groups, key=lambda case: (case[:2], rank(case[2]), case[3])):
        suite, task, model, window = case
        group = sorted(groups[case], key=lambda one: (rank(one[0].row["policy"])[0], natural(one[0].row["policy"])))
        lengths = sorted({sample["length"] for _, placed in group for sample in placed if sample["length"] > window})
        rows = []
        for found, placed in group:
            scale = found.scale or 1.0
            rows.append(
                {
                    "policy": found.row["policy"],
                    "within": _mean([one for one in placed if one["length"] <= window], scale),
                    "at": [_mean([one for one in placed if one["length"] == length], scale) for length in lengths],
                    "grid": grid(placed, scale),
                }
            )
        names = {"suite": suite, "task": task, "model": model, "window": window}
        result.append({**names, "lengths": lengths, "rows": rows})
    return result


def by_asked_length(measured: Sequence[Measured]) -> list[Numbers]:
    """The scores of direct long context at each length that was asked for, with their samples: for comparisons.

    Returns:
        Rows of the names of a score, `section`, length (null: the task has none), score and sample_scores.
    """
    rows = []
    for found in measured:
        named = {name: found.row[name] for name in (*IDENTITY, "section")}
        groups: dict[int | None, dict[str, float]] = defaultdict(dict)
        for sample in found.samples:
            groups[sample["length"]][sample["name"]] = sample["score"] * (found.scale or 1.0)
        for length, scores in sorted(groups.items(), key=lambda group: group[0] or 0):
            score = float(np.mean(list(scores.values())))
            rows.append({**named, "length": length, "score": score, "sample_scores": scores})
    return rows


def reaches_beyond(window: int | None, lengths: Sequence[int]) -> bool:
    """Whether any of the lengths is longer than the window, if that is known."""
    return window is not None and max(lengths, default=0) > window


def _mean(samples: Sequence[Numbers], scale: float) -> Numbers | None:
    if not samples:
        return None
    scores = np.array([sample["score"] * scale for sample in samples])
    low, high = mean_interval(scores) or (None, None)
    return {"score": float(scores.mean()), "low": low, "high": high, "samples": len(samples)}
