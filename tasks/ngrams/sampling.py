"""Estimates from a sample of documents, for those who ask for them: unbiased, marked as such, with an interval.

m of the N documents are drawn uniformly without replacement; x of them hold the pair. Then N x / m is an unbiased
estimate of the K documents that hold it, and x follows the hypergeometric distribution of (N, K, m). The interval is
the exact one of its two one-sided tests, as Clopper and Pearson (1934) have it for the binomial distribution: all K for
which neither x or fewer nor x or more has a probability of (1 - CONFIDENCE) / 2 or less. It covers K with at least that
confidence; a rare pair that the sample has missed has a wide interval, never a false zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from longloom.tasks.ngrams.postings import Shards
from longloom.tasks.ngrams.shard import shard_in_memory

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimates:
    """Counts of documents from a sample, one a pair.

    Attributes:
        documents: float64 [n], unbiased estimates.
        low: int64 [n], the interval's ends, both included.
        high: int64 [n].
        sample: documents drawn.
        population: documents that they were drawn from.
    """

    documents: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sample: int
    population: int


def draw(shards: Shards, sample: int, seed: int) -> Shards:
    """A uniform sample of the documents that are not deleted, in their order, as an index in memory.

    Args:
        shards: of the index.
        sample: documents to draw; all where there are no more.
        seed: equal seeds, equal samples.

    Raises:
        ValueError: less than one document to draw, or none there.
    """
    if sample < 1:
        raise ValueError(f"sample is {sample}, expected at least 1 document")
    population = shards.documents - len(shards.deleted)
    if not population:
        raise ValueError("all documents are deleted, expected some to sample from")
    generator = np.random.default_rng(seed)
    ranks = np.sort(generator.choice(population, size=min(sample, population), replace=False, shuffle=False))
    # The rank of a document that is left, plus the deleted ones before it, is its ordinal.
    ordinals = ranks + np.searchsorted(shards.deleted - np.arange(len(shards.deleted)), ranks, side="right")
    chosen = shard_in_memory([shards.tokens(ordinal) for ordinal in ordinals.tolist()], shards.token_dtype)
    return Shards([chosen], np.zeros(0, dtype=np.int64), shards.token_dtype)


def estimate(found: np.ndarray, *, sample: int, population: int) -> Estimates:
    """Estimates and their intervals.

    Args:
        found: int64 [n], documents of the sample that hold each pair.
        sample: documents drawn, m.
        population: documents that they were drawn from, N.
    """
    distinct, inverse = np.unique(found, return_inverse=True)
    tail = (1 - CONFIDENCE) / 2
    least, most = distinct, population - (sample - distinct)  # of K, whatever the probabilities
    low = _first(least, most, lambda k: hypergeom.sf(distinct - 1, population, k, sample) > tail)
    high = _first(least, most + 1, lambda k: hypergeom.cdf(distinct, population, k, sample) <= tail) - 1
    return Estimates(found * (population / sample), low[inverse], high[inverse], sample, population)


def _first(low: np.ndarray, high: np.ndarray, holds: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The first K of each range [low, high) for which a condition holds that holds for all after it; else `high`."""
    low, high = low.copy(), high.copy()
    while (low < high).any():
        middle = (low + high) // 2
        found = holds(middle) | (low >= high)
        low, high = np.where(found, low, middle + 1), np.where(found, np.minimum(middle, high), high)
    return low
