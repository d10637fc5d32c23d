"""Every selection method in one matrix: exact budget, no duplicates, the seed decides, ties, budgets up to all."""

from __future__ import annotations

import numpy as np
import pytest

from longloom.tasks.coreset import registry
from longloom.tasks.coreset.methods.random import Random
from longloom.tasks.coreset.methods.tagcos import Tagcos
from longloom.tasks.coreset.registry import Method, Selection

METHODS = {
    "tagcos": Tagcos(clusters=7, mode="default", share=None),
    "tagcos one cluster": Tagcos(clusters=1, mode="default", share=None),
    "tagcos more clusters than rows": Tagcos(clusters=500, mode="default", share=None),
    "random": Random(),
}
ROWS = 90


def pool(kind: str) -> np.ndarray:
    """Features float32 [ROWS, 12]."""
    rng = np.random.default_rng(len(kind))
    rows = rng.normal(size=(ROWS, 12)) + 3 * np.eye(5, 12)[rng.integers(5, size=ROWS)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if kind == "ties":
        rows = rows[rng.integers(4, size=ROWS)]
    if kind == "all equal":
        rows[:] = rows[0]
    if kind == "zeros among them":
        rows[::3] = 0
    if kind == "opposed":
        rows[1::2] = -rows[::2]
    return rows.astype(np.float32)


KINDS = ["plain", "ties", "all equal", "zeros among them", "opposed"]


def select(method: Method, features: np.ndarray, budget: int, seed: int = 0) -> Selection:
    return method.select(features, budget, np.random.default_rng(seed), progress=lambda done, total: None)


def test_the_matrix_holds_every_method() -> None:
    assert {name.split()[0] for name in METHODS} == set(registry.names())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [1, 5, 44, ROWS - 1, ROWS])
def test_budget_is_exact_without_duplicates(name: str, kind: str, budget: int) -> None:
    found = select(METHODS[name], pool(kind), budget)
    assert found.indices.dtype == np.int64
    assert len(set(found.indices.tolist())) == len(found.indices) == len(found.weights) == budget
    assert found.indices.min() >= 0
    assert found.indices.max() < ROWS
    assert np.isfinite(found.weights).all()
    assert (found.weights >= 0).all()
    assert (found.weights > 0).any()
    if found.clusters is not None:
        assert found.clusters.shape == (ROWS,)
        assert found.clusters.dtype == np.int32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_seed_is_stable(name: str, kind: str) -> None:
    features = pool(kind)
    first, second = (select(METHODS[name], features, 20, seed=4) for _ in range(2))
    assert first.indices.tobytes() == second.indices.tobytes()
    assert first.weights.tobytes() == second.weights.tobytes()
    assert (first.clusters is None) == (second.clusters is None)
    if first.clusters is not None:
        assert np.array_equal(first.clusters, second.clusters)


@pytest.mark.parametrize("name", ["tagcos", "random"])
def test_another_seed_is_another_choice(name: str) -> None:
    features = np.random.default_rng(0).normal(size=(ROWS, 12)).astype(np.float32)
    picks = [frozenset(select(METHODS[name], features, 10, seed=seed).indices.tolist()) for seed in range(8)]
    assert len(set(picks)) > 1


@pytest.mark.parametrize("name", METHODS)
def test_one_row(name: str) -> None:
    assert select(METHODS[name], np.ones((1, 3), np.float32), 1).indices.tolist() == [0]


def test_random_is_uniform() -> None:
    counts = np.zeros(10)
    for seed in range(2000):
        counts[select(Random(), np.zeros((10, 0), np.float32), 3, seed=seed).indices] += 1
    assert np.abs(counts / 2000 - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 2000)


def test_tagcos_spreads_the_budget_over_the_clusters() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1, 2], [60, 30, 10])
    features = (5 * np.eye(3, 8)[truth] + 0.1 * rng.normal(size=(100, 8))).astype(np.float32)
    found = select(Tagcos(clusters=3, mode="default", share=None), features, 10)
    assert np.bincount(truth[found.indices]).tolist() == [6, 3, 1]
    assert found.counts == {"clusters": 3, "without_gradient": 0, "filled": 0}
    # A cluster's weights stand for its size; all of them have mean 1.
    sums = np.bincount(truth[found.indices], weights=found.weights)
    np.testing.assert_allclose(sums, [6, 3, 1])


def test_tagcos_weighted_picks_add_up_to_the_pool() -> None:
    """The point of keeping weights: their mean comes nearer to the mean gradient than the plain mean of the picks."""
    features = pool("plain")
    found = select(METHODS["tagcos"], features, 30)
    target = features.mean(axis=0)

    def cosine(vector: np.ndarray) -> float:
        return float(vector @ target / np.linalg.norm(vector) / np.linalg.norm(target))

    assert cosine(found.weights @ features[found.indices]) > 0.9


def test_tagcos_takes_rows_of_zeros_last_and_says_so() -> None:
    features = pool("zeros among them")
    found = select(METHODS["tagcos"], features, 60)
    assert features[found.indices].any(axis=1).all()
    assert found.notes == []
    assert found.counts["without_gradient"] == 30
    assert (found.clusters[::3] == -1).all()
    more = select(METHODS["tagcos"], features, 62)
    assert sorted(set(more.indices.tolist()) - set(found.indices.tolist())) == [0, 3]
    assert more.weights[-2:].tolist() == [0, 0]
    assert more.notes == ["2 of 62 picks have zero gradients: only 60 examples have others"]


def test_tagcos_refuses_nothing_but_zeros() -> None:
    with pytest.raises(ValueError, match="all 4 examples have zero gradients"):
        select(METHODS["tagcos"], np.zeros((4, 3), np.float32), 2)


def test_released_rounds_down_and_says_so() -> None:
    found = select(Tagcos(clusters=4, mode="released", share=0.2), pool("plain"), 18)
    sizes = np.bincount(found.clusters)
    picked = np.bincount(found.clusters[found.indices], minlength=len(sizes))
    assert picked.tolist() == [int(0.2 * size) for size in sizes]
    assert found.weights.tolist() == [1.0] * len(found.indices)
    assert found.notes == [
        f"mode released picked {len(found.indices)} of 18: budgets are rounded down and never filled"
    ]


def test_released_with_small_clusters_is_refused() -> None:
    with pytest.raises(ValueError, match="leave none of 30 clusters a budget"):
        select(Tagcos(clusters=30, mode="released", share=0.05), pool("plain"), 5)
    opposed = np.array([[1, 0], [-1, 0]], np.float32)
    with pytest.raises(ValueError, match="picked nothing"):
        select(Tagcos(clusters=1, mode="released", share=0.5), opposed, 1)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="unknown mode 'fast' of tagcos; known: default, released"):
        Tagcos(clusters=3, mode="fast", share=None)
    with pytest.raises(ValueError, match="clusters: found 0"):
        Tagcos(clusters=0, mode="default", share=None)
    with pytest.raises(ValueError, match="unknown selection method 'tagco'; known: random, tagcos"):
        registry.get_method("tagco")
