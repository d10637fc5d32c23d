"""Distributional memorization and its uncertainty (arXiv 2407.14985, definition 3).

    Mem_n = Spearman's rho(log P_{n,D}, log P_LLM);  Kendall distance = (1 - tau_b) / 2

Probabilities of zero have a logarithm of minus infinity and tie for the last rank. The pairs of one record are not
independent, so the bootstrap resamples records; the p-value is the usual one over pairs, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
#: Points below which no correlation is told.
FEWEST = 3


@dataclass(frozen=True)
class Correlation:
    """How two rankings agree.

    Attributes:
        points, records: how many there were.
        rho, p: Spearman's, two-sided against no correlation.
        low, high: percentile bootstrap interval of rho at LEVEL over records; None with one record.
        tau, distance: Kendall's tau_b, and (1 - tau_b) / 2.
    """

    points: int
    records: int
    rho: float
    p: float
    low: float | None
    high: float | None
    tau: float
    distance: float


def correlate(corpus: Floats, model: Floats, records: Whole) -> Correlation | None:
    """Spearman's rho and Kendall's tau_b, with ties.

    Args:
        corpus, model: logarithms [points]; minus infinity stands for probability zero.
        records: [points], which record each belongs to.

    Returns:
        None for fewer than FEWEST points, or where all of one side are equal.
    """
    found = spearman(corpus, model)
    if found is None:
        return None
    rho, p = found
    tau = float(stats.kendalltau(corpus, model).statistic)
    low, high = _interval(_resampled(corpus, model, records))
    return Correlation(len(corpus), len(np.unique(records)), rho, p, low, high, tau, kendall_distance(tau))


def spearman(corpus: Floats, model: Floats) -> tuple[float, float] | None:
    """Rho and its two-sided p-value; arguments and None as of `correlate`."""
    if len(corpus) < FEWEST or min(np.ptp(_codes(corpus)), np.ptp(_codes(model))) == 0:
        return None
    result = stats.spearmanr(stats.rankdata(corpus), stats.rankdata(model))  # ranks first, for there are infinities
    return float(result.statistic), float(result.pvalue)


def kendall_distance(tau: float) -> float:
    """The share of pairs that are ranked the other way round, 0 to 1."""
    return (1 - tau) / 2


def equal_sizes(corpus: Floats, model: Floats, *, points: int) -> tuple[float, float | None, float | None] | None:
    """Rho of resamples of a given size, so that tasks with more pairs are not told apart by that alone.

    Args:
        corpus, model: logarithms [points].
        points: of a resample, drawn with replacement; the smallest task's number of them.

    Returns:
        The mean of rho and its percentile interval; None where it is never defined.
    """
    rng = np.random.default_rng(SEED)
    left, right = _codes(corpus), _codes(model)
    rhos = [_rho_of_codes(left[rows], right[rows]) for rows in rng.integers(len(corpus), size=(RESAMPLES, points))]
    found = np.array([rho for rho in rhos if rho is not None])
    if not len(found):
        return None
    return float(found.mean()), *_interval(found)


def _resampled(corpus: Floats, model: Floats, records: Whole) -> Floats:
    """Rho of resamples of whole records [up to RESAMPLES]: those in which it is defined."""
    names, owner = np.unique(records, return_inverse=True)
    if len(names) < 2:
        return np.zeros(0)
    order = np.argsort(owner, kind="stable")
    edges = np.searchsorted(owner[order], np.arange(len(names) + 1))
    rows_of = [order[low:high] for low, high in pairwise(edges)]
    left, right = _codes(corpus), _codes(model)
    rng = np.random.default_rng(SEED)
    rhos = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([rows_of[name] for name in rng.integers(len(names), size=len(names))])
        rho = _rho_of_codes(left[rows], right[rows])
        if rho is not None:
            rhos.append(rho)
    return np.array(rhos)


def _interval(values: Floats) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _codes(values: Floats) -> Whole:
    """Place of each value among the distinct ones: whole numbers in the same order."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _rho_of_codes(left: Whole, right: Whole) -> float | None:
    """Spearman's rho by counting, without a sort; None where a side is constant."""
    x, y = _ranks(left), _ranks(right)
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return None if norm == 0 else float(x @ y / norm)


def _ranks(codes: Whole) -> Floats:
    """Average ranks from 1."""
    counts = np.bincount(codes)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[codes]
    return ranks
