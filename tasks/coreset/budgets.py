"""How many examples a coreset holds, and how a budget is spread over clusters."""

from __future__ import annotations

import numpy as np


def resolve(share: float | None, count: int | None, examples: int) -> tuple[int, list[str]]:
    """The budget in examples, from exactly one of a share and a count.

    Args:
        share: of the pool, in (0, 1]; rounded to the nearest number of examples (halves up), at least 1.
        count: of examples, 1 to `examples`.
        examples: in the pool.

    Returns:
        The budget, and notes for the user on what was done to the wish.

    Raises:
        ValueError: neither or both are given, or one is out of range.
    """
    if (share is None) == (count is None):
        raise ValueError(f"budget: found share={share} and count={count}, expected one of them")
    if count is not None:
        if not 1 <= count <= examples:
            raise ValueError(f"count: found {count}, expected 1 to {examples}, the examples of the pool")
        return count, []
    assert share is not None
    if not 0 < share <= 1:
        raise ValueError(f"share: found {share}, expected more than 0 and at most 1")
    budget = int(share * examples + 0.5)
    if budget == 0:
        return 1, [f"a share of {share} of {examples} examples rounds to 0: 1 is picked"]
    return budget, []


def largest_remainder(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Spreads a budget in proportion to sizes so that it sums exactly; no cluster gets more than its size.

    Each gets the floor of its quota; what is left goes to the largest remainders (ties: the larger cluster, then the
    lower number). In integers throughout.

    Args:
        sizes: int64 [k], examples of each cluster.
        budget: 0 to sum(sizes).

    Returns:
        int64 [k] summing to `budget`.
    """
    total = int(sizes.sum())
    assert 0 <= budget <= total, (budget, total)
    if total == 0:
        return np.zeros_like(sizes)
    quotas, remainders = np.divmod(sizes * budget, total)
    order = np.lexsort((np.arange(len(sizes)), -sizes, -remainders))
    quotas[order[: budget - int(quotas.sum())]] += 1
    return quotas


def floors(sizes: np.ndarray, budget: int, examples: int, share: float | None) -> np.ndarray:
    """The released code's budgets, int(share * n_c) in floating point; from a count, the exact floor of its quota.

    They sum to less than the budget, and clusters smaller than 1 / share get nothing.
    """
    if share is None:
        return sizes * budget // examples
    return np.array([int(share * size) for size in sizes.tolist()], dtype=np.int64)
