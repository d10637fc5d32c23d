"""K-means over gradient features: Lloyd from k-means++, seeded, the same on any number of threads."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

TOLERANCE = 1e-4
ITERATIONS = 300


@dataclass(frozen=True)
class Clusters:
    """The outcome of `cluster`.

    Attributes:
        labels: int32 [n], each row's cluster.
        centroids: float64 [k, d].
        notes: what was done to the wish, for the user.
    """

    labels: np.ndarray
    centroids: np.ndarray
    notes: list[str]


def cluster(features: np.ndarray, *, clusters: int, seed: int) -> Clusters:
    """Splits rows into at most `clusters` clusters (TAGCOS, section 3.2: k-means++, tol 1e-4, 300 iterations).

    scikit-learn adds up centroids in the order in which threads finish, so that the last bits, and with ties the
    labels, would depend on their number: one thread is used.

    Args:
        features: float32 [n, d], finite, n >= 1.
        clusters: asked for; no more than there are distinct rows can be had.
        seed: of the first centroids, below 2^32.

    Raises:
        ValueError: `clusters` below 1.
    """
    if clusters < 1:
        raise ValueError(f"clusters: found {clusters}, expected 1 or more")
    distinct = _distinct(features, up_to=clusters)
    notes = (
        []
        if distinct == clusters
        else [f"{clusters} clusters asked for, {distinct} made: so many examples are distinct"]
    )
    means = KMeans(
        n_clusters=distinct,
        init="k-means++",
        n_init=1,
        max_iter=ITERATIONS,
        tol=TOLERANCE,
        algorithm="lloyd",
        random_state=seed,
    )
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Rows that differ by less than the arithmetic can tell leave clusters empty; those simply get no budget.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = means.fit_predict(features)
    return Clusters(labels.astype(np.int32), means.cluster_centers_.astype(np.float64), notes)


def _distinct(features: np.ndarray, *, up_to: int) -> int:
    """Number of distinct rows, counted no further than `up_to`; hashes are kept, not rows."""
    seen: set[bytes] = set()
    for row in features:
        seen.add(hashlib.blake2b((row + 0.0).tobytes(), digest_size=16).digest())  # + 0.0: -0 and 0 are equal
        if len(seen) == up_to:
            break
    return len(seen)
