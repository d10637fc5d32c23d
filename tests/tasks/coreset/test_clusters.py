"""K-means: the seed decides, threads do not, and no more clusters than distinct rows."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from longloom.tasks.coreset.clusters import cluster


def blobs(rows: int, centres: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(centres, size=rows)
    return (10 * np.eye(centres, 20)[truth] + rng.normal(size=(rows, 20))).astype(np.float32), truth


def test_finds_blobs() -> None:
    features, truth = blobs(300, 3)
    found = cluster(features, clusters=3, seed=0)
    assert found.labels.dtype == np.int32
    assert len({(a, b) for a, b in zip(truth.tolist(), found.labels.tolist(), strict=True)}) == 3
    means = np.stack([features[found.labels == number].mean(axis=0) for number in range(3)])
    np.testing.assert_allclose(found.centroids, means, atol=1e-4)
    assert found.notes == []


def test_a_seed_gives_the_same_on_any_number_of_threads() -> None:
    features = np.random.default_rng(1).normal(size=(3000, 16)).astype(np.float32)
    outcomes = []
    for threads in (1, 2, 4):
        with threadpool_limits(limits=threads):
            found = cluster(features, clusters=12, seed=5)
        outcomes.append((found.labels.tobytes(), found.centroids.tobytes()))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    other = cluster(features, clusters=12, seed=6)
    assert other.labels.tobytes() != outcomes[0][0]


def test_clusters_are_capped_at_distinct_rows_and_it_is_said() -> None:
    features = np.repeat(np.array([[0, 1], [-0.0, 1], [5, 5], [9, 0]], np.float32), 10, axis=0)
    found = cluster(features, clusters=7, seed=0)
    assert len(found.centroids) == 3
    assert found.notes == ["7 clusters asked for, 3 made: so many examples are distinct"]
    assert len(set(found.labels[:20].tolist())) == 1


def test_one_row() -> None:
    found = cluster(np.ones((1, 3), np.float32), clusters=100, seed=0)
    assert found.labels.tolist() == [0]


def test_no_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="clusters: found 0"):
        cluster(np.ones((2, 2), np.float32), clusters=0, seed=0)
