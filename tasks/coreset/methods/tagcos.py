"""TAGCOS (arXiv 2407.15235): clusters of gradients, and in each one the examples that add up to its centroid.

Modes:
  default   budgets by largest remainder, so they sum to what was asked, and are always filled; weights kept.
  released  the authors' algorithm: floors of the quotas, no fill, weights thrown away (all 1), hence fewer examples.

Weights in `default`: within a cluster in proportion to the pursuit's, and summing to the cluster's size; then scaled
over all so that their mean is 1. A cluster too small for a budget is not represented.

Examples with a row of zeros have nothing to learn from: they are in no cluster (-1), and `default` takes them, with
weight 0, only when the budget exceeds all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longloom.tasks.coreset.blas import one_thread
from longloom.tasks.coreset.budgets import floors, largest_remainder
from longloom.tasks.coreset.clusters import cluster
from longloom.tasks.coreset.piece import Piece, pursued
from longloom.tasks.coreset.ranking import has_gradient
from longloom.tasks.coreset.registry import Pool, Selection
from longloom.tasks.coreset.subset import Subset
from longloom.tasks.progress import Progress, silent
from longloom.tasks.workers import THREADS, Workers

MODES = ("default", "released")


@dataclass(frozen=True)
class Tagcos:
    """See the module.

    Attributes:
        clusters: k of k-means.
        mode: default or released.
        share: as the user asked, None if a count was: `released` rounds with it.
        threads: clusters that are pursued at a time; no other picks.
        workers: who pursues them, see `Workers`; no other picks.
    """

    clusters: int
    mode: str
    share: float | None
    threads: int = 1
    workers: str = THREADS

    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise ValueError(f"clusters: found {self.clusters}, expected 1 or more")
        if self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r} of tagcos; known: {', '.join(MODES)}")

    def select(self, pool: Pool, budget: int, rng: np.random.Generator, *, progress: Progress = silent) -> Selection:
        """See `registry.Method`; progress counts examples of the clusters done.

        Raises:
            ValueError: all rows are zero, or `released` finds no budget or no example; no scheduler answers.
        """
        assert pool.features is not None
        # One thread a piece: sums that depend on the number of threads could turn ties round. A scheduler that is not
        # there is known before the work.
        with one_thread(), Workers(self.workers, threads=self.threads) as workers:
            alive = np.flatnonzero(has_gradient(pool.features, method="tagcos"))
            found = cluster(Subset(pool.features, alive), clusters=self.clusters, seed=int(rng.integers(2**31)))
            sizes = np.bincount(found.labels, minlength=len(found.centroids))
            quotas = self._quotas(sizes, budget, pool.examples)
            indices: list[np.ndarray] = []
            weights: list[np.ndarray] = []
            filled = 0
            done = int(sizes[quotas == 0].sum())
            pieces = [
                Piece(
                    pool.features,
                    alive[found.labels == number],
                    found.centroids[number],
                    int(quotas[number]),
                    self.mode,
                )
                for number in np.flatnonzero(quotas).tolist()
            ]
            for piece, picks in zip(pieces, workers.map("cluster", pursued, pieces), strict=True):
                indices.append(piece.members[picks.indices])
                weights.append(picks.weights)
                filled += picks.filled
                done += len(piece.members)
                progress(done, len(alive))
        chosen, weight = np.concatenate(indices), np.concatenate(weights)
        if len(chosen) == 0:
            raise ValueError(
                "tagcos, mode released: the pursuit picked nothing, expected a cluster whose mean is not zero"
            )
        weight *= len(weight) / weight.sum()
        notes = list(found.notes)
        if self.mode == "released" and len(chosen) < budget:
            notes.append(f"mode released picked {len(chosen)} of {budget}: budgets are rounded down and never filled")
        if self.mode == "default" and budget > len(alive):
            zeros = np.setdiff1d(np.arange(pool.examples), alive)[: budget - len(alive)]
            chosen, weight = np.concatenate([chosen, zeros]), np.concatenate([weight, np.zeros(len(zeros))])
            notes.append(f"{len(zeros)} of {budget} picks have zero gradients: only {len(alive)} examples have others")
        labels = np.full(pool.examples, -1, np.int32)
        labels[alive] = found.labels
        counts = {"clusters": int((sizes > 0).sum()), "without_gradient": pool.examples - len(alive), "filled": filled}
        return Selection(chosen.astype(np.int64), weight, labels, counts, notes)

    def _quotas(self, sizes: np.ndarray, budget: int, examples: int) -> np.ndarray:
        """Each cluster's budget, int64 [k]."""
        if self.mode == "default":
            return largest_remainder(sizes, min(budget, int(sizes.sum())))
        quotas = floors(sizes, budget, examples, self.share)
        if not quotas.any():
            raise ValueError(
                f"tagcos, mode released: {budget} of {examples} examples leave none of {len(sizes)} clusters a budget "
                f"(the largest has {sizes.max()} examples), expected fewer clusters or mode default"
            )
        return quotas
