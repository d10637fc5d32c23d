"""Tokens of two or four bytes as a text of fewer bytes, whose suffixes have the same order: what libdivsufsort sorts.

The code is alphabetic: no code begins another, and of two tokens the one whose bytes on disk are less has the lesser
code. So suffixes that begin with a token compare as before, a shorter one before those that it begins. A sort takes
time and memory by the byte; here frequent tokens have one byte, most others two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Result = TypeVar("Result")

#: Tokens or bytes of a piece of work: it stays in a core's cache, and NumPy leaves the other threads alone meanwhile.
PIECE = 2**16

#: Pieces that may wait for each thread, with their results.
AHEAD = 8

#: How often a range of tokens is split into frequent ones and the ranges between them. With the four bytes that number
#: 2^32 tokens a code has at most six.
SPLITS = 2

#: More distinct tokens than both this and an eighth of the text are left as they are: the tables would be too large.
DISTINCT = 2**16


@dataclass(frozen=True)
class Coded:
    """A sequence of tokens in code.

    Attributes:
        content: uint8 [m].
        marks: uint32 [m / 32], a bit for each byte of the content, from the lowest on: whether a token begins there.
        before: int64 [m / 32], the tokens that begin before these 32 bytes.
    """

    content: np.ndarray
    marks: np.ndarray
    before: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray, *, threads: int) -> Coded:
        """Encodes tokens.

        Args:
            tokens: [n], little-endian unsigned integers of two or four bytes, contiguous.
            threads: threads to work with.
        """
        numbered = _number(tokens, threads)
        if numbered is None:
            return cls._marked(tokens.view(np.uint8), np.tile(np.arange(tokens.itemsize) == 0, len(tokens)))
        number, counts = numbered
        words, lengths = code(counts)
        lanes = words.view(np.uint8).reshape(-1, 8).T[: int(lengths.max())].copy()

        def encode(piece: slice) -> tuple[np.ndarray, np.ndarray]:
            numbers = number(tokens[piece])
            sizes = lengths.take(numbers)
            ends = np.cumsum(sizes)
            begins, length = ends - sizes, int(ends[-1])
            part = np.empty(length + len(lanes), dtype=np.uint8)
            for lane in reversed(range(len(lanes))):
                # Where a code has no such byte, a later token's byte of a lower lane is written over this one.
                part[lane:][begins] = lanes[lane].take(numbers)
            marked = np.zeros(length, dtype=bool)
            marked[begins] = True
            return part[:length], marked

        content = np.empty(int(counts @ lengths), dtype=np.uint8)
        marked, filled = np.empty(len(content), dtype=bool), 0
        for part, part_marked in in_order(encode, len(tokens), threads):
            content[filled : filled + len(part)] = part
            marked[filled : filled + len(part)] = part_marked
            filled += len(part)
        return cls._marked(content, marked)

    @classmethod
    def _marked(cls, content: np.ndarray, marked: np.ndarray) -> Coded:
        marks = np.zeros(-(-len(content) // 32), dtype="<u4")
        packed = np.packbits(marked, bitorder="little")
        marks.view(np.uint8)[: len(packed)] = packed
        ones = np.bitwise_count(marks)
        return cls(content, marks, np.cumsum(ones, dtype=np.int64) - ones)

    def tokens_at(self, places: np.ndarray) -> np.ndarray:
        """The tokens that begin at the given bytes of the content; bytes within a token are passed over.

        Args:
            places: int32 or int64 [k].

        Returns:
            int64 [at most k], places in the sequence of tokens.
        """
        group, bit, one = (places >> 5).astype(np.intp), (places & 31).astype(np.uint32), np.uint32(1)
        marks = self.marks.take(group)
        found: np.ndarray = self.before.take(group)
        found += np.bitwise_count(marks & ((one << bit) - one))
        begins: np.ndarray = found[((marks >> bit) & one).astype(bool)]
        return begins


def in_order(work: Callable[[slice], Result], length: int, threads: int) -> Iterator[Result]:
    """Does a piece of work for each slice, on several threads; yields the results in the order of the slices."""
    pieces = [slice(start, min(start + PIECE, length)) for start in range(0, length, PIECE)]
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(pieces), AHEAD * threads):
            yield from pool.map(work, pieces[start : start + AHEAD * threads])


def code(counts: np.ndarray, splits: int = SPLITS) -> tuple[np.ndarray, np.ndarray]:
    """An alphabetic code of bytes in which what is frequent is short; 1% longer than the best of as many splits.

    Args:
        counts: int64 [k], how often each token occurs, in the order of the tokens.
        splits: how often a range may be split; 0 numbers the tokens in as many bytes as that takes.

    Returns:
        uint64 [k], the codes, the first byte lowest; and int64 [k], their lengths.
    """
    size = len(counts)
    width = max(1, -(-(size - 1).bit_length() // 8))
    words = (np.arange(size, dtype="<u8") << np.uint64(64 - 8 * width)).byteswap()
    lengths = np.full(size, width, dtype=np.int64)
    if width == 1 or not splits:
        return words, lengths
    numbered = words.copy(), lengths.copy()
    lead = start = 0
    lengths[:] = 1
    for single in (*_singles(counts).tolist(), size):
        if start < single:
            between = slice(start, single)
            words[between] = lead
            if single - start > 1:
                rest, rest_lengths = code(counts[between], splits - 1)
                if single - start <= lead:
                    # Next below their lead. libdivsufsort compares only suffixes at which the text rises before it
                    # falls (type B*) and derives the others; so there are fewer of them than with bytes from 0 on.
                    rest += np.uint64(lead - (single - start))
                words[between] |= rest << np.uint64(8)
                lengths[between] += rest_lengths
            lead += 1
        if single < size:
            words[single] = lead
            lead += 1
        start = single + 1
    return (words, lengths) if counts @ lengths < counts.sum() * width else numbered


def _singles(counts: np.ndarray) -> np.ndarray:
    """The most frequent of more than 256 tokens, as many as leave a lead byte for each range between them."""
    frequent = np.argsort(-counts, kind="stable")[:256]
    low, high = 127, 256
    while low < high:
        middle = (low + high + 1) // 2
        gaps = np.diff(np.sort(frequent[:middle]), prepend=-1, append=len(counts))
        low, high = (middle, high) if middle + np.count_nonzero(gaps > 1) <= 256 else (low, middle - 1)
    return np.sort(frequent[:low])


def _number(tokens: np.ndarray, threads: int) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray] | None:
    """Numbers the tokens that occur, in the order of their bytes, and counts each; None where they are too many."""
    # Little-endian bytes compare like the integers with their bytes reversed.
    if tokens.itemsize == 2:
        seen = np.zeros(2**16, dtype=np.int64)
        for part in in_order(lambda piece: np.bincount(tokens[piece], minlength=2**16), len(tokens), threads):
            seen += part
        by_bytes = np.arange(2**16, dtype=np.uint16).byteswap()
        by_bytes = by_bytes[seen[by_bytes] > 0]
        numbers = np.zeros(2**16, dtype=np.intp)
        numbers[by_bytes] = np.arange(len(by_bytes))
        return numbers.take, seen[by_bytes]
    swapped = tokens.byteswap()
    swapped.sort()
    heads = np.append(True, swapped[1:] != swapped[:-1])
    if np.count_nonzero(heads) > max(DISTINCT, len(tokens) // 8):
        return None
    first = np.flatnonzero(heads)
    distinct = swapped[first]
    return lambda part: np.searchsorted(distinct, part.byteswap()), np.diff(first, append=len(tokens))
