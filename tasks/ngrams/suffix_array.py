"""The suffix array of a shard: sorted by libdivsufsort as bytes, or by token_sort.py as tokens; and its file.

A suffix array is unique, so every right builder gives the same bytes. infini-gram's own compares about 100,000 bytes of
two suffixes, so that its order is another where passages longer than that are repeated; this one compares all.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from pydivsufsort import divsufsort

from longloom.tasks.ngrams.layout import TOKEN_TYPES, pointer_width
from longloom.tasks.ngrams.token_sort import sort_tokens

#: Peak memory of the sort in bytes a token, the tokens included. Measured above the bare interpreter's, so with some MB
#: of libraries: 6.5 for 12 million u8, 23 to 26 for 6 million u16, 25 to 31 for u32. What is constant is in PROCESS.
SORT_BYTES = {"u8": 6, "u16": 26, "u32": 32}

#: Entries that are written or filtered at once.
CHUNK = 2**20


def sort_memory(entries: int, token_dtype: str) -> int:
    """Bytes of memory that sorting so many tokens takes; above 2 GiB of them the places have eight bytes, not four."""
    wide = entries * TOKEN_TYPES[token_dtype].itemsize >= 2**31
    return entries * SORT_BYTES[token_dtype] * (2 if wide else 1)


def suffix_array(tokens: np.ndarray, *, threads: int = 1) -> np.ndarray:
    """Sorts the suffixes of a sequence by their bytes on disk, a shorter one before those that it begins.

    Args:
        tokens: [n], little-endian unsigned integers.
        threads: threads to sort with, where the tokens have more than one byte.

    Returns:
        int32 or int64 [n]: where the suffixes start, in tokens.
    """
    if not len(tokens):
        return np.zeros(0, dtype=np.int32)
    order = None if tokens.itemsize == 1 else sort_tokens(tokens, threads=threads)
    return _sort_bytes(tokens) if order is None else order


def _sort_bytes(tokens: np.ndarray) -> np.ndarray:
    """By libdivsufsort, whose time does not depend on how long repeats are."""
    places: np.ndarray = divsufsort(np.ascontiguousarray(tokens).view(np.uint8))
    if tokens.itemsize == 1:
        return places
    order, filled = np.empty(len(tokens), dtype=places.dtype), 0
    for start in range(0, len(places), CHUNK):
        part = places[start : start + CHUNK]
        part = part[part % tokens.itemsize == 0] // tokens.itemsize
        order[filled : filled + len(part)] = part
        filled += len(part)
    return order


def write_table(order: np.ndarray, tokens: np.ndarray, path: Path) -> None:
    """Writes a suffix array (in tokens) as byte offsets of the documented width; the file appears when it is whole."""
    width = pointer_width(tokens.nbytes)
    hidden = path.with_name(f".{path.name}")
    try:
        with hidden.open("wb") as file:
            for start in range(0, len(order), CHUNK):
                pointers = order[start : start + CHUNK].astype("<u8") * np.uint64(tokens.itemsize)
                file.write(pointers.view(np.uint8).reshape(-1, 8)[:, :width].tobytes())
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
