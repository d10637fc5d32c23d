"""The suffix array of a shard, by libdivsufsort: of its bytes, or of its tokens in a shorter code; and its file.

A suffix array is unique, so every right builder gives the same bytes. infini-gram's own compares about 100,000 bytes of
two suffixes, so that its order is another where passages longer than that are repeated; this one compares all, and its
time does not depend on how long repeats are.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import numpy as np
from pydivsufsort import divsufsort
from threadpoolctl import threadpool_limits

from longloom.tasks.ngrams.layout import TABLE, TOKEN_TYPES, pointer_width
from longloom.tasks.ngrams.token_code import Coded, in_order

#: Peak memory of the sort in bytes a token: the tokens, their code where it is as long as they are, and a place of four
#: bytes for each of its bytes. Measured with some MB of libraries and pieces, which are in PROCESS: 5.4 for 20 million
#: u8; for 10 million u16 of text 8, uniform ones 13.6; for as many u32 of text 10, with a million distinct ones 25.
SORT_BYTES = {"u8": 6, "u16": 13, "u32": 26}

#: Entries that are written at once.
CHUNK = 2**20


def sort_memory(entries: int, token_dtype: str) -> int:
    """Bytes of memory that sorting so many tokens takes; above 2 GiB of them the places have eight bytes, not four."""
    wide = entries * TOKEN_TYPES[token_dtype].itemsize >= 2**31
    return entries * SORT_BYTES[token_dtype] * (2 if wide else 1)


def suffix_array(tokens: np.ndarray, *, threads: int = 1) -> np.ndarray:
    """Sorts the suffixes of a sequence by their bytes on disk, a shorter one before those that it begins.

    Args:
        tokens: [n], little-endian unsigned integers.
        threads: threads to sort with; libdivsufsort has use for them in a part of its work.

    Returns:
        int32 or int64 [n]: where the suffixes start, in tokens.
    """
    tokens = np.ascontiguousarray(tokens)
    if not len(tokens):
        return np.zeros(0, dtype=np.int32)
    if tokens.itemsize == 1:
        return _sort(tokens, threads)
    coded = Coded.of(tokens, threads=threads)
    order, filled = _sort(coded.content, threads), 0
    for part in in_order(lambda piece: coded.tokens_at(order[piece]), len(order), threads):
        order[filled : filled + len(part)] = part  # over places that have been read
        filled += len(part)
    return order[:filled]


def _sort(content: np.ndarray, threads: int) -> np.ndarray:
    with threadpool_limits(threads, user_api="openmp"):
        order: np.ndarray = divsufsort(content.view(np.uint8))
    return order


def hidden_tables(folder: Path) -> list[Path]:
    """What `write_table` left of tables whose writers were killed, or has not ended yet."""
    return sorted(folder.glob(f".{TABLE}.*.*"))


def write_table(order: np.ndarray, tokens: np.ndarray, path: Path) -> None:
    """Writes a suffix array (in tokens) as byte offsets of the documented width; the file appears when it is whole."""
    width = pointer_width(tokens.nbytes)
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # a killed build's worker may be writing the same one
    try:
        with hidden.open("wb") as file:
            for start in range(0, len(order), CHUNK):
                pointers = order[start : start + CHUNK].astype("<u4" if width <= 4 else "<u8")
                pointers *= pointers.dtype.type(tokens.itemsize)
                cells = pointers.view(np.uint8).reshape(-1, pointers.itemsize)
                file.write(np.ascontiguousarray(cells[:, :width]).data)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
