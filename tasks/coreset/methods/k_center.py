"""Greedy k-center: each pick is the example farthest from all picked before it.

Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach" (arXiv 1708.00489,
algorithm 1), here over gradient features with Euclidean distances, from a first example drawn at random. The largest
distance that is left is at most twice the best possible.

Exact and out of core. A row's distance to its nearest pick only falls, so a stale one is a bound from above: only the
rows of the largest bounds are read again, brought up to date with the picks since they were last seen, and picked from
for as long as the best of them beats every bound of the rest. No distance of a row to a pick is computed twice; most
never are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longloom.tasks.coreset.blas import one_thread
from longloom.tasks.coreset.ranking import DECIMALS, completed, has_gradient, spans
from longloom.tasks.coreset.registry import Pool, Selection
from longloom.tasks.coreset.rows import BLOCK_BYTES, Features
from longloom.tasks.progress import Progress, silent


@dataclass(frozen=True)
class KCenter:
    """See the module; all weights are 1."""

    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    def select(self, pool: Pool, budget: int, rng: np.random.Generator, *, progress: Progress = silent) -> Selection:
        """See `registry.Method`; progress counts picks.

        Raises:
            ValueError: all rows are zero.
        """
        assert pool.features is not None
        mask = has_gradient(pool.features, method="k-center")
        alive = np.flatnonzero(mask)
        first = int(alive[rng.integers(len(alive))])
        with one_thread():  # the order of sums must not depend on the number of threads
            picked = _farthest_first(pool.features, alive, first, min(budget, len(alive)), progress)
        found = Selection(picked, np.ones(len(picked)))
        return completed(found, mask, budget, missing="gradient")


def _farthest_first(features: Features, alive: np.ndarray, first: int, count: int, progress: Progress) -> np.ndarray:
    """`count` of the rows `alive`, beginning with `first`: int64, in the order of picking; ties: the lower index."""
    examples, dimension = features.shape
    width = max(1, BLOCK_BYTES // (8 * max(1, dimension)))
    bounds = np.full(examples, -1.0)  # of the squared distance to the nearest pick; below 0: out of the question
    bounds[alive] = np.inf
    bounds[first] = -1.0
    seen = np.zeros(examples, np.int64)  # how many picks a bound takes into account
    picked = [first]
    while len(picked) < count:
        window, rival = _largest(bounds, width)
        rows = features.take(window).astype(np.float64)
        squares = np.einsum("ij,ij->i", rows, rows)
        nearest = _brought_up(features, rows, squares, bounds[window], seen[window], np.array(picked))
        while len(picked) < count:
            best = int(np.argmax(nearest))
            if rival is not None and (nearest[best], -window[best]) < (bounds[rival], -rival):
                break
            picked.append(int(window[best]))
            distances = _rounded(squares + squares[best] - 2 * (rows @ rows[best]))
            np.minimum(nearest, distances, out=nearest)
            nearest[best] = -1.0
            progress(len(picked), count)
        bounds[window] = nearest
        seen[window] = len(picked)
    return np.array(picked, np.int64)


def _largest(bounds: np.ndarray, width: int) -> tuple[np.ndarray, int | None]:
    """The rows of the `width` largest bounds, by index, and the one that comes next; of equal bounds the lower index.

    Rows with a bound below 0 are not there.
    """
    live = np.flatnonzero(bounds >= 0)
    if len(live) <= width:
        return live, None
    values = bounds[live]
    last = np.partition(values, len(values) - width)[len(values) - width]
    above, equal, below = live[values > last], live[values == last], values < last
    taken = width - len(above)
    window = np.sort(np.concatenate([above, equal[:taken]]))
    if taken < len(equal):
        return window, int(equal[taken])
    return window, int(live[below][np.argmax(values[below])])


def _brought_up(
    features: Features,
    rows: np.ndarray,
    squares: np.ndarray,
    bounds: np.ndarray,
    seen: np.ndarray,
    picked: np.ndarray,
) -> np.ndarray:
    """The rows' squared distances to their nearest pick: their bounds, lowered by the picks that they have not seen."""
    nearest = bounds.copy()
    order = np.argsort(seen, kind="stable")
    oldest = int(seen.min())
    for start, stop in spans(len(picked) - oldest, max(1, BLOCK_BYTES // (8 * len(rows)))):
        stale = order[: np.searchsorted(seen[order], oldest + stop)]
        centres = features.take(picked[oldest + start : oldest + stop]).astype(np.float64)
        sums = squares[stale, None] + np.einsum("ij,ij->i", centres, centres)
        distances = _rounded(sums - 2 * (rows[stale] @ centres.T))
        nearest[stale] = np.minimum(nearest[stale], distances.min(axis=1))
    return nearest


def _rounded(distances: np.ndarray) -> np.ndarray:
    """Not below 0, and equal where only the order of a sum differs."""
    return np.maximum(np.round(distances, DECIMALS), 0.0)
