"""Clusters pursued by any workers: the same selection; and one thread a sum, whatever runs beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from longloom.tasks.coreset import piece
from longloom.tasks.coreset.blas import one_thread
from longloom.tasks.coreset.registry import Pool, Selection
from longloom.tasks.coreset.rows import Held


def select(mode: str, **options: object) -> Selection:
    from longloom.tasks.coreset.methods.tagcos import Tagcos  # scikit-learn, which workers need not import with this

    rng = np.random.default_rng(3)
    features = rng.normal(size=(400, 16)) + 2 * rng.normal(size=(5, 16))[rng.integers(5, size=400)]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features[::17] = 0
    pool = Pool(400, Held(features.astype(np.float32)))
    method = Tagcos(clusters=6, mode=mode, share=0.2, **options)
    return method.select(pool, 80, np.random.default_rng(1))


@pytest.mark.parametrize("mode", ["default", "released"])
def test_the_same_selection_by_any_workers(mode: str) -> None:
    alone = select(mode)
    for workers in ("threads", "processes"):
        other = select(mode, threads=2, workers=workers)
        assert other.indices.tobytes() == alone.indices.tobytes()
        assert other.weights.tobytes() == alone.weights.tobytes()
        assert other.clusters.tobytes() == alone.clusters.tobytes()
        assert other.counts == alone.counts


def test_a_cluster_too_large_to_hold_is_read_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    held = select("default")
    monkeypatch.setattr(piece, "HELD_BYTES", 0)
    read = select("default")
    assert read.indices.tobytes() == held.indices.tobytes()
    np.testing.assert_allclose(read.weights, held.weights, rtol=1e-10)


def test_one_thread_holds_until_the_last_has_gone() -> None:
    """A piece that ends before those beside it must not give their sums more threads."""

    def blas() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    def elsewhere(work: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=work)
        thread.start()
        return thread

    inside, go = threading.Event(), threading.Event()

    def early() -> None:
        with one_thread():
            inside.set()
            go.wait(30)

    before = max(blas())
    elsewhere(lambda: threadpool_limits(limits=2, user_api="blas")).join()  # a thread that is gone holds nothing
    allowed = blas()
    assert 2 in allowed  # libraries whose limit is a thread's keep theirs
    other = elsewhere(early)
    assert inside.wait(30)
    with one_thread():
        go.set()
        other.join()
        assert blas() == {1}
    assert blas() == allowed
    elsewhere(lambda: threadpool_limits(limits=before, user_api="blas")).join()
