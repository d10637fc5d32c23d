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

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from longloom.tasks.coreset.budgets import floors, largest_remainder
from longloom.tasks.coreset.clusters import cluster
from longloom.tasks.coreset.pursuit import Picks, pursue, released
from longloom.tasks.coreset.registry import Selection
from longloom.tasks.progress import Progress, silent

MODES = ("default", "released")


@dataclass(frozen=True)
class Tagcos:
    """See the module.

    Attributes:
        clusters: k of k-means.
        mode: default or released.
        share: as the user asked, None if a count was: `released` rounds with it.
    """

    clusters: int
    mode: str
    share: float | None

    needs_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise ValueError(f"clusters: found {self.clusters}, expected 1 or more")
        if self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r} of tagcos; known: {', '.join(MODES)}")

    def select(
        self, features: np.ndarray, budget: int, rng: np.random.Generator, *, progress: Progress = silent
    ) -> Selection:
        """See `registry.Method`; progress counts examples of the clusters done.

        Raises:
            ValueError: all rows are zero, or `released` finds no budget or no example.
        """
        alive = np.flatnonzero(features.any(axis=1))
        if len(alive) == 0:
            raise ValueError(
                f"tagcos: all {len(features)} examples have zero gradients, expected at least one that has not"
            )
        found = cluster(features[alive], clusters=self.clusters, seed=int(rng.integers(2**31)))
        sizes = np.bincount(found.labels, minlength=len(found.centroids))
        quotas = self._quotas(sizes, budget, len(features))
        indices: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        filled = done = 0
        # Sums that depend on the number of threads could turn ties round.
        with threadpool_limits(limits=1):
            for number, quota in enumerate(quotas.tolist()):
                members = alive[found.labels == number]
                if quota:
                    picks = self._picks(features[members].astype(np.float64), found.centroids[number], quota)
                    indices.append(members[picks.indices])
                    weights.append(picks.weights)
                    filled += picks.filled
                done += len(members)
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
            zeros = np.setdiff1d(np.arange(len(features)), alive)[: budget - len(alive)]
            chosen, weight = np.concatenate([chosen, zeros]), np.concatenate([weight, np.zeros(len(zeros))])
            notes.append(f"{len(zeros)} of {budget} picks have zero gradients: only {len(alive)} examples have others")
        labels = np.full(len(features), -1, np.int32)
        labels[alive] = found.labels
        counts = {"clusters": int((sizes > 0).sum()), "without_gradient": len(features) - len(alive), "filled": filled}
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

    def _picks(self, rows: np.ndarray, centroid: np.ndarray, quota: int) -> Picks:
        """What one cluster gives, with the weights that it has before they are scaled over all."""
        if self.mode == "released":
            indices = released(rows, centroid, quota)
            return Picks(indices, np.ones(len(indices)), 0)
        picks = pursue(rows, centroid, quota)
        return replace(picks, weights=picks.weights * (len(rows) / picks.weights.sum()))
