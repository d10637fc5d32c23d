"""The suffix array of a sequence of tokens, sorted as tokens: half the work of sorting their bytes, on several cores.

One sort of packed keys orders the suffixes by their first few tokens. Prefix doubling (Manber and Myers 1993) takes it
from there: groups of suffixes that agree in their first h tokens are sorted by the ranks of what follows these, which
makes it 2h; a suffix that is alone in its group is done (Larsson and Sadakane 2007). Every sort is one of 64-bit
integers that hold key and place, which NumPy does with vector instructions, and which needs no memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Suffixes of a piece of work: its 64-bit keys stay in a core's cache. NumPy leaves the other threads alone meanwhile.
PIECE = 2**16

#: Where a larger share of the suffixes is still not alone after REPEATED tokens, the text repeats itself: doubling
#: would go over all of it once for each power of two up to the longest repeat.
REPEATED, SHARE = 32, 0.5

#: Does a piece of work for each slice, on all threads.
Each = Callable[[Callable[[slice], Any], Iterable[slice]], list[Any]]


def sort_tokens(tokens: np.ndarray, *, threads: int) -> np.ndarray | None:
    """Sorts the suffixes of a sequence by their bytes on disk, a shorter one before those that it begins.

    Args:
        tokens: [n], little-endian unsigned integers of two or four bytes.
        threads: threads to sort with.

    Returns:
        int32 [n] (int64 from 2^31 tokens on): where the suffixes start, in tokens. None for a text that repeats
        itself so much that another way is faster.
    """
    if threads == 1 or len(tokens) <= PIECE:
        return _sort(tokens, lambda work, pieces: [work(piece) for piece in pieces])
    with ThreadPoolExecutor(threads) as pool:
        return _sort(tokens, lambda work, pieces: list(pool.map(work, pieces)))


def _sort(tokens: np.ndarray, each: Each) -> np.ndarray | None:
    depth, groups = _first_groups(tokens, each)
    groups.settle(groups.pieces(), each)
    while len(groups.places):
        if depth >= REPEATED and len(groups.places) > SHARE * len(tokens):
            return None
        pieces = groups.pieces()
        each(lambda piece, depth=depth: groups.refine(piece, depth), pieces)  # type: ignore[misc]
        groups.settle(pieces, each)
        depth *= 2
    return groups.order


def _slices(length: int) -> list[slice]:
    return [slice(start, min(start + PIECE, length)) for start in range(0, length, PIECE)]


def _ranks(tokens: np.ndarray, each: Each, *, padding: int) -> tuple[np.ndarray, int]:
    """Numbers the tokens that occur, from one on, in the order of their bytes.

    Args:
        tokens: [n], little-endian.
        each: see `Each`.
        padding: zeros to append.

    Returns:
        uint16 or uint32 [n + padding], and the largest number.
    """
    # Little-endian bytes compare like the integers with their bytes reversed.
    pieces = _slices(len(tokens))
    if tokens.itemsize == 2:
        seen = np.zeros(2**16, dtype=bool)

        def note(piece: slice) -> None:
            seen[tokens[piece].byteswap()] = True

        each(note, pieces)
        table = np.cumsum(seen, dtype=np.uint32)
        largest = int(table[-1])
    else:
        distinct = np.unique(np.concatenate(each(lambda piece: np.unique(tokens[piece].byteswap()), pieces)))
        largest = len(distinct)
    ranks = np.zeros(len(tokens) + padding, dtype=np.uint16 if largest < 2**16 else np.uint32)

    def number(piece: slice) -> None:
        swapped = tokens[piece].byteswap()
        ranks[piece] = table[swapped] if tokens.itemsize == 2 else np.searchsorted(distinct, swapped) + 1

    each(number, pieces)
    return ranks, largest


def _pack(tokens: np.ndarray, place_bits: int, each: Each) -> tuple[int, np.ndarray]:
    """For each place, its first few tokens and the place in 64 bits; and how many tokens these are.

    A zero stands for the end, which is before all tokens.
    """
    ranks, largest = _ranks(tokens, each, padding=64)
    bits = largest.bit_length()
    depth = (64 - place_bits) // bits
    packed = np.empty(len(tokens), dtype=np.uint64)

    def pack(piece: slice) -> None:
        key = ranks[piece].astype(np.uint64)
        for ahead in range(1, depth):
            key <<= np.uint64(bits)
            key |= ranks[piece.start + ahead : piece.stop + ahead].astype(np.uint64)
        key <<= np.uint64(place_bits)
        key |= np.arange(piece.start, piece.stop, dtype=np.uint64)
        packed[piece] = key

    each(pack, _slices(len(tokens)))
    return depth, packed


def _first_groups(tokens: np.ndarray, each: Each) -> tuple[int, _Groups]:
    """Sorts by as many tokens as fit beside a place into 64 bits, and tells how many these are."""
    length = len(tokens)
    place_bits = length.bit_length()
    depth, packed = _pack(tokens, place_bits, each)
    packed.sort()
    index = np.int32 if length < 2**31 else np.int64
    order = np.empty(length, dtype=index)
    heads = np.ones(length, dtype=bool)

    def unpack(piece: slice) -> None:
        order[piece] = packed[piece] & np.uint64(2**place_bits - 1)
        keys = packed[max(piece.start - 1, 0) : piece.stop] >> np.uint64(place_bits)
        heads[max(piece.start, 1) : piece.stop] = keys[1:] != keys[:-1]

    each(unpack, _slices(length))
    return depth, _Groups(order, np.empty(length + 1, dtype=index), np.arange(length, dtype=index), heads)


@dataclass
class _Groups:
    """The state of the sort. Suffixes that agree in their first tokens are a group; groups are in order.

    Attributes:
        order: [n], the suffixes; final at the places of those that are alone.
        ranks: [n + 1], of the suffix at each token: the place of the first of its group, counted from one. 0, less
            than all, at the end.
        places: [m], the places that are not final, ascending.
        heads: bool [m], whether a group begins there.
    """

    order: np.ndarray
    ranks: np.ndarray
    places: np.ndarray
    heads: np.ndarray

    def __post_init__(self) -> None:
        self.ranks[-1] = 0

    def pieces(self) -> list[slice]:
        """Cuts the places between groups, into pieces of at most PIECE; a larger group is a piece of its own."""
        length, start, pieces = len(self.heads), 0, []
        while start < length:
            stop = length
            for reach in range(start, length - PIECE, PIECE):
                heads = np.flatnonzero(self.heads[reach + 1 : reach + PIECE + 1])
                if len(heads):
                    stop = reach + 1 + int(heads[-1 if reach == start else 0])
                    break
            pieces.append(slice(start, stop))
            start = stop
        return pieces

    def refine(self, piece: slice, depth: int) -> None:
        """Sorts whole groups that agree in `depth` tokens by what follows; marks where new groups begin.

        The ranks stay as they are, since other pieces read them. The key holds the group, the rank and the place within
        the piece: 15 + 32 + 16 bits, or 0 + 32 + 32 for a group that is a piece of its own.
        """
        places = self.places[piece]
        size_bits = np.uint64((len(places) - 1).bit_length())
        suffixes = self.order[places]
        key = np.cumsum(self.heads[piece], dtype=np.uint64)
        key -= np.uint64(1)
        key <<= np.uint64(len(self.order).bit_length())
        key |= self.ranks[suffixes + depth].astype(np.uint64)
        key <<= size_bits
        key |= np.arange(len(places), dtype=np.uint64)
        key.sort()
        self.order[places] = suffixes[key & ((np.uint64(1) << size_bits) - np.uint64(1))]
        key >>= size_bits
        self.heads[piece][1:] = key[1:] != key[:-1]

    def settle(self, pieces: list[slice], each: Each) -> None:
        """Writes the ranks of the groups as they are now, and drops the suffixes that are alone.

        Args:
            pieces: whole groups, as `pieces` cut them; some of these may have been cut further since.
            each: see `Each`.
        """

        def work(piece: slice) -> tuple[np.ndarray, np.ndarray]:
            places, heads = self.places[piece], self.heads[piece]
            self.ranks[self.order[places]] = np.maximum.accumulate(np.where(heads, places + 1, 0))
            keep = ~(heads & np.append(heads[1:], True))
            return places[keep], heads[keep]

        kept = each(work, pieces)
        self.places = np.concatenate([places for places, _ in kept])
        self.heads = np.concatenate([heads for _, heads in kept])
