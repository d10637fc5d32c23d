"""K-means over gradient features, seeded, the same on any number of threads or workers and on any machine.

Up to 512 MiB of rows: Lloyd from k-means++ (TAGCOS, section 3.2: k-means++, tol 1e-4, 300 iterations). Beyond:
mini-batches (Sculley, "Web-Scale K-Means Clustering", WWW 2010) of rows drawn from all over the store, then every row
to its nearest centroid; the rows are never held together. The features' size alone decides, never the machine's memory.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np

from longloom.tasks.coreset.blas import one_thread
from longloom.tasks.coreset.rows import Features, blocks

TOLERANCE = 1e-4
ITERATIONS = 300
#: Bytes of float32 rows that Lloyd's algorithm may hold.
HELD_BYTES = 512 << 20
#: Bytes of float32 rows in a mini-batch.
BATCH_BYTES = 64 << 20
#: How often the mini-batches go over all rows.
EPOCHS = 5


@dataclass(frozen=True)
class Clusters:
    """The outcome of `cluster`.

    Attributes:
        labels: int32 [n], each row's cluster.
        centroids: float64 [k, d], the mean of each cluster's rows.
        notes: what was done to the wish, for the user.
    """

    labels: np.ndarray
    centroids: np.ndarray
    notes: list[str]


def cluster(features: Features, *, clusters: int, seed: int) -> Clusters:
    """Splits rows into at most `clusters` clusters.

    scikit-learn adds up centroids in the order in which threads finish, so that the last bits, and with ties the
    labels, would depend on their number: one thread is used.

    Args:
        features: n rows of finite numbers, n >= 1.
        clusters: asked for; no more than there are distinct rows can be had.
        seed: of the first centroids and the mini-batches, below 2^32.

    Raises:
        ValueError: `clusters` below 1.
    """
    from sklearn.exceptions import ConvergenceWarning  # here: a name is checked without a second's import

    if clusters < 1:
        raise ValueError(f"clusters: found {clusters}, expected 1 or more")
    distinct = _distinct(features, up_to=clusters)
    notes = (
        []
        if len(distinct) == clusters
        else [f"{clusters} clusters asked for, {len(distinct)} made: so many examples are distinct"]
    )
    examples, dimension = features.shape
    with one_thread(), warnings.catch_warnings():
        # Rows that differ by less than the arithmetic can tell leave clusters empty; those simply get no budget.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if 4 * examples * dimension <= HELD_BYTES:
            return _lloyd(features, len(distinct), seed, notes)
        centroids = _mini_batches(features, distinct, seed)
        labels, centroids = _assigned(features, centroids)
    return Clusters(labels, centroids, notes)


def _lloyd(features: Features, clusters: int, seed: int, notes: list[str]) -> Clusters:
    """All rows at once."""
    from sklearn.cluster import KMeans

    means = KMeans(
        n_clusters=clusters,
        init="k-means++",
        n_init=1,
        max_iter=ITERATIONS,
        tol=TOLERANCE,
        algorithm="lloyd",
        random_state=seed,
    )
    labels = means.fit_predict(features.rows(0, features.shape[0]))
    return Clusters(labels.astype(np.int32), means.cluster_centers_.astype(np.float64), notes)


def _mini_batches(features: Features, distinct: np.ndarray, seed: int) -> np.ndarray:
    """Centroids, float32 [len(distinct), d], after some epochs of batches of random rows."""
    from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

    examples, dimension = features.shape
    clusters = len(distinct)
    size = min(examples, max(BATCH_BYTES // (4 * dimension), clusters))
    rng = np.random.default_rng(seed)
    # With as many distinct rows as clusters in it, k-means++ finds that many centroids.
    sample = np.union1d(rng.choice(examples, size, replace=False), distinct)
    first, _ = kmeans_plusplus(features.take(sample), clusters, random_state=seed)
    means = MiniBatchKMeans(n_clusters=clusters, init=first, n_init=1, batch_size=size, random_state=seed)
    for _ in range(EPOCHS):
        order = rng.permutation(examples)
        for start in range(0, examples, size):
            # In the store's order, which is faster to read; the last rows of an epoch may be few, which does no harm.
            batch = np.sort(order[start : start + size])
            if len(batch) >= clusters:
                means.partial_fit(features.take(batch))
    centroids: np.ndarray = means.cluster_centers_
    return centroids


def _assigned(features: Features, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's nearest centroid (ties: the lower number), int32 [n], and the means of what each got, float64 [k, d].

    A centroid that gets nothing stays.
    """
    centroids = centroids.astype(np.float64)
    squares = (centroids**2).sum(axis=1)
    labels = np.empty(features.shape[0], np.int32)
    sums = np.zeros_like(centroids)
    for start, block in blocks(features):
        rows = block.astype(np.float64)
        nearest = np.argmin(squares - 2 * (rows @ centroids.T), axis=1)
        labels[start : start + len(rows)] = nearest
        for number in np.unique(nearest).tolist():
            sums[number] += rows[nearest == number].sum(axis=0)
    sizes = np.bincount(labels, minlength=len(centroids))[:, None]
    return labels, np.where(sizes > 0, sums / np.maximum(sizes, 1), centroids)


def _distinct(features: Features, *, up_to: int) -> np.ndarray:
    """The numbers of the first distinct rows, int64, no more than `up_to`; hashes are kept, not rows."""
    seen: set[bytes] = set()
    first: list[int] = []
    for start, block in blocks(features):
        for number, row in enumerate(block, start):
            digest = hashlib.blake2b((row + 0.0).tobytes(), digest_size=16).digest()  # + 0.0: -0 and 0 are equal
            if digest not in seen:
                seen.add(digest)
                first.append(number)
                if len(first) == up_to:
                    return np.array(first, np.int64)
    return np.array(first, np.int64)
