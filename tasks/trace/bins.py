"""Performance by how often a record's pairs stand together in the corpus (arXiv 2407.14985, figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longloom.tasks.report.intervals import mean_interval
from longloom.tasks.trace.points import Flags, Pairs


def bins(
    pairs: Pairs, chosen: Flags, generations: Sequence[Mapping[str, Any]], wanted: Sequence[int]
) -> list[dict[str, Any]]:
    """One row a bin of records that is not empty: 0, 1 to 9, 10 to 99, ... documents, summed over a record's pairs.

    Args:
        pairs: of one set.
        chosen: pairs above gamma.
        generations: rows of `generations.parquet`.
        wanted: records of one task; those without a pair count as 0.

    Returns:
        low, high (inclusive), records, and the mean of f1 with its bootstrap interval, and of exact.
    """
    totals = dict.fromkeys(wanted, 0)
    for record, count in zip(pairs.record[chosen].tolist(), pairs.together[chosen].tolist(), strict=True):
        if record in totals:
            totals[record] += count
    rated: dict[int, list[Mapping[str, Any]]] = {}
    for row in generations:
        if row["record"] in totals:
            total = totals[row["record"]]
            rated.setdefault(len(str(total)) if total else 0, []).append(row)
    found = []
    for digits, rows in sorted(rated.items()):
        f1 = np.array([row["f1"] for row in rows])
        interval = mean_interval(f1)
        found.append(
            {
                "low": 10 ** (digits - 1) if digits else 0,
                "high": 10**digits - 1 if digits else 0,
                "records": len(rows),
                "f1": float(f1.mean()),
                "f1_low": None if interval is None else interval[0],
                "f1_high": None if interval is None else interval[1],
                "exact": float(np.mean([row["exact"] for row in rows])),
            }
        )
    return found
