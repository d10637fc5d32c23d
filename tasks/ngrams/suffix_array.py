"""The suffix array of a token file: `tokenized.0` -> `table.0`.

A suffix array is unique, so every builder gives the same bytes. infini-gram's own builder sorts what it can; a plain
sort in NumPy does the rest:

- Small files. The package splits a file into one part a job, with an overlap of 100,000 bytes; where parts are
  shorter than that it crashes or, worse, writes a table of the wrong size without an error (99,000 bytes, two jobs).
- u32 tokens. The package's `make-part` allocates 32 GiB at once for them, whatever the file's size.

With several parts, suffixes that agree for more than 100,000 bytes (a long document twice in the corpus) come out in
an order that depends on the number of parts. So the package's table is checked, and built again in one part if wrong.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from longloom.tasks.ngrams.layout import OFFSETS, TABLE, TOKEN_TYPES, TOKENS, plain_path, pointer_width

#: Below this many bytes the package is not trusted; no part of it is made smaller either.
SMALL = 2**20

#: The plain sort's peak memory, in bytes a token (measured: 42).
SORT_BYTES = 48

#: The package's sort needs this many bytes a byte of tokens (its own formula, indexing.py).
PACKAGE_BYTES = {"u8": 12, "u16": 8}

CHUNK = 2**20
SCRATCH = "build"


def build_table(folder: Path, *, token_dtype: str, threads: int, memory_gib: float) -> None:
    """Writes `table.0` beside `tokenized.0`.

    Args:
        folder: holds `tokenized.0`; its sub-folder `build` is used meanwhile.
        token_dtype: u8, u16 or u32.
        threads: jobs of the package's builder.
        memory_gib: memory that sorting may take.

    Raises:
        ValueError: the memory is not enough.
        RuntimeError: the package's builder failed.
    """
    tokens = np.memmap(folder / TOKENS, dtype=TOKEN_TYPES[token_dtype], mode="r")
    if tokens.nbytes < SMALL or token_dtype == "u32":
        _require(len(tokens) * SORT_BYTES, memory_gib, f"{len(tokens)} tokens")
        write_table(suffix_array(tokens), tokens, folder / TABLE)
        return
    scratch = folder / SCRATCH
    scratch.mkdir()
    jobs = max(1, min(threads, tokens.nbytes // SMALL))
    run_package(folder, token_dtype=token_dtype, jobs=jobs, memory_gib=max(1, int(memory_gib)))
    if not is_suffix_array(tokens, folder / TABLE, scratch):
        (folder / TABLE).unlink()
        need = tokens.nbytes * PACKAGE_BYTES[token_dtype]
        _require(need, memory_gib, f"{len(tokens)} tokens in one part: a passage of over 100,000 bytes is repeated")
        run_package(folder, token_dtype=token_dtype, jobs=1, memory_gib=need // 2**30 + 1)
        if not is_suffix_array(tokens, folder / TABLE, scratch):
            raise RuntimeError(f"infini_gram.indexing wrote a table for {len(tokens)} tokens that is not in order")
    shutil.rmtree(scratch)


def _require(need: int, memory_gib: float, what: str) -> None:
    if need > memory_gib * 2**30:
        raise ValueError(f"memory_gib is {memory_gib}, expected at least {need / 2**30:.2f} to sort {what}")


def suffix_array(tokens: np.ndarray) -> np.ndarray:
    """Sorts the suffixes of a sequence by their bytes on disk, a shorter one before those that it begins.

    Prefix doubling (Manber and Myers 1993): ranks by the first k tokens give those by the first 2k.

    Args:
        tokens: [n], little-endian unsigned integers.

    Returns:
        int64 [n]: where the suffixes start, in tokens.
    """
    length = len(tokens)
    # Little-endian bytes compare like the integers with their bytes reversed.
    rank = np.unique(tokens.byteswap(), return_inverse=True)[1].astype(np.int64)
    width = 1
    while True:
        key = (rank + 1) * (length + 1)  # [n]; the rank of the next k tokens goes below, 0 where there are none
        if width < length:
            key[: length - width] += rank[width:] + 1
        order = np.argsort(key)
        key = key[order]
        rank[order] = np.concatenate(([0], np.cumsum(key[1:] != key[:-1])))
        if rank[order[-1]] == length - 1:
            return order
        width *= 2


def write_table(order: np.ndarray, tokens: np.ndarray, path: Path) -> None:
    """Writes a suffix array (in tokens) as byte offsets of the documented width."""
    width = pointer_width(tokens.nbytes)
    with path.open("wb") as file:
        for start in range(0, len(order), CHUNK):
            pointers = (order[start : start + CHUNK] * tokens.itemsize).astype("<u8")
            file.write(pointers.view(np.uint8).reshape(-1, 8)[:, :width].tobytes())


def read_pointers(table: np.ndarray, width: int, start: int, stop: int) -> np.ndarray:
    """Entries of a table as byte offsets.

    Args:
        table: the file, uint8 [n * width].
        width: bytes of a pointer.
        start: the first entry.
        stop: behind the last one.

    Returns:
        int64 [stop - start].
    """
    padded = np.zeros((stop - start, 8), dtype=np.uint8)
    padded[:, :width] = table[start * width : stop * width].reshape(-1, width)
    return padded.view("<i8").reshape(-1)


def is_suffix_array(tokens: np.ndarray, path: Path, scratch: Path) -> bool:
    """Whether a table is the suffix array of the tokens. O(n), in bounded memory beside mapped files.

    It is when it is a permutation and neighbours are in order: first by their first token, then by the ranks of what
    follows it (Burkhardt and Karkkainen 2003, section 6).

    Args:
        tokens: [n], as on disk.
        path: the table.
        scratch: a folder for the ranks, 8 bytes a token.
    """
    length, width = len(tokens), pointer_width(tokens.nbytes)
    if path.stat().st_size != length * width:
        return False
    table = np.memmap(path, dtype=np.uint8, mode="r")
    rank = np.memmap(scratch / "ranks", dtype="<i8", mode="w+", shape=(length + 1,))  # of the suffix at each token
    rank[:] = -1  # the empty suffix, at the end, is before all others
    starts = range(0, length, CHUNK)
    for start in starts:
        pointers = read_pointers(table, width, start, min(start + CHUNK, length))
        if (pointers % tokens.itemsize).any() or pointers.max() >= tokens.nbytes:
            return False
        rank[pointers // tokens.itemsize] = np.arange(start, start + len(pointers))
    if (rank[:length] < 0).any():
        return False
    for start in starts:
        position = read_pointers(table, width, start, min(start + CHUNK + 1, length)) // tokens.itemsize
        first, rest = tokens[position].byteswap(), rank[position + 1]
        ordered = (first[:-1] < first[1:]) | ((first[:-1] == first[1:]) & (rest[:-1] < rest[1:]))
        if not ordered.all():
            return False
    return True


def run_package(folder: Path, *, token_dtype: str, jobs: int, memory_gib: int) -> None:
    """Lets infini-gram's builder write `table.0` beside `tokenized.0`, with its parts in the sub-folder `build`.

    It leaves `tokenized.0` alone only where `offset.0` lies beside it.

    Raises:
        RuntimeError: it failed.
    """
    assert (folder / OFFSETS).is_file(), folder
    files = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])  # its own default is above most systems' limit
    with plain_path(folder) as link:
        command = [sys.executable, "-m", "infini_gram.indexing", "--token_dtype", token_dtype]
        command += ["--data_dir", f"{link / SCRATCH}", "--temp_dir", f"{link / SCRATCH}", "--save_dir", f"{link}"]
        command += ["--cpus", str(jobs), "--mem", str(memory_gib), "--ulimit", str(files)]
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", cwd=folder / SCRATCH, check=False
        )
    if result.returncode or not (folder / TABLE).is_file():
        said = [line.strip() for line in result.stderr.splitlines() if line.strip() and "it/s]" not in line]
        reason = next((line for line in said if not line.startswith("note:")), "no message")
        raise RuntimeError(f"infini_gram.indexing failed (exit status {result.returncode}): {reason}")
