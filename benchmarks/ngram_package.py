"""infini-gram's own builder as the peer of ours, and a check that tells which of two tables is right."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from longloom.tasks.ngrams.layout import (
    OFFSETS,
    TABLE,
    TOKEN_TYPES,
    TOKENS,
    plain_path,
    pointer_width,
    shard_file,
)

#: The package splits a file into one part a job, with an overlap of 100,000 bytes; where parts are shorter than that it
#: crashes or writes a table of the wrong size without an error (99,000 bytes, two jobs).
LEAST = 2**20

#: Entries of a table that are checked at once.
CHUNK = 2**20


def run_package(folder: Path, *, token_dtype: str, jobs: int, memory_gib: int) -> None:
    """Lets infini-gram's builder write `table.0` beside `tokenized.0`, with its parts in a sub-folder.

    It leaves `tokenized.0` alone only where `offset.0` lies beside it. u32 tokens are out of its reach: its `make-part`
    allocates 32 GiB at once for them, whatever the file's size.

    Raises:
        ValueError: a file that is too small for so many jobs.
        RuntimeError: it failed.
    """
    assert shard_file(folder, OFFSETS, 0).is_file(), folder
    size = shard_file(folder, TOKENS, 0).stat().st_size
    if size < jobs * LEAST:
        raise ValueError(f"{folder}: {size} bytes of tokens are too few for {jobs} jobs of the package's builder")
    files = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])  # its own default is above most systems' limit
    scratch = folder / "build"
    scratch.mkdir()
    try:
        with plain_path(folder) as link:
            command = [sys.executable, "-m", "infini_gram.indexing", "--token_dtype", token_dtype]
            command += ["--data_dir", f"{link}/build", "--temp_dir", f"{link}/build", "--save_dir", f"{link}"]
            command += ["--cpus", str(jobs), "--mem", str(memory_gib), "--ulimit", str(files)]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=scratch, check=False)
    finally:
        shutil.rmtree(scratch)
    if result.returncode or not shard_file(folder, TABLE, 0).is_file():
        raise RuntimeError(f"infini_gram.indexing failed (exit status {result.returncode}): {result.stderr[-300:]}")


def is_suffix_array(tokens: np.ndarray, table: Path) -> bool:
    """Whether a table is the suffix array of the tokens; in O(n), with 8 bytes a token beside the table's own.

    It is when it is a permutation and neighbours are in order: first by their first token, then by the ranks of what
    follows it (Burkhardt and Karkkainen 2003, section 6).

    Args:
        tokens: [n], little-endian.
        table: a file of byte offsets.
    """
    length, width = len(tokens), pointer_width(tokens.nbytes)
    if table.stat().st_size != length * width:
        return False
    content = np.fromfile(table, dtype=np.uint8).reshape(length, width)
    index = np.int32 if length < 2**31 else np.int64
    places = np.empty(length, dtype=index)
    ranks = np.full(length + 1, -1, dtype=index)  # the empty suffix, at the end, is before all others
    for start in range(0, length, CHUNK):
        part = content[start : start + CHUNK]
        padded = np.zeros((len(part), 8), dtype=np.uint8)
        padded[:, :width] = part
        pointers = padded.view("<i8").reshape(-1)
        place = pointers // tokens.itemsize
        if (pointers % tokens.itemsize).any() or place.min() < 0 or place.max() >= length:
            return False
        places[start : start + len(part)] = place
        ranks[place] = np.arange(start, start + len(part), dtype=index)
    if (ranks[:length] < 0).any():
        return False
    for start in range(0, length - 1, CHUNK):
        part = places[start : start + CHUNK + 1]
        first, rest = tokens[part].byteswap(), ranks[part + 1]
        if not ((first[:-1] < first[1:]) | ((first[:-1] == first[1:]) & (rest[:-1] < rest[1:]))).all():
            return False
    return True


def write_tokens(documents: list[np.ndarray], folder: Path, token_dtype: str) -> np.ndarray:
    """Writes `tokenized.0` and `offset.0`, the builders' only inputs; returns the tokens with their separators."""
    dtype = TOKEN_TYPES[token_dtype]
    mark = np.array([np.iinfo(dtype).max], dtype=dtype)
    tokens = np.concatenate([part for document in documents for part in (mark, document)]).astype(dtype, copy=False)
    sizes = np.array([len(document) + 1 for document in documents])
    tokens.tofile(shard_file(folder, TOKENS, 0))
    ((np.cumsum(sizes) - sizes) * dtype.itemsize).astype("<u8").tofile(shard_file(folder, OFFSETS, 0))
    return tokens
