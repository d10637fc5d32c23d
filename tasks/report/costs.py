"""The cost of the evaluations. What is measured varies, so this is for the page alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from longloom.tasks.report.order import natural, rank

Numbers = dict[str, Any]
#: Model, policy, retrieval (empty: direct long context), suite.
Case = tuple[str, str, str, str]


def cost_rows(costs: Sequence[Numbers], scores: Sequence[Numbers]) -> list[Numbers]:
    """Costs by model, policy, retrieval and suite: sums, the largest KV cache, and the tasks below them.

    Args:
        costs: of `Evaluations`.
        scores: of report.json, which count failed and truncated samples.
    """
    counted = {(_case(row), row["task"]): row for row in scores}
    groups: dict[Case, list[Numbers]] = defaultdict(list)
    for row in costs:
        score = counted.get((_case(row), row["task"]), {})
        groups[_case(row)].append({**row, **{name: score.get(name, 0) for name in ("samples", "failed", "truncated")}})
    order = sorted(groups, key=lambda key: (key[3], rank(key[0]), key[2] != "", rank(key[1]), natural(key[2])))
    summed = ("seconds", "prompt_tokens", "new_tokens", "samples", "failed", "truncated")
    return [
        {
            **dict(zip(("model", "policy", "retrieval", "suite"), key, strict=True)),
            **{name: sum(row[name] or 0 for row in groups[key]) for name in summed},
            "peak_kv_bytes": max((row["peak_kv_bytes"] or 0 for row in groups[key]), default=0),
            "tasks": sorted(groups[key], key=lambda row: row["task"]),
        }
        for key in order
    ]


def seconds_of(costs: Sequence[Numbers]) -> dict[Case, float]:
    """The time that each evaluation took."""
    found: dict[Case, float] = defaultdict(float)
    for row in costs:
        found[_case(row)] += row["seconds"] or 0.0
    return dict(found)


def _case(row: Numbers) -> Case:
    return row["model"], row["policy"], row["retrieval"] or "", row["suite"]
