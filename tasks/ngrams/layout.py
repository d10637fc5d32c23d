"""infini-gram's files on disk, and the check that they belong together before its engine opens them.

One shard s of an index is (as written by infini_gram's indexing.py):

    tokenized.s   little-endian tokens; before each document one separator, a token whose bits are all ones
    offset.s      u64 a document: the byte offset of its separator
    table.s       the suffix array: for each suffix, in the order of its bytes, its byte offset in tokenized.s, in
                  as few bytes as the size of tokenized.s needs
    metadata.s    a line of JSON a document: {"id": ..., "source": ...}
    metaoff.s     u64 a document: the byte offset of its line

The engine trusts its files: a truncated file or one of another width gives wrong counts or ends the process.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

INDEX_FILE = "index.json"
TOKENIZER_FOLDER = "tokenizer"
TOKENS, OFFSETS, TABLE, METADATA, METADATA_OFFSETS = FILES = (
    *("tokenized.0", "offset.0", "table.0", "metadata.0", "metaoff.0"),
)

TOKEN_TYPES: dict[str, np.dtype[Any]] = {"u8": np.dtype("u1"), "u16": np.dtype("<u2"), "u32": np.dtype("<u4")}


@dataclass(frozen=True)
class Layout:
    """What index.json tells.

    Attributes:
        token_dtype: u8, u16 or u32.
        vocab_size: tokens are below it; 256 for raw bytes (of which UTF-8 never uses the separator, 255).
        documents: number of documents.
        tokens: tokens of all documents, without the separators; the suffix array has `tokens + documents` entries.
    """

    token_dtype: str
    vocab_size: int
    documents: int
    tokens: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The tokens' type on disk."""
        return TOKEN_TYPES[self.token_dtype]

    def write(self, folder: Path) -> None:
        """Writes index.json."""
        (folder / INDEX_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def separator(token_dtype: str) -> int:
    """The token that stands before each document: all bits one."""
    return int(np.iinfo(TOKEN_TYPES[token_dtype]).max)


def token_dtype_for(vocab_size: int) -> str:
    """The narrowest of u16 and u32 that holds a tokenizer's tokens beside the separator."""
    for name in ("u16", "u32"):
        if vocab_size <= separator(name):
            return name
    raise ValueError(f"the tokenizer has {vocab_size} tokens, expected at most {separator('u32')}")


def pointer_width(size: int) -> int:
    """Bytes of a pointer into a file of `size` bytes: ceil(log2(size) / 8), and at least one."""
    return max(1, ((size - 1).bit_length() + 7) // 8)


def read_layout(folder: Path) -> Layout:
    """Reads index.json and checks that every file has the size and the ends that it says. O(1) in the corpus.

    Raises:
        FileNotFoundError: no index there, or one of its files is missing.
        ValueError: a file that is empty, truncated or of another width.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: is no n-gram index, {INDEX_FILE} is missing")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        layout = Layout(**{name: fields[name] for name in Layout.__dataclass_fields__})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
    if layout.token_dtype not in TOKEN_TYPES:
        raise ValueError(f"{path}: token_dtype is {layout.token_dtype!r}, expected one of {', '.join(TOKEN_TYPES)}")
    counts = (layout.vocab_size, layout.documents, layout.tokens)
    if not all(type(count) is int for count in counts) or min(counts) < 0 or layout.documents < 1:
        raise ValueError(f"{path}: found {counts} as vocab_size, documents and tokens, expected counts above zero")
    entries = layout.tokens + layout.documents
    size = entries * layout.dtype.itemsize
    expected = {
        TOKENS: size,
        OFFSETS: layout.documents * 8,
        TABLE: entries * pointer_width(size),
        METADATA_OFFSETS: layout.documents * 8,
    }
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: is missing")
    for name, wanted in expected.items():
        found = (folder / name).stat().st_size
        if found != wanted:
            raise ValueError(
                f"{folder / name}: has {found} bytes, expected {wanted} for {layout.tokens} tokens "
                f"({layout.token_dtype}) in {layout.documents} documents"
            )
    _check_ends(folder, layout)
    return layout


def _check_ends(folder: Path, layout: Layout) -> None:
    """The first and the last document begin with a separator, the last line of metadata lies in its file."""
    tokens = np.memmap(folder / TOKENS, dtype=layout.dtype, mode="r")
    offsets = np.memmap(folder / OFFSETS, dtype="<u8", mode="r")
    lines = np.memmap(folder / METADATA_OFFSETS, dtype="<u8", mode="r")
    for offset in (int(offsets[0]), int(offsets[-1])):
        inside = offset % layout.dtype.itemsize == 0 and offset < tokens.nbytes
        if not inside or tokens[offset // layout.dtype.itemsize] != separator(layout.token_dtype):
            raise ValueError(f"{folder / OFFSETS}: no document begins at byte {offset} of {TOKENS}")
    if int(offsets[0]):
        raise ValueError(f"{folder / OFFSETS}: the first document begins at byte {offsets[0]}, expected 0")
    if int(lines[0]) or int(lines[-1]) >= (folder / METADATA).stat().st_size:
        raise ValueError(f"{folder / METADATA_OFFSETS}: does not belong to {METADATA}")


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """A temporary symbolic link to a folder, whose path infini-gram can take.

    The engine looks for "table" and "tokenized" in whole paths and ends the process where a folder's name has one;
    the builder hands paths to a shell without quoting.
    """
    with tempfile.TemporaryDirectory(prefix="longloom-") as parent:
        link = Path(parent) / "index"
        if re.search(r"[^\w./-]|tokenized|table|offset|metadata|metaoff|unigram", str(link)):
            raise ValueError(f"{parent}: infini-gram cannot work below this path; set TMPDIR to one of plain letters")
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link
