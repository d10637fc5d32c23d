"""Many n-grams at once: checked, each distinct one once, as 8-byte words that compare like their bytes on disk."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

#: Bytes of a word.
WORD = 8


@dataclass(frozen=True)
class Group:
    """The distinct n-grams of as many words.

    Attributes:
        members: int64 [m], their numbers among all distinct ones.
        words: uint64 [m, words], in the order of a suffix array; zeros after the last token.
        sizes: int64 [m], in bytes.
    """

    members: np.ndarray
    words: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Grams:
    """A batch of n-grams.

    Attributes:
        distinct: number of distinct n-grams.
        numbers: int64 [n], which of them each n-gram is.
        lengths: int64 [distinct], in tokens.
        groups: the distinct ones by their words.
    """

    distinct: int
    numbers: np.ndarray
    lengths: np.ndarray
    groups: list[Group]


def pack(queries: Sequence[Sequence[int]] | np.ndarray, *, dtype: np.dtype[Any], limit: int) -> Grams:
    """Packs a batch of n-grams.

    Args:
        queries: n of them; an integer array [n, length] is read without a detour.
        dtype: of the tokens on disk.
        limit: tokens are below it.

    Raises:
        ValueError: an empty n-gram, or a token out of range.
        TypeError: something that is no integer.
    """
    tokens, lengths = flatten(queries, limit=limit)
    return pack_slices(tokens, np.cumsum(lengths) - lengths, lengths, dtype=dtype)


def pack_slices(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, *, dtype: np.dtype[Any]) -> Grams:
    """Packs slices of a sequence, which may overlap.

    Args:
        tokens: int64, checked.
        starts: int64 [n].
        lengths: int64 [n], at least 1.
        dtype: of the tokens on disk.
    """
    per_word = WORD // dtype.itemsize
    word_counts = -(-lengths // per_word)
    numbers = np.empty(len(lengths), dtype=np.int64)
    groups: list[Group] = []
    all_lengths: list[np.ndarray] = []
    distinct = 0
    for count in np.unique(word_counts).tolist():
        rows = np.flatnonzero(word_counts == count)
        words = _words(tokens, starts[rows], lengths[rows], count * per_word, dtype)
        order = np.lexsort((lengths[rows], *words.T[::-1]))
        words, sorted_lengths = words[order], lengths[rows][order]
        new = np.ones(len(rows), dtype=bool)
        new[1:] = (words[1:] != words[:-1]).any(axis=1) | (np.diff(sorted_lengths) != 0)
        numbers[rows[order]] = distinct + np.cumsum(new) - 1
        members = distinct + np.arange(np.count_nonzero(new))
        groups.append(Group(members, words[new], sorted_lengths[new] * dtype.itemsize))
        all_lengths.append(sorted_lengths[new])
        distinct += len(members)
    return Grams(distinct, numbers, np.concatenate([np.zeros(0, dtype=np.int64), *all_lengths]), groups)


def flatten(queries: Sequence[Sequence[int]] | np.ndarray, *, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """All tokens in a row, and the lengths, int64 each; arguments and errors as of `pack`."""
    tokens, lengths = _in_a_row(queries)
    if len(lengths) and not lengths.min():
        raise ValueError(f"query {int(lengths.argmin())} holds no tokens, expected at least one")
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < limit:
        wrong = int(np.flatnonzero((tokens < 0) | (tokens >= limit))[0])
        query = int(np.searchsorted(np.cumsum(lengths), wrong, side="right"))
        raise ValueError(f"query {query}: token {tokens[wrong]} is not in the vocabulary, expected 0 to {limit - 1}")
    return tokens, lengths


def _in_a_row(queries: Sequence[Sequence[int]] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(queries, np.ndarray) and queries.ndim == 2:
        if queries.dtype.kind not in "iu":
            raise TypeError(f"the queries hold {queries.dtype}, expected integers")
        return queries.reshape(-1).astype(np.int64), np.full(len(queries), queries.shape[1], dtype=np.int64)
    lengths = np.fromiter(map(len, queries), dtype=np.int64, count=len(queries))
    tokens = array("q", chain.from_iterable(queries))  # refuses what is no integer, where NumPy would round it
    return np.frombuffer(tokens, dtype=np.int64), lengths


def _words(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int, dtype: np.dtype[Any]) -> np.ndarray:
    """The n-grams as rows of words, uint64 [m, words]; each is read as a big-endian number."""
    padded = np.zeros((len(starts), width), dtype=dtype)
    ends = np.cumsum(lengths)
    padded[np.arange(width) < lengths[:, None]] = tokens[
        np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    ]
    return padded.view(">u8").astype(np.uint64)
