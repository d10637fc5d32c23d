"""KV policies and their budgets at equal model and suite: scores against the measured cache and decode time.

Costs vary from run to run, so this is for the page alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from longloom.tasks.report.evaluation import Measured, Task, task_means
from longloom.tasks.report.formats import without
from longloom.tasks.report.metrics import Unit, unit_of
from longloom.tasks.report.order import natural, rank

#: What the others are measured against, where it was run: alone, or with a length of its own (full@8192).
YARDSTICK = "full"
#: Settings of a policy that say how much is kept: what a line of the plot runs along.
AMOUNTS = ("budget", "compression", "eps", "induction", "recent", "retrieval", "window")

Numbers = dict[str, Any]


def sweeps(measured: Sequence[Measured], costs: Sequence[Numbers]) -> list[Numbers]:
    """One sweep for each suite and model that ran with direct long context under two or more KV policies.

    Of lm-eval, whose metrics are unlike each other, one for each metric.

    Args:
        measured: of `Evaluations`.
        costs: of `Evaluations`. A policy of which no bytes are known is left out: a model behind an endpoint, or an
            artifact of an earlier version.

    Returns:
        Dicts of suite, metric (empty: all of the suite), model, tasks [(task, metric)] of the suite, yardstick (the
        policy that the others are measured against; null where there is none) and rows, by bytes. A row holds policy,
        line (see `line_names`); scores, score, low, high (see `task_means`); bytes (of a sample's cache at the end of
        decoding: the mean over samples, then over tasks, as of the score), largest (bytes of the largest), seconds (of
        a step of decoding: of a token of one sample; null where not known), and bytes_share and seconds_share: of the
        yardstick's, null where it was not run on the same tasks.
    """
    scored: dict[tuple[Unit, str], dict[str, dict[Task, Measured]]] = defaultdict(lambda: defaultdict(dict))
    units: dict[Unit, set[Task]] = defaultdict(set)
    for found in measured:
        row = found.row
        if row["retrieval"] is None:
            unit = unit_of(row["suite"], row["metric"])
            scored[unit, row["model"]][row["policy"]][row["task"], row["metric"]] = found
            units[unit].add((row["task"], row["metric"]))
    paid: dict[tuple[str, str, str], list[Numbers]] = defaultdict(list)
    for cost in costs:
        if cost["retrieval"] is None:
            paid[cost["suite"], cost["model"], cost["policy"]].append(cost)
    result: list[Numbers] = []
    for unit, model in sorted(scored, key=lambda case: (case[0], rank(case[1]))):
        suite, metric = unit
        tasks = sorted(units[unit])
        names_of_tasks = {task for task, _ in tasks}
        rows: list[Numbers] = []
        for policy, line in scored[unit, model].items():
            spent = _cost([cost for cost in paid[suite, model, policy] if cost["task"] in names_of_tasks])
            if spent is not None:
                rows.append({"policy": policy, **task_means(line, tasks), **spent})
        if len(rows) > 1:
            rows.sort(key=lambda row: (row["bytes"], natural(row["policy"])))
            names = line_names([row["policy"] for row in rows])
            yardstick = min((name for name in names if name.partition("@")[0] == YARDSTICK), default=None)
            rows = [{**row, "line": names[row["policy"]], **_shares(row, rows, yardstick)} for row in rows]
            head = {"suite": suite, "metric": metric, "model": model, "tasks": tasks, "yardstick": yardstick}
            result.append({**head, "rows": rows})
    return result


def line_names(policies: Iterable[str]) -> dict[str, str]:
    """Policy -> the line that joins it with its other budgets.

    That is the policy without its amounts: "razor:compensate=0,window=64" -> "razor:compensate=0"; or its family alone,
    where the family has but one line: "streaming:sink=4,window=252" -> "streaming".
    """
    lines = {policy: without(policy, AMOUNTS) for policy in policies}
    families: dict[str, set[str]] = defaultdict(set)
    for line in lines.values():
        families[family(line)].add(line)
    return {policy: line if len(families[family(line)]) > 1 else family(line) for policy, line in lines.items()}


def family(policy: str) -> str:
    """A policy's name without its settings."""
    return policy.partition(":")[0]


def _cost(rows: Sequence[Numbers]) -> Numbers | None:
    """Of one policy, over its tasks; None where the bytes of one are not known."""
    if not rows or not all(row["kv_bytes"] and row["kv_bytes_mean"] for row in rows):
        return None
    seconds, steps = ([row[name] or 0 for row in rows] for name in ("decode_seconds", "decode_steps"))
    return {
        "bytes": sum(row["kv_bytes_mean"] for row in rows) / len(rows),
        "largest": max(row["kv_bytes"] for row in rows),
        "seconds": sum(seconds) / sum(steps) if sum(seconds) and sum(steps) else None,
    }


def _shares(row: Numbers, rows: Sequence[Numbers], yardstick: str | None) -> Numbers:
    """Of the yardstick's costs. Those of other tasks do not compare, and a task that was not run has no score."""
    full = next((one for one in rows if one["policy"] == yardstick), None)
    if full and [score is None for score in full["scores"]] != [score is None for score in row["scores"]]:
        full = None
    return {
        f"{name}_share": row[name] / full[name] if full and row[name] and full[name] else None
        for name in ("bytes", "seconds")
    }
