"""A corpus's tokens by Dask's workers: pieces of its files, encoded by whoever, taken up in the corpus's order.

A document's tokens do not depend on those beside it, so these are the bytes that one process would have made. A piece
goes by two files in the index's folder, which are gone once it is taken up.
"""

from __future__ import annotations

import functools
import os
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longloom.storage.parquet import files_of, reading
from longloom.tasks.ngrams.encode import BATCH_CHARACTERS, BATCH_DOCUMENTS, Encoder, encoder
from longloom.tasks.ngrams.layout import TOKEN_TYPES
from longloom.tasks.progress import Progress
from longloom.tasks.workers import Workers

#: Of the files of a piece.
PREFIX = ".piece."
#: A piece is as many row groups of a file as reach this size, or as large a part of one: seconds of work.
PIECE_BYTES = 4_000_000
#: Pieces that are made before they are taken up: a bound on the disk, and on the workers that have something to do.
AHEAD = 128


@dataclass(frozen=True)
class Piece:
    """Row groups of a file, or documents of one of them, and where their tokens go.

    Attributes:
        file: of the corpus.
        first, end: its row groups, the end not among them.
        before: documents of its first row group that come before it.
        start, stop: the ordinals of its documents, the stop not among them.
        place: of the two files, without what tells them apart.
    """

    file: Path
    first: int
    end: int
    before: int
    start: int
    stop: int
    place: Path

    @property
    def tokens(self) -> Path:
        """All documents' tokens, one after the other."""
        return self.place.with_name(f"{self.place.name}.tokens")

    @property
    def lengths(self) -> Path:
        """int64 [documents], a NumPy file; there last."""
        return self.place.with_name(f"{self.place.name}.lengths")

    def read(self, columns: list[str]) -> Iterator[pa.Table]:
        """Its documents, a row group at a time."""
        before, left = self.before, self.stop - self.start
        with reading(self.file), pq.ParquetFile(self.file) as file:
            for group in range(self.first, self.end):
                table = file.read_row_group(group, columns=columns).slice(before, left)
                before, left = 0, left - table.num_rows
                yield table


def pieces_of(corpus: Path, out: Path) -> list[Piece]:
    """A corpus in pieces, in its order."""
    found: list[Piece] = []
    start = stop = 0

    def cut(path: Path, first: int, end: int, before: int) -> None:
        nonlocal start
        place = (out / f"{PREFIX}{len(found)}").absolute()
        found.append(Piece(path.absolute(), first, end, before, start, stop, place))
        start = stop

    for path in files_of(corpus, "documents"):
        with reading(path):
            metadata = pq.read_metadata(path)
        first = size = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            parts = min(group.total_byte_size // PIECE_BYTES, group.num_rows)
            if parts > 1:  # the corpus stage's groups have up to 64 MiB
                if first < number:
                    cut(path, first, number, 0)
                for part in range(parts):
                    begin, end = (group.num_rows * edge // parts for edge in (part, part + 1))
                    stop += end - begin
                    cut(path, number, number + 1, begin)
                first, size = number + 1, 0
                continue
            stop += group.num_rows
            size += group.total_byte_size
            if size >= PIECE_BYTES or number == metadata.num_row_groups - 1:
                cut(path, first, number + 1, 0)
                first, size = number + 1, 0
    return found


@functools.lru_cache(maxsize=1)
def _encoder(tokenizer: Path | None, digest: str | None) -> Encoder:
    """A worker's, for piece after piece."""
    found = encoder(tokenizer)
    if found.digest != digest:
        raise ValueError(f"{tokenizer}: the tokenizer changed while it was used; run again")
    return found


def encode_piece(piece: Piece, tokenizer: Path | None, digest: str | None) -> None:
    """Writes a piece's files; runs in any process that sees the folders, in one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a piece beside it has the other cores
    encode = _encoder(tokenizer, digest)
    hidden = piece.place.with_name(f"{piece.place.name}.{uuid.uuid4().hex}")  # another may be at the same piece
    lengths: list[int] = []
    with hidden.open("wb") as file:
        for table in piece.read(["text"]):
            for texts in _batches(table.column("text").to_pylist()):
                for array in encode.encode(texts):
                    file.write(array.tobytes())
                    lengths.append(len(array))
    hidden.replace(piece.tokens)
    with hidden.open("wb") as file:
        np.save(file, np.array(lengths, dtype=np.int64))
    hidden.replace(piece.lengths)


def _batches(texts: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def tokenized(
    corpus: Path, tokenizer: Path | None, encode: Encoder, out: Path, workers: Workers, progress: Progress, *, skip: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Id, source and tokens of each document, in the corpus's order, without the first `skip`.

    Raises:
        RuntimeError: two workers died at a piece, which is named.
    """
    pieces = pieces_of(corpus, out)
    left = deque(piece for piece in pieces if piece.stop > skip)
    sent: deque[tuple[Piece, Future[None]]] = deque()
    folder = None if tokenizer is None else tokenizer.absolute()
    while left or sent:
        while left and len(sent) < AHEAD:
            piece = left.popleft()
            name = f"tokens of documents {piece.start} to {piece.stop - 1}"
            sent.append((piece, workers.submit(name, encode_piece, piece, folder, encode.digest)))
        piece, future = sent.popleft()
        future.result()
        lengths = np.load(piece.lengths)
        tokens = np.fromfile(piece.tokens, dtype=TOKEN_TYPES[encode.token_dtype])
        rows = [row for table in piece.read(["id", "source"]) for row in table.to_pylist()]
        documents = np.split(tokens, np.cumsum(lengths))[:-1]
        for ordinal, (row, array) in enumerate(zip(rows, documents, strict=True), piece.start):
            if ordinal >= skip:
                yield row["id"], row["source"], array
        progress(piece.stop, pieces[-1].stop)
        for path in (piece.tokens, piece.lengths):
            path.unlink()
    for path in out.glob(f"{PREFIX}*"):  # of workers that died
        path.unlink(missing_ok=True)
