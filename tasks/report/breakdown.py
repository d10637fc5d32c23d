"""Mean scores of parts of the samples: by the prompt's length, and by the groups that a benchmark itself tells apart.

Of direct long context alone. A needle grid's samples are left out: the grid shows them by length already.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from longloom.tasks.report.evaluation import Measured, is_placed
from longloom.tasks.report.metrics import unit_of

#: Bounds of the length buckets, in prompt tokens: below 1K, 1K to 2K, ..., from 128K on.
BOUNDS = tuple(1024 * 2**step for step in range(8))

Numbers = dict[str, Any]


def by_length(measured: Sequence[Measured]) -> list[Numbers]:
    """Mean scores by bucket of prompt tokens, over all samples of a suite; of lm-eval's, of each metric by itself.

    Returns:
        Rows of model, policy, suite, metric (empty: all of the suite), higher_is_better (as of the scores), bucket,
        score, samples; `bucket` counts from 0 for prompts below `BOUNDS[0]`.
    """
    cells: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for found, sample in _samples(measured):
        if sample["prompt_tokens"]:  # a model behind an endpoint may not tell
            _, metric = unit_of(found.row["suite"], found.row["metric"])
            bucket = bisect_right(BOUNDS, sample["prompt_tokens"])
            names = (*_names(found, "suite"), metric, found.row.get("higher_is_better"), bucket)
            cells[names].append(sample["score"])
    return _means(cells, ("model", "policy", "suite", "metric", "higher_is_better", "bucket"))


def by_group(measured: Sequence[Measured]) -> list[Numbers]:
    """Mean scores by group, of each task. A sample of "easy/short" counts for "easy" and for "short".

    Returns:
        Rows of model, policy, suite, task, metric, group, score, samples.
    """
    cells: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for found, sample in _samples(measured):
        for group in filter(None, (sample["group"] or "").split("/")):
            cells[*_names(found, "suite", "task", "metric"), group].append(sample["score"])
    return _means(cells, ("model", "policy", "suite", "task", "metric", "group"))


def over_tasks(rows: Iterable[Numbers]) -> list[Numbers]:
    """Rows of `by_group` with the tasks of a suite taken together: the mean over all their samples."""
    parts: dict[tuple[str, ...], list[Numbers]] = defaultdict(list)
    for row in rows:
        parts[row["model"], row["policy"], row["suite"], row["group"]].append(row)
    found = []
    for key, group in parts.items():
        samples = [row["samples"] for row in group]
        score = float(np.average([row["score"] for row in group], weights=samples))
        names = dict(zip(("model", "policy", "suite", "group"), key, strict=True))
        found.append({**names, "score": score, "samples": sum(samples), "section": group[0].get("section", "")})
    return found


def bucket_name(bucket: int) -> str:
    """0 -> "< 1K", 1 -> "1K–2K", 8 -> "≥ 128K"."""
    below, above = ([None, *BOUNDS][bucket], [*BOUNDS, None][bucket])
    if below is None:
        return f"< {BOUNDS[0] // 1024}K"
    return f"≥ {below // 1024}K" if above is None else f"{below // 1024}K–{above // 1024}K"


def _samples(measured: Sequence[Measured]) -> Iterator[tuple[Measured, Numbers]]:
    """The samples that count, with their scores on the scale of their task."""
    for found in measured:
        if found.row["retrieval"] is None and found.scale is not None:
            for sample in found.samples:
                if not is_placed(sample):
                    yield found, {**sample, "score": sample["score"] * found.scale}


def _names(found: Measured, *names: str) -> tuple[str, ...]:
    return tuple(found.row[name] for name in ("model", "policy", *names))


def _means(cells: dict[tuple[Any, ...], list[float]], names: Sequence[str]) -> list[Numbers]:
    return [
        {**dict(zip(names, key, strict=True)), "score": float(np.mean(scores)), "samples": len(scores)}
        for key, scores in cells.items()
    ]
