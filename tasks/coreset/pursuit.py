"""Orthogonal matching pursuit of a cluster's centroid: which few examples add up to the mean gradient.

After TAGCOS (arXiv 2407.15235, section 3.3) as released: ridge, non-negative, in rounds, because the ridge lets a
chosen column win again and so ends a pursuit early. This is the plain reference; a faster one has to pick the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RIDGE = 1.0
TOLERANCE = 1e-4


def omp(rows: np.ndarray, target: np.ndarray, picks: int) -> tuple[list[int], np.ndarray]:
    """One pursuit: rows whose non-negative combination comes near the target.

    It stops at `picks` rows, at a relative residual below 1e-4, or when a chosen row wins again. A single row gets its
    projection without ridge, and that may be negative; negative weights of several rows are dropped one by one.

    Args:
        rows: float64 [n, d], the columns a_j of the paper's matrix A.
        target: float64 [d].
        picks: 0 or more.

    Returns:
        Chosen row numbers, distinct, and their weights, float64. Both are empty where the released code would divide
        by zero: a target of zeros, no rows, or nothing left that correlates with the target but rows of zeros.
    """
    chosen: list[int] = []
    weights = np.zeros(0)
    norm = np.linalg.norm(target)
    if norm == 0 or len(rows) == 0:
        return chosen, weights
    residual = target
    for _ in range(picks):
        if np.linalg.norm(residual) / norm < TOLERANCE:
            break
        correlations = rows @ residual
        best = int(np.argmax(correlations))
        if best in chosen:
            break
        chosen.append(best)
        basis = rows[chosen]
        if len(chosen) == 1:
            length = basis[0] @ basis[0]
            if length == 0:
                return [], np.zeros(0)
            weights = correlations[[best]] / length
        else:
            weights = _ridge(basis, target)
            while len(weights) and weights.min() < 0:
                del chosen[int(np.argmin(weights))]
                basis = rows[chosen]
                weights = _ridge(basis, target)
        residual = target - weights @ basis
    return chosen, weights


def released(rows: np.ndarray, target: np.ndarray, budget: int) -> list[int]:
    """The released algorithm: rounds of `omp` on what is left of the pool, each emitting the rows with a weight.

    Mended only where it would loop forever (a round that emits nothing ends it) or crash (an empty pool), so it may
    pick fewer than `budget`.
    """
    return _rounds(rows, target, budget, positive=False)[0]


@dataclass(frozen=True)
class Picks:
    """What `pursue` chose.

    Attributes:
        indices: row numbers in the order of picking, distinct.
        weights: float64, the weights in the pursuit, all positive; filled rows have the mean weight of the pursued
            ones, or 1 if there are none.
        filled: how many, at the end of `indices`, were chosen by their distance instead of by the pursuit.
    """

    indices: list[int]
    weights: np.ndarray
    filled: int


def pursue(rows: np.ndarray, target: np.ndarray, budget: int) -> Picks:
    """Exactly `budget` rows: the released rounds with weights kept, then the rows nearest to the target.

    Rounds end when nothing left correlates positively with the target; the rest is filled by Euclidean distance (ties:
    the lower index).

    Args:
        rows: float64 [n, d].
        target: float64 [d], the cluster's centroid.
        budget: 0 to n.
    """
    assert 0 <= budget <= len(rows), (budget, len(rows))
    indices, weights = _rounds(rows, target, budget, positive=True)
    lacking = budget - len(indices)
    if lacking:
        distances = ((rows - target) ** 2).sum(axis=1)
        distances[indices] = np.inf
        indices = indices + np.argsort(distances, kind="stable")[:lacking].tolist()
        weights = weights + [float(np.mean(weights)) if weights else 1.0] * lacking
    return Picks(indices, np.array(weights, dtype=np.float64), lacking)


def _rounds(rows: np.ndarray, target: np.ndarray, budget: int, *, positive: bool) -> tuple[list[int], list[float]]:
    """Pursuits on what earlier ones left over; with `positive`, weights below zero are no picks."""
    pool = np.arange(len(rows))
    indices: list[int] = []
    weights: list[float] = []
    while budget > len(indices) and len(pool):
        chosen, found = omp(rows[pool], target, budget - len(indices))
        emitted = [(j, w) for j, w in zip(chosen, found.tolist(), strict=True) if w > 0 or (not positive and w < 0)]
        if not emitted:
            break
        taken = [j for j, _ in emitted]
        indices += pool[taken].tolist()
        weights += [w for _, w in emitted]
        pool = np.delete(pool, taken)
    return indices, weights


def _ridge(basis: np.ndarray, target: np.ndarray) -> np.ndarray:
    """argmin |target - x basis|^2 + |x|^2 over x, float64 [rows of basis]."""
    return np.linalg.solve(basis @ basis.T + RIDGE * np.eye(len(basis)), basis @ target)
