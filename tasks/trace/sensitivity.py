"""How much Mem_n hangs on gamma, and on the embedding (arXiv 2407.14985, figure 6; asked for by its reviewers)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from longloom.tasks.trace.pairs import MARGIN
from longloom.tasks.trace.points import TASK_GRAM, Flags, Pairs, ranked
from longloom.tasks.trace.statistics import Floats, spearman

#: Added to gamma.
STEPS = (-MARGIN, -MARGIN / 2, 0.0, MARGIN / 2, MARGIN)


def by_gamma(
    pairs: Mapping[str, Pairs], logs: Mapping[str, Floats], tasks: Mapping[str, Flags], gamma: float
) -> list[dict[str, Any]]:
    """Mem_n of one task, model and n at every step around gamma, for every embedding.

    Args:
        pairs: embedding -> its pairs.
        logs: embedding -> log P_LLM of these.
        tasks: embedding -> which of them are of the task.
        gamma: that of the study.

    Returns:
        Rows of embedding, gamma, points, rho and p (null where they are not defined).
    """
    found = []
    for name, mined in pairs.items():
        for step in STEPS:
            chosen = tasks[name] & mined.above(gamma + step)
            corpus, model, _ = ranked(mined, logs[name], chosen, measure=TASK_GRAM, rule="all", mode="paper")
            rho, p = spearman(corpus, model) or (None, None)
            row = {"embedding": name, "gamma": float(np.round(gamma + step, 9)), "points": len(corpus)}
            found.append({**row, "rho": rho, "p": p})
    return found
