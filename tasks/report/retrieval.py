"""Retrieval against direct long context at equal model and suite: scores, their differences, tokens, gold recall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from longloom.tasks.report.evaluation import Measured, Task, task_means
from longloom.tasks.report.formats import without
from longloom.tasks.report.intervals import sign_flip_p, strata_interval
from longloom.tasks.report.order import natural, rank

#: Settings of a retrieval that say how much is retrieved: what a line of the plot runs along.
AMOUNTS = ("k", "budget")

Numbers = dict[str, Any]
Line = dict[Task, Measured]


def comparisons(measured: Sequence[Measured]) -> list[Numbers]:
    """One comparison for each suite and model that was evaluated with retrieval.

    Returns:
        Dicts of suite, model, tasks [{task, metric}] and rows: first direct long context under each policy (`retrieval`
        null), then every retrieval. A row holds policy, retrieval; scores (of the tasks, in their order; null where one
        was not run), score (their mean; null if one is missing) with low and high; prompt_tokens and gold_recall (means
        over samples, null where not known); samples, failed; and `against`: the paired difference of the means to
        direct long context with low, high, the p of the sign-flip test and the policy of that, null where the samples
        do not match. The p values are not corrected for the number of rows.
    """
    cases: dict[tuple[str, str], dict[tuple[str, str | None], Line]] = defaultdict(lambda: defaultdict(dict))
    for found in measured:
        row = found.row
        cases[row["suite"], row["model"]][row["policy"], row["retrieval"]][row["task"], row["metric"]] = found
    order = sorted(cases, key=lambda case: (case[0], rank(case[1])))
    return [
        {"suite": suite, "model": model, **_comparison(cases[suite, model])}
        for suite, model in order
        if any(retrieval is not None for _, retrieval in cases[suite, model])
    ]


def line_name(retrieval: str) -> str:
    """The retrieval without how much it retrieves: "bm25:words=100,k=5,order=rank" -> "bm25:words=100,order=rank"."""
    return without(retrieval, AMOUNTS)


def _comparison(lines: dict[tuple[str, str | None], Line]) -> Numbers:
    # Only tasks that retrieval ran on: a suite's other tasks have nothing to search in.
    tasks = sorted({task for (_, retrieval), line in lines.items() if retrieval is not None for task in line})
    order = sorted(lines, key=lambda name: (name[1] is not None, natural(name[1] or ""), rank(name[0])))
    direct = [policy for policy, retrieval in order if retrieval is None]
    rows = []
    for policy, retrieval in order:
        line = lines[policy, retrieval]
        row = {"policy": policy, "retrieval": retrieval, **_row(line, tasks), "against": None}
        if retrieval is not None and direct:
            base = policy if policy in direct else direct[0]
            difference = _difference(lines[base, None], line, tasks)
            row["against"] = difference and {"policy": base, **difference}
        rows.append(row)
    return {"tasks": [{"task": task, "metric": metric} for task, metric in tasks], "rows": rows}


def _row(line: Line, tasks: Sequence[Task]) -> Numbers:
    there = [line[task] for task in tasks if task in line]
    samples = [sample for found in there for sample in found.samples]
    return {
        **task_means(line, tasks),
        "prompt_tokens": _mean([sample["prompt_tokens"] or None for sample in samples]),
        "gold_recall": _mean([sample["gold_recall"] for sample in samples]),
        "samples": sum(found.row["samples"] for found in there),
        "failed": sum(found.row["failed"] for found in there),
    }


def _difference(direct: Line, line: Line, tasks: Sequence[Task]) -> Numbers | None:
    """The mean over tasks of the mean difference of the same samples; None unless all tasks have the same ones."""
    strata = []
    for task in tasks:
        if task not in direct or task not in line:
            return None
        a, b = (found[task].row["sample_scores"] for found in (direct, line))
        if not a or a.keys() != b.keys():
            return None
        strata.append(np.array([b[name] - a[name] for name in sorted(a)]))
    interval = strata_interval(strata)
    if interval is None:
        return None
    difference = float(np.mean([part.mean() for part in strata]))
    # What each sample adds to that mean; the signs of the samples are what is flipped.
    p = sign_flip_p(np.concatenate([part / len(part) for part in strata]))
    return {"difference": difference, "low": interval[0], "high": interval[1], "p": p}


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
