"""Finds many n-grams in the suffix array of a shard at once: one bisection for all, step by step, in NumPy.

A suffix array's entries are compared eight bytes at a time. A sorted sample of the entries, held in memory, leaves a
few steps within the mapped files; n-grams longer than eight bytes go on within what their first eight bytes left.
"""

from __future__ import annotations

import numpy as np

from longloom.tasks.ngrams.grams import WORD, Grams, Group
from longloom.tasks.ngrams.shard import OpenShard

#: Entries in the sample, at most: half a megabyte of words, as many looks into the files when it is made.
SAMPLE = 2**16


class Searcher:
    """A shard and the sample of its suffix array.

    Args:
        shard: an open one.
    """

    def __init__(self, shard: OpenShard) -> None:
        self.shard = shard
        self._stride = -(-shard.entries // SAMPLE)
        self._sample = shard.words(shard.pointers(np.arange(0, shard.entries, self._stride)))  # sorted

    def find(self, grams: Grams) -> tuple[np.ndarray, np.ndarray]:
        """The entries that begin with each distinct n-gram: int64 [distinct], the first and the one behind the last."""
        starts = np.zeros(grams.distinct, dtype=np.int64)
        stops = np.zeros(grams.distinct, dtype=np.int64)
        for group in grams.groups:
            starts[group.members], stops[group.members] = self._find(group)
        return starts, stops

    def _find(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.minimum(group.sizes, WORD)
        starts, stops = self._bracket(group.words[:, 0], sizes)
        for number in range(group.words.shape[1]):
            sizes = np.minimum(group.sizes - number * WORD, WORD)
            alive = np.flatnonzero(starts < stops)
            starts[alive], stops[alive] = self._narrow(
                starts[alive], stops[alive], group.words[alive, number], sizes[alive], number * WORD
            )
        return starts, stops

    def _bracket(self, words: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entries before and behind all that can begin with the first bytes of the words."""
        rest = np.uint64(2**64 - 1) >> (sizes.astype(np.uint64) * np.uint64(8) - np.uint64(1)) >> np.uint64(1)
        before = np.searchsorted(self._sample, words, side="left")
        behind = np.searchsorted(self._sample, words | rest, side="right")
        starts = np.where(before > 0, (before - 1) * self._stride + 1, 0)
        return starts, np.minimum(behind * self._stride, self.shard.entries)

    def _narrow(
        self, starts: np.ndarray, stops: np.ndarray, words: np.ndarray, sizes: np.ndarray, depth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of entries that agree in `depth` bytes, those that go on with the first bytes (`sizes`) of the words."""
        total = len(starts)
        low, high = np.concatenate([starts, starts]), np.concatenate([stops, stops])
        shift = np.tile((WORD - sizes).astype(np.uint64) * np.uint64(8), 2)
        key = np.tile(words, 2) >> shift
        last = np.tile(self.shard.tokens.nbytes - depth - sizes, 2)  # the last place with room for it
        upper = np.arange(2 * total) >= total  # the second half looks for the end
        active = np.flatnonzero(low < high)
        while len(active):
            middle = (low[active] + high[active]) >> 1
            places = self.shard.pointers(middle)
            found = self.shard.words(places + depth) >> shift[active]
            wanted = key[active]
            # A suffix that ends too early is padded with zeros, and may look like the n-gram: it stands before it.
            below = (found < wanted) | ((found == wanted) & (upper[active] | (places > last[active])))
            low[active] = np.where(below, middle + 1, low[active])
            high[active] = np.where(below, high[active], middle)
            active = active[low[active] < high[active]]
        return low[:total], low[total:]
