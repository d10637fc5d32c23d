"""Uncertainty of mean scores: seeded bootstrap intervals, and a paired test for two runs on the same samples.

The same seed serves every call, so equal sizes share their resamples: a figure depends on its own samples alone, never
on what was computed before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEED = 0
RESAMPLES = 5000
LEVEL = 0.95
#: Below this p a difference is marked.
SIGNIFICANT = 0.05
#: Up to this many non-zero differences, all 2^n sign assignments are counted instead of drawn.
EXACT_SIGNS = 12

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """The difference of two means over the same samples: b - a."""

    difference: float
    low: float
    high: float
    p: float


def resampled_means(values: Floats, rng: np.random.Generator) -> Floats:
    """Means of `RESAMPLES` resamples with replacement. values: [n]; returns [RESAMPLES]."""
    n = len(values)
    chunk = max(1, 2_000_000 // n)  # draws held at once: 16 MB of indices
    means = [
        values[rng.integers(n, size=(min(chunk, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, chunk)
    ]
    return np.concatenate(means)


def mean_interval(values: Floats) -> tuple[float, float] | None:
    """Percentile bootstrap interval (Efron 1979) of the mean at `LEVEL`; None for fewer than two values.

    Args:
        values: [n] scores of samples.
    """
    return strata_interval([values])


def strata_interval(strata: Sequence[Floats]) -> tuple[float, float] | None:
    """Percentile bootstrap interval at `LEVEL` of the mean over strata of their means, each resampled by itself.

    Args:
        strata: at least one, such as the tasks of a suite: [n] scores of samples each.

    Returns:
        The interval; None where a stratum has fewer than two values.
    """
    if min(map(len, strata)) < 2:
        return None
    rng = np.random.default_rng(SEED)
    means = np.mean([resampled_means(values, rng) for values in strata], axis=0)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sign_flip_p(differences: Floats) -> float:
    """Two-sided p of the paired randomization test (Fisher 1935): under the null, each difference may change its sign.

    Unlike a bootstrap p, it stays honest for few samples: three equal differences give 0.25, not 0.

    Args:
        differences: [n] of the samples, b - a.
    """
    moved = differences[differences != 0]
    n = len(moved)
    if n == 0:
        return 1.0
    observed = abs(moved.sum())
    if n <= EXACT_SIGNS:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        sums, spare = np.abs(signs @ moved), 0
    else:
        rng = np.random.default_rng(SEED)
        flips = np.empty(RESAMPLES)
        for row in range(RESAMPLES):  # one row at a time: n may be thousands
            flips[row] = abs(np.where(rng.integers(2, size=n, dtype=np.int8) == 1, moved, -moved).sum())
        sums, spare = flips, 1  # the observed assignment itself counts, so p is never 0
    tolerance = 1e-9 * np.abs(moved).sum()  # sums of the same numbers in another order
    return float((np.count_nonzero(sums >= observed - tolerance) + spare) / (len(sums) + spare))


def paired(a: Floats, b: Floats) -> Paired | None:
    """Compares two runs on the same samples; None for fewer than two.

    Args:
        a, b: [n] scores; row i is the same sample in both.

    Returns:
        b - a in the mean, its percentile bootstrap interval over samples, and the p of `sign_flip_p`.
    """
    assert a.shape == b.shape, "paired scores must align"
    differences = b - a
    interval = mean_interval(differences)
    if interval is None:
        return None
    return Paired(float(differences.mean()), *interval, sign_flip_p(differences))
