"""One shard of an index, as its queries read it: mapped files, or a few documents in memory (layout.py has the format).

Places in the tokens are byte offsets, as in the files: a pointer of the suffix array, the offset of a document.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from longloom.storage.json_text import parse_json
from longloom.tasks.ngrams.layout import (
    METADATA,
    METADATA_OFFSETS,
    OFFSETS,
    TABLE,
    TOKEN_TYPES,
    TOKENS,
    Layout,
    pointer_width,
    separator,
    shard_file,
)
from longloom.tasks.ngrams.suffix_array import suffix_array

#: Beginnings of suffixes that are held in memory, and the bytes of each.
BEGINNINGS = 2**12
KEPT = 16


class Words:
    """Bytes as 8-byte integers from any offset.

    Args:
        content: uint8 [n].
        order: "<i8" or ">i8".
    """

    def __init__(self, content: np.ndarray, order: str) -> None:
        self._inside = max(0, len(content) - 7)  # from here on eight bytes would reach beyond the end
        self._words = np.ndarray((self._inside,), dtype=order, buffer=content, strides=(1,))
        tail = np.concatenate([content[self._inside :], np.zeros(8, dtype=np.uint8)])
        self._tail = np.ndarray((len(tail) - 7,), dtype=order, buffer=tail, strides=(1,))

    def at(self, offsets: np.ndarray) -> np.ndarray:
        """The words from each offset, int64 [m]; zeros stand beyond the end of the content."""
        if len(offsets) and int(offsets.max()) >= self._inside:
            beyond = offsets >= self._inside
            found = np.empty(len(offsets), dtype=np.int64)
            found[~beyond] = self._words[offsets[~beyond]]
            found[beyond] = self._tail[offsets[beyond] - self._inside]
            return found
        words: np.ndarray = self._words[offsets].astype(np.int64, copy=False)
        return words


@dataclass(frozen=True)
class OpenShard:
    """Tokens, their suffix array and their documents.

    Attributes:
        tokens: [n], little-endian, one separator before each document.
        table: the suffix array, uint8 [n * width].
        width: bytes of a pointer.
        offsets: int64 [documents], the byte offsets of the separators.
    """

    tokens: np.ndarray
    table: np.ndarray
    width: int
    offsets: np.ndarray

    @property
    def entries(self) -> int:
        """Suffixes: tokens and separators."""
        return len(self.tokens)

    @property
    def documents(self) -> int:
        """Documents of this shard."""
        return len(self.offsets)

    def find(self, query: bytes) -> tuple[int, int]:
        """The entries whose suffixes begin with a query: the first one, and the one behind the last.

        Plain bisection. It is faster than asking the engine, which starts a thread a shard for every query. Those of
        single tokens, which are the longest to look for and the most asked for, are kept once found.
        """
        if len(query) != self.tokens.itemsize:
            return self._bisect(query)
        found = self._singles.get(query)
        if found is None:
            found = self._singles[query] = self._bisect(query)
        return found

    def _bisect(self, query: bytes) -> tuple[int, int]:
        content, table, width, size = self._content, self._table_bytes, self.width, len(query)

        def beginning(entry: int) -> bytes:
            place = int.from_bytes(table[entry * width : (entry + 1) * width], "little")
            return content[place : place + size].tobytes()  # shorter at the end of the file, and so before the query

        known, stride = query[:KEPT], self._stride
        before = bisect_left(self._beginnings, known)  # so many of them stand before the query
        beyond = bisect_right(self._beginnings, known + b"\xff" * KEPT)  # and so many before what is behind it
        high = min(beyond * stride, self.entries)
        start = bisect_left(range(high), query, lo=max(0, (before - 1) * stride + 1), key=beginning)
        low = max(start, (beyond - 1) * stride if size <= KEPT else 0)
        if low == start:  # most n-grams are rare, and the end is near
            step = 1
            while low + step <= high and beginning(low + step - 1) == query:
                step *= 2
            low, high = low + step // 2, min(low + step - 1, high)
        return start, bisect_right(range(high), query, lo=low, key=beginning)

    @cached_property
    def _singles(self) -> dict[bytes, tuple[int, int]]:
        return {}

    @cached_property
    def _stride(self) -> int:
        return -(-self.entries // BEGINNINGS)

    @cached_property
    def _beginnings(self) -> list[bytes]:
        """The first bytes of some suffixes, in their order: they spare a query the first half of its steps."""
        places = self.pointers(np.arange(0, self.entries, self._stride))
        return [self._content[place : place + KEPT].tobytes() for place in places.tolist()]

    @cached_property
    def _content(self) -> memoryview:
        return self.tokens.view(np.uint8).data

    @cached_property
    def _table_bytes(self) -> memoryview:
        return self.table.data

    def pointers(self, entries: np.ndarray) -> np.ndarray:
        """Where suffixes start.

        Args:
            entries: int64 [m], places in the suffix array.

        Returns:
            int64 [m]: byte offsets.
        """
        return self._pointers.at(entries * self.width) & np.int64(2 ** min(8 * self.width, 63) - 1)

    def words(self, places: np.ndarray) -> np.ndarray:
        """Eight bytes of the tokens from each byte offset, which compare like them; zeros beyond the end.

        Args:
            places: int64 [m], at most the size of the tokens.

        Returns:
            uint64 [m].
        """
        return self._words.at(places).view(np.uint64)

    @cached_property
    def _pointers(self) -> Words:
        return Words(self.table, "<i8")

    @cached_property
    def _words(self) -> Words:
        return Words(self.tokens.view(np.uint8), ">i8")

    def document_of(self, places: np.ndarray) -> np.ndarray:
        """The documents in which byte offsets lie, int64 [m]."""
        return np.searchsorted(self.offsets, places, side="right") - 1

    def document_tokens(self, document: int) -> np.ndarray:
        """The tokens of a document, a copy."""
        ends = [*self.offsets[document : document + 2].tolist(), self.tokens.nbytes]
        size = self.tokens.itemsize
        return np.array(self.tokens[ends[0] // size + 1 : ends[1] // size])


def open_shard(folder: Path, layout: Layout, number: int) -> OpenShard:
    """Maps the files of one shard; they have been checked (layout.py)."""
    tokens = np.memmap(shard_file(folder, TOKENS, number), dtype=layout.dtype, mode="r")
    table = np.memmap(shard_file(folder, TABLE, number), dtype=np.uint8, mode="r")
    offsets = np.memmap(shard_file(folder, OFFSETS, number), dtype="<i8", mode="r")
    # Plain arrays over the same maps: indexing an np.memmap costs microseconds a time.
    return OpenShard(
        tokens.view(np.ndarray), table.view(np.ndarray), pointer_width(tokens.nbytes), offsets.view(np.ndarray)
    )


def shard_in_memory(documents: Sequence[np.ndarray], token_dtype: str) -> OpenShard:
    """A shard of some documents of an index: those that are deleted, or a sample.

    Args:
        documents: the tokens of each; at least one document.
        token_dtype: u8, u16 or u32.
    """
    dtype = TOKEN_TYPES[token_dtype]
    mark = np.array([separator(token_dtype)], dtype=dtype)
    tokens = np.concatenate([part for document in documents for part in (mark, document)]).astype(dtype, copy=False)
    sizes = np.array([len(document) + 1 for document in documents], dtype=np.int64)
    offsets = (np.cumsum(sizes) - sizes) * tokens.itemsize
    pointers = suffix_array(tokens).astype("<i8") * tokens.itemsize
    return OpenShard(tokens, pointers.view(np.uint8), 8, offsets)


def read_metadata(folder: Path, shard: int, document: int) -> tuple[str, str]:
    """Id and source of a document of a shard."""
    starts = np.memmap(shard_file(folder, METADATA_OFFSETS, shard), dtype="<u8", mode="r")
    path = shard_file(folder, METADATA, shard)
    with path.open("rb") as file:
        file.seek(int(starts[document]))
        line = file.readline()
    found = metadata_of(line, path)
    return found["id"], found["source"]


def metadata_of(line: bytes, path: Path) -> dict[str, str]:
    """Id and source out of a line of metadata (ValueError: it holds something else; names the file)."""
    try:
        found = parse_json(line.decode("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("id", "source")):
        raise ValueError(f"{path}: found {line[:60]!r}, expected the id and the source of a document")
    return found
