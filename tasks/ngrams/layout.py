"""infini-gram's files on disk, and the check that they belong together before its engine opens them.

Shard s of an index, s = 0 .. shards - 1, is (as written by infini_gram's indexing.py):

    tokenized.s   little-endian tokens; before each document one separator, a token whose bits are all ones
    offset.s      u64 a document: the byte offset of its separator
    table.s       the suffix array: for each suffix, in the order of its bytes, its byte offset in tokenized.s, in
                  as few bytes as the size of tokenized.s needs
    metadata.s    a line of JSON a document: {"id": ..., "source": ...}
    metaoff.s     u64 a document: the byte offset of its line

Beside the shards lie index.json (`Layout`), the tokenizer's folder where there is one, and deleted.npy (`read_deleted`)
where documents were deleted. A document's ordinal is its place in the corpus: the documents of earlier shards, and its
place in its own.

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

from longloom.storage.atomic import write_atomic

INDEX_FILE = "index.json"
DELETED_FILE = "deleted.npy"
TOKENIZER_FOLDER = "tokenizer"
TOKENS, OFFSETS, TABLE, METADATA, METADATA_OFFSETS = PARTS = ("tokenized", "offset", "table", "metadata", "metaoff")

TOKEN_TYPES: dict[str, np.dtype[Any]] = {"u8": np.dtype("u1"), "u16": np.dtype("<u2"), "u32": np.dtype("<u4")}


@dataclass(frozen=True)
class Shard:
    """Sizes of one shard.

    Attributes:
        documents: number of documents, at least one.
        tokens: tokens of its documents, without the separators; the suffix array has `tokens + documents` entries.
    """

    documents: int
    tokens: int


@dataclass(frozen=True)
class Layout:
    """What index.json tells.

    Attributes:
        token_dtype: u8, u16 or u32.
        vocab_size: tokens are below it; 256 for raw bytes (of which UTF-8 never uses the separator, 255).
        shards: the corpus in its order, cut between documents.
        tokenizer: `Encoder.digest` of what made the tokens; None for raw bytes, and in indexes that do not tell.
    """

    token_dtype: str
    vocab_size: int
    shards: tuple[Shard, ...]
    tokenizer: str | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The tokens' type on disk."""
        return TOKEN_TYPES[self.token_dtype]

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens of all documents, without the separators."""
        return sum(shard.tokens for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Writes index.json."""
        fields = {
            "token_dtype": self.token_dtype,
            "vocab_size": self.vocab_size,
            "tokenizer": self.tokenizer,
            "documents": self.documents,
            "tokens": self.tokens,
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_atomic(folder / INDEX_FILE, json.dumps(fields, indent=1) + "\n")


def shard_file(folder: Path, part: str, shard: int) -> Path:
    """The file of a part (one of PARTS) of a shard."""
    return folder / f"{part}.{shard}"


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
        totals = (fields["documents"], fields["tokens"])
        # Indexes of before there were shards have one.
        shards = fields.get("shards", [{"documents": totals[0], "tokens": totals[1]}])
        layout = Layout(
            fields["token_dtype"],
            fields["vocab_size"],
            tuple(Shard(documents=shard["documents"], tokens=shard["tokens"]) for shard in shards),
            fields.get("tokenizer"),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
    if layout.token_dtype not in TOKEN_TYPES:
        raise ValueError(f"{path}: token_dtype is {layout.token_dtype!r}, expected one of {', '.join(TOKEN_TYPES)}")
    if not isinstance(layout.tokenizer, str | None):
        raise ValueError(f"{path}: tokenizer is {layout.tokenizer!r}, expected a digest or null")
    counts = (layout.vocab_size, *totals)
    if not all(type(count) is int for count in counts) or min(counts) < 0 or totals[0] < 1:
        raise ValueError(f"{path}: found {counts} as vocab_size, documents and tokens, expected counts above zero")
    for number, shard in enumerate(layout.shards):
        sizes = (shard.documents, shard.tokens)
        if not all(type(size) is int for size in sizes) or shard.documents < 1 or shard.tokens < 0:
            raise ValueError(f"{path}: found {sizes} as documents and tokens of shard {number}, expected counts")
    if totals != (layout.documents, layout.tokens):
        raise ValueError(
            f"{path}: found {totals} as documents and tokens, expected the sums {layout.documents, layout.tokens} "
            f"of the {len(layout.shards)} shards"
        )
    for number, shard in enumerate(layout.shards):
        _check_sizes(folder, layout, number, shard)
        _check_ends(folder, layout, number)
    return layout


def _check_sizes(folder: Path, layout: Layout, number: int, shard: Shard) -> None:
    entries = shard.tokens + shard.documents
    size = entries * layout.dtype.itemsize
    expected = {
        TOKENS: size,
        OFFSETS: shard.documents * 8,
        TABLE: entries * pointer_width(size),
        METADATA_OFFSETS: shard.documents * 8,
    }
    for part in PARTS:
        if not shard_file(folder, part, number).is_file():
            raise FileNotFoundError(f"{shard_file(folder, part, number)}: is missing")
    for part, wanted in expected.items():
        found = shard_file(folder, part, number).stat().st_size
        if found != wanted:
            raise ValueError(
                f"{shard_file(folder, part, number)}: has {found} bytes, expected {wanted} for {shard.tokens} tokens "
                f"({layout.token_dtype}) in {shard.documents} documents"
            )


def _check_ends(folder: Path, layout: Layout, number: int) -> None:
    """The first and the last document begin with a separator, the last line of metadata ends its file."""
    paths = {part: shard_file(folder, part, number) for part in PARTS}
    tokens = np.memmap(paths[TOKENS], dtype=layout.dtype, mode="r")
    offsets = np.memmap(paths[OFFSETS], dtype="<u8", mode="r")
    lines = np.memmap(paths[METADATA_OFFSETS], dtype="<u8", mode="r")
    for offset in (int(offsets[0]), int(offsets[-1])):
        inside = offset % layout.dtype.itemsize == 0 and offset < tokens.nbytes
        if not inside or tokens[offset // layout.dtype.itemsize] != separator(layout.token_dtype):
            raise ValueError(f"{paths[OFFSETS]}: no document begins at byte {offset} of {paths[TOKENS].name}")
    if int(offsets[0]):
        raise ValueError(f"{paths[OFFSETS]}: the first document begins at byte {offsets[0]}, expected 0")
    size, last = paths[METADATA].stat().st_size, int(lines[-1])
    with paths[METADATA].open("rb") as file:
        file.seek(min(last, size))
        if int(lines[0]) or not file.readline().endswith(b"\n") or file.tell() != size:
            raise ValueError(f"{paths[METADATA_OFFSETS]}: does not belong to {paths[METADATA].name}")


def read_deleted(folder: Path, layout: Layout) -> np.ndarray:
    """The ordinals of the documents that no query may count.

    Returns:
        int64 [deleted], sorted; of all shards. Empty where the index has no `deleted.npy`.

    Raises:
        ValueError: a file of another kind, ordinals out of order or beyond the documents.
    """
    path = folder / DELETED_FILE
    if not path.is_file():
        return np.zeros(0, dtype=np.int64)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a damaged header cannot ask for memory
        deleted = np.array(found)
    except Exception as error:  # numpy lets those of its parsers and of zip files through
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read ({reason:.200})") from None
    if deleted.dtype != np.int64 or deleted.ndim != 1:
        raise ValueError(f"{path}: holds {deleted.dtype} of shape {deleted.shape}, expected a list of int64")
    if (np.diff(deleted) <= 0).any() or (len(deleted) and not 0 <= deleted[0] <= deleted[-1] < layout.documents):
        raise ValueError(f"{path}: expected document ordinals in order, each once, below {layout.documents}")
    return deleted


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
