"""Plain orthogonal matching pursuit: the examples that add up to the mean gradient of the whole pool, no clusters.

A baseline of TAGCOS (arXiv 2407.15235, section 4): its own pursuit without its clusters. `pursuit.py` is the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longloom.tasks.coreset.blas import one_thread
from longloom.tasks.coreset.pursuit import pursue
from longloom.tasks.coreset.ranking import completed, has_gradient
from longloom.tasks.coreset.registry import Pool, Selection
from longloom.tasks.coreset.rows import blocks
from longloom.tasks.coreset.subset import Subset
from longloom.tasks.progress import Progress, silent


@dataclass(frozen=True)
class Omp:
    """The pursuit of the mean of all rows that are not zero; weights as it has them, scaled to a mean of 1."""

    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    def select(self, pool: Pool, budget: int, rng: np.random.Generator, *, progress: Progress = silent) -> Selection:
        """See `registry.Method`; progress counts examples, all at once.

        Raises:
            ValueError: all rows are zero.
        """
        assert pool.features is not None
        mask = has_gradient(pool.features, method="omp")
        alive = np.flatnonzero(mask)
        total = np.zeros(pool.features.shape[1])
        for _, rows in blocks(pool.features):
            total += rows.sum(axis=0, dtype=np.float64)
        # Sums that depend on the number of threads could turn ties round.
        with one_thread():
            picks = pursue(Subset(pool.features, alive), total / len(alive), min(budget, len(alive)))
        progress(pool.examples, pool.examples)
        weights = picks.weights * (len(picks.weights) / picks.weights.sum())
        found = Selection(alive[picks.indices], weights, counts={"filled": picks.filled})
        return completed(found, mask, budget, missing="gradient")
