"""From the suffix array to documents: where n-grams stand in all shards, and which documents hold them.

Work goes in slices of `SLICE` occurrences, so that a frequent n-gram does not decide how much memory is taken.
A *place* is an offset in the tokens (with separators) of all shards, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from longloom.tasks.ngrams.grams import Grams
from longloom.tasks.ngrams.search import Searcher
from longloom.tasks.ngrams.shard import OpenShard, shard_in_memory

#: Occurrences at a time; about 50 bytes each.
SLICE = 2**22


class Shards:
    """All shards of an index, without its deleted documents.

    Args:
        shards: in the corpus's order.
        deleted: int64, ordinals of deleted documents, sorted.
        token_dtype: u8, u16 or u32.

    Attributes:
        documents: number of documents, deleted ones included.
        places: tokens and separators of all shards.
    """

    def __init__(self, shards: Sequence[OpenShard], deleted: np.ndarray, token_dtype: str) -> None:
        self.shards = list(shards)
        self.deleted = deleted
        self.token_dtype = token_dtype
        self._documents = np.cumsum([0, *(shard.documents for shard in shards)])  # before each shard
        self._places = np.cumsum([0, *(shard.entries for shard in shards)])
        self.documents = int(self._documents[-1])
        self.places = int(self._places[-1])

    def locate(self, ordinal: int) -> tuple[int, int]:
        """The shard of a document, and its place there."""
        shard = int(np.searchsorted(self._documents, ordinal, side="right")) - 1
        return shard, int(ordinal - self._documents[shard])

    def tokens(self, ordinal: int) -> np.ndarray:
        """The tokens of a document."""
        shard, place = self.locate(ordinal)
        return self.shards[shard].document_tokens(place)

    @cached_property
    def gone(self) -> OpenShard | None:
        """The deleted documents as a shard of their own: what it counts, the others count too much."""
        if not len(self.deleted):
            return None
        return shard_in_memory([self.tokens(ordinal) for ordinal in self.deleted.tolist()], self.token_dtype)

    @cached_property
    def _searchers(self) -> list[Searcher]:
        return [Searcher(shard) for shard in self.shards]

    @cached_property
    def _gone_searcher(self) -> Searcher | None:
        return None if self.gone is None else Searcher(self.gone)

    def entries(self) -> int:
        """Tokens and separators of the documents that are not deleted."""
        return self.places - (0 if self.gone is None else self.gone.entries)

    def count(self, query: bytes) -> int:
        """Occurrences of one n-gram, given as its bytes on disk."""
        count = sum(stop - start for start, stop in (shard.find(query) for shard in self.shards))
        if self.gone is not None:
            start, stop = self.gone.find(query)
            count -= stop - start
        return count

    def counts(self, grams: Grams) -> np.ndarray:
        """Occurrences of each distinct n-gram, int64 [distinct]."""
        starts, stops = self.ranges(grams)
        counts: np.ndarray = (stops - starts).sum(axis=0)
        if self._gone_searcher is not None:
            first, last = self._gone_searcher.find(grams)
            counts -= last - first
        return counts

    def ranges(self, grams: Grams) -> tuple[np.ndarray, np.ndarray]:
        """The entries of each distinct n-gram in each suffix array: int64 [shards, distinct], first and behind."""
        found = [searcher.find(grams) for searcher in self._searchers]
        return np.stack([start for start, _ in found]), np.stack([stop for _, stop in found])

    def ranges_of(self, query: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The same of one n-gram: int64 [shards, 1]."""
        found = np.array([shard.find(query) for shard in self.shards], dtype=np.int64)
        return found[:, :1], found[:, 1:]

    def occurrences(
        self, starts: np.ndarray, stops: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]:
        """All occurrences in slices.

        Args:
            starts: int64 [shards, m], of `ranges`.
            stops: int64 [shards, m].

        Yields:
            Numbers of n-grams, document ordinals and places, int64 [slice] each and in no order; and whether the
            slice's n-grams stand in no other slice.
        """
        sizes = (stops - starts).sum(axis=0)
        ends = np.cumsum(sizes)
        first = 0
        while first < len(sizes):
            done = ends[first] - sizes[first]
            behind = max(first + 1, int(np.searchsorted(ends, done + SLICE, side="right")))
            block = slice(first, behind)
            if ends[behind - 1] - done <= SLICE:
                yield *self._read(starts[:, block], stops[:, block], first), True
            else:
                yield from self._pieces(starts[:, first], stops[:, first], first)
            first = behind

    def _pieces(
        self, starts: np.ndarray, stops: np.ndarray, number: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]:
        for shard in range(len(self.shards)):
            for start in range(int(starts[shard]), int(stops[shard]), SLICE):
                low, high = np.zeros_like(starts), np.zeros_like(stops)
                low[shard], high[shard] = start, min(start + SLICE, int(stops[shard]))
                yield *self._read(low[:, None], high[:, None], number), False

    def _read(self, starts: np.ndarray, stops: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts = []
        for number, shard in enumerate(self.shards):
            sizes = stops[number] - starts[number]
            ends = np.cumsum(sizes)
            entries = np.arange(ends[-1]) + np.repeat(starts[number] - (ends - sizes), sizes)
            found = shard.pointers(entries)
            documents = shard.document_of(found) + self._documents[number]
            places = found // shard.tokens.itemsize + self._places[number]
            parts.append((np.repeat(np.arange(first, first + len(sizes)), sizes), documents, places))
        numbers, documents, places = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        if len(self.deleted):
            kept = ~np.isin(documents, self.deleted)
            return numbers[kept], documents[kept], places[kept]
        return numbers, documents, places

    def postings(self, starts: np.ndarray, stops: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The documents that hold each n-gram, each once.

        Yields:
            Numbers of n-grams and document ordinals, int64 each, sorted by both; one n-gram's are never divided.
        """
        holds: np.ndarray | None = None  # of an n-gram that takes several slices: a flag a document
        number = -1
        for numbers, documents, _, whole in self.occurrences(starts, stops):
            if holds is not None and (whole or (len(numbers) and numbers[0] != number)):
                yield _flagged(number, holds)
                holds = None
            if whole:
                keys = np.sort(numbers * self.documents + documents)
                keys = keys[np.flatnonzero(np.diff(keys, prepend=-1))]  # np.unique hashes, and takes five times as long
                yield keys // self.documents, keys % self.documents
            elif len(numbers):
                number = int(numbers[0])
                holds = np.zeros(self.documents, dtype=bool) if holds is None else holds
                holds[documents] = True
        if holds is not None:
            yield _flagged(number, holds)

    def extents(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The documents in which places lie.

        Returns:
            Ordinals, the places of their first tokens and those behind their last ones; int64 [m] each.
        """
        ordinals, begins, ends = (np.empty(len(places), dtype=np.int64) for _ in range(3))
        shards = np.searchsorted(self._places, places, side="right") - 1
        for number in np.unique(shards).tolist():
            shard, rows = self.shards[number], np.flatnonzero(shards == number)
            size = shard.tokens.itemsize
            documents = shard.document_of((places[rows] - self._places[number]) * size)
            following = np.minimum(documents + 1, shard.documents - 1)
            begin = shard.offsets[documents] // size
            end = np.where(documents + 1 < shard.documents, shard.offsets[following] // size, shard.entries)
            ordinals[rows] = documents + self._documents[number]
            begins[rows], ends[rows] = begin + 1 + self._places[number], end + self._places[number]
        return ordinals, begins, ends


def _flagged(number: int, holds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    documents = np.flatnonzero(holds)
    return np.full(len(documents), number, dtype=np.int64), documents
