"""Documents that hold both n-grams of a pair: exact, for millions of pairs at once.

Each distinct n-gram's occurrences are read from the suffix array once. Of each distinct pair the rarer n-gram's are
looked up among the other's, all pairs in one sorted search in NumPy. Where the occurrences do not fit into the memory,
they go to Parquet and DuckDB joins them (joined.py); both ways give the same counts.

infini-gram's CNF query is no way to these counts: wide enough to span a document, it drops ranges at the ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from longloom.tasks.ngrams.grams import Grams
from longloom.tasks.ngrams.postings import SLICE, Shards

#: Memory of one occurrence while pairs are looked up in NumPy: its key, and its part of what is sorted and probed.
BYTES = 32


@dataclass(frozen=True)
class Pairs:
    """The distinct pairs of a batch, the n-gram with fewer occurrences first; sorted by the other one.

    Attributes:
        rare: int64 [m], numbers of n-grams.
        other: int64 [m].
        inverse: int64 [n], which of them each pair of the batch is.
    """

    rare: np.ndarray
    other: np.ndarray
    inverse: np.ndarray


def distinct_pairs(first: np.ndarray, second: np.ndarray, sizes: np.ndarray) -> Pairs:
    """Each distinct pair once.

    Args:
        first: int64 [n], numbers of n-grams.
        second: int64 [n].
        sizes: int64 [n-grams], occurrences.
    """
    swap = (sizes[first] > sizes[second]) | ((sizes[first] == sizes[second]) & (first > second))
    rare, other = np.where(swap, second, first), np.where(swap, first, second)
    codes, inverse = np.unique(other * len(sizes) + rare, return_inverse=True)
    return Pairs(codes % len(sizes), codes // len(sizes), inverse)


def cooccurrences(shards: Shards, grams: Grams, *, within: int | None, memory_gib: float) -> np.ndarray:
    """Counts the documents of each pair.

    Args:
        shards: of the index.
        grams: the n-grams of n pairs: first those of the first halves, then those of the second, 2n in all.
        within: at most so many tokens between the two n-grams, in either order; None: anywhere in the document.
        memory_gib: memory that occurrences may take.

    Returns:
        int64 [n].

    Raises:
        ValueError: a negative distance; no memory.
    """
    if within is not None and within < 0:
        raise ValueError(f"within is {within}, expected at least 0 tokens")
    if memory_gib <= 0:
        raise ValueError(f"memory_gib is {memory_gib}, expected more than 0")
    half = len(grams.numbers) // 2
    if not half:
        return np.zeros(0, dtype=np.int64)
    starts, stops = shards.ranges(grams)
    sizes = (stops - starts).sum(axis=0)
    pairs = distinct_pairs(grams.numbers[:half], grams.numbers[half:], sizes)
    points = int(sizes.sum() if within is not None else np.minimum(sizes, shards.documents).sum())
    line = shards.documents if within is None else shards.places
    if points * BYTES > memory_gib * 2**30 or grams.distinct * (line + 1) >= 2**63:
        from longloom.tasks.ngrams.joined import joined

        counts = joined(shards, grams, pairs, starts, stops, within=within, memory_gib=memory_gib)
    elif within is None:
        counts = _together(shards, pairs, starts, stops)
    else:
        counts = _near(shards, pairs, starts, stops, grams.lengths, within)
    found: np.ndarray = counts[pairs.inverse]
    return found


def _together(shards: Shards, pairs: Pairs, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Counts for each distinct pair, int64 [m]."""
    keys = np.concatenate([numbers * shards.documents + found for numbers, found in shards.postings(starts, stops)])
    counts = np.zeros(len(pairs.rare), dtype=np.int64)
    begins, ends = _extents(keys, shards.documents, starts.shape[1])
    for block, number, entry in _probes(begins[pairs.rare], ends[pairs.rare]):
        wanted = keys[entry] + (pairs.other[number] - pairs.rare[number]) * shards.documents
        counts[block] = np.bincount(number[_holds(keys, wanted, wanted)] - block.start, minlength=_length(block))
    return counts


def _near(
    shards: Shards, pairs: Pairs, starts: np.ndarray, stops: np.ndarray, lengths: np.ndarray, within: int
) -> np.ndarray:
    """The same, for n-grams near each other: looks in the part of the document that is near enough."""
    found = shards.occurrences(starts, stops)
    keys = np.sort(np.concatenate([numbers * shards.places + places for numbers, _, places, _ in found]))
    counts = np.zeros(len(pairs.rare), dtype=np.int64)
    begins, ends = _extents(keys, shards.places, starts.shape[1])
    for block, number, entry in _probes(begins[pairs.rare], ends[pairs.rare]):
        rare, other = pairs.rare[number], pairs.other[number]
        places = keys[entry] - rare * shards.places
        documents, begin, end = shards.extents(places)
        low = np.maximum(places - lengths[other] - min(within, shards.places), begin)
        high = np.minimum(places + lengths[rare] + min(within, shards.places), end - 1)
        near = _holds(keys, low + other * shards.places, high + other * shards.places)
        hits, documents = number[near], documents[near]  # sorted by pair, and a pair's by document
        new = np.ones(len(hits), dtype=bool)
        new[1:] = (hits[1:] != hits[:-1]) | (documents[1:] != documents[:-1])
        counts[block] = np.bincount(hits[new] - block.start, minlength=_length(block))
    return counts


def _extents(keys: np.ndarray, line: int, grams: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each n-gram's keys begin and end: int64 [grams] each."""
    bounds = np.searchsorted(keys, np.arange(grams + 1) * line)
    return bounds[:-1], bounds[1:]


def _probes(begins: np.ndarray, ends: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Blocks of pairs: the block, and for each key of their rarer n-grams the pair's number and the key's place."""
    sizes = ends - begins
    totals = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        done = totals[first] - sizes[first]
        block = slice(first, max(first + 1, int(np.searchsorted(totals, done + SLICE, side="right"))))
        before = totals[block] - sizes[block] - done
        number = np.repeat(np.arange(block.start, block.stop), sizes[block])
        yield block, number, np.arange(len(number)) + np.repeat(begins[block] - before, sizes[block])
        first = block.stop


def _holds(keys: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether a key lies between the bounds, both included; bool [m]."""
    at = np.searchsorted(keys, low)
    found: np.ndarray = (at < len(keys)) & (keys[np.minimum(at, len(keys) - 1)] <= high)
    return found


def _length(block: slice) -> int:
    return int(block.stop - block.start)
