"""The index stage: a corpus becomes an n-gram index in infini-gram's format (layout.py), of tokens or of raw bytes.

Three steps that know of each other only through files: the tokens of a shard are written, then its suffix array (while
the next one's tokens are), then index.json. A killed build goes on after the last shard whose tokens are whole, and
sorts those that have no table; a table appears when it is whole. What was written of another corpus, or of this one
while it changed, is never gone on with.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from longloom.storage.atomic import write_atomic
from longloom.storage.parquet import count_rows, files_of, iter_batches
from longloom.storage.stamps import file_stamp
from longloom.storage.stats import Stats
from longloom.tasks.ngrams.encode import BATCH_CHARACTERS, BATCH_DOCUMENTS, TOKENIZER_FILE, Encoder, encoder
from longloom.tasks.ngrams.layout import (
    INDEX_FILE,
    METADATA,
    METADATA_OFFSETS,
    OFFSETS,
    PARTS,
    TABLE,
    TOKEN_TYPES,
    TOKENIZER_FOLDER,
    TOKENS,
    Layout,
    Shard,
    read_layout,
    separator,
    shard_file,
)
from longloom.tasks.ngrams.sorters import Plan, Sorters
from longloom.tasks.ngrams.tokenizing import tokenized
from longloom.tasks.progress import Progress, silent
from longloom.tasks.workers import PROCESSES

#: What is built and the shards whose tokens are written, while a build goes on.
PROGRESS = ".shards.json"

#: What is kept of a tokenizer's folder, which may hold a model too.
TOKENIZER_FILES = (
    *(TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)

#: id, source and tokens of a document.
Tokenized = tuple[str, str, np.ndarray]


def build(
    corpus: Path,
    tokenizer: Path | None,
    out: Path,
    *,
    threads: int,
    memory_gib: float,
    shard_tokens: int | None = None,
    workers: str = PROCESSES,
    progress: Progress = silent,
) -> Stats:
    """Indexes a corpus.

    Args:
        corpus: folder of `documents-*.parquet`; read as a stream.
        tokenizer: folder with a tokenizer.json; None for the bytes of UTF-8.
        out: an empty folder, or what a killed build left: its whole shards are kept if they are of the same. A finished
            index of the same tokenizer is taken for this corpus's: a folder is for one.
        threads: for sorting.
        memory_gib: memory that the build may take, this process included.
        shard_tokens: tokens and separators of a shard at most (a longer document has one of its own); as many as
            `threads` processes can sort in the memory by default.
        workers: who sorts the shards, see `Workers`, `threads` at a time in `memory_gib` on each host; Dask's make the
            tokens, too, which else this process does. No other bytes.
        progress: called with the documents encoded.

    Returns:
        Counts of documents, tokens (without the separators) and shards.

    Raises:
        FileNotFoundError: no corpus or no tokenizer there.
        ValueError: a corpus without documents, or one that changed while it was read; too little memory.
        RuntimeError: two processes or Dask workers died at a shard, which is named.
    """
    plan = Plan.of(threads=threads, memory_gib=memory_gib)
    encode = encoder(tokenizer)
    entries = shard_tokens or plan.entries(encode.token_dtype)
    layout = _finished(out, encode)
    if layout is None:
        what: dict[str, Any] = {"corpus": _stamps(corpus), "tokenizer": encode.digest, "shard_tokens": shard_tokens}
        shards = _resume(out, what)
        with (
            _unchanged(corpus, what["corpus"], out),
            Sorters(out, encode.token_dtype, plan, threads=threads, workers=workers) as sorters,
        ):
            for number, shard in enumerate(shards):
                sorters.add(number, shard)
            skip = sum(shard.documents for shard in shards)
            if sorters.dask is None:
                documents = tokenize(corpus, encode, progress, skip=skip)
            else:
                documents = tokenized(corpus, tokenizer, encode, out, sorters.dask, progress, skip=skip)
            for shard in write_shards(
                documents, out, token_dtype=encode.token_dtype, entries=entries, first=len(shards)
            ):
                shards.append(shard)
                write_atomic(out / PROGRESS, json.dumps({"of": what, "shards": [asdict(shard) for shard in shards]}))
                sorters.add(len(shards) - 1, shard)
            if not shards:
                raise ValueError(f"{corpus}: the corpus holds no documents")
            sorters.finish()
        if tokenizer is not None:
            _copy_tokenizer(tokenizer, out / TOKENIZER_FOLDER)
            if encoder(out / TOKENIZER_FOLDER).digest != encode.digest:
                raise ValueError(f"{tokenizer}: the tokenizer changed while it was used; run again")
        layout = Layout(encode.token_dtype, encode.vocab_size, tuple(shards), encode.digest)
        layout.write(out)
    (out / PROGRESS).unlink(missing_ok=True)
    return Stats(
        counts={"documents": layout.documents, "tokens": layout.tokens, "shards": len(layout.shards)},
        values={"token_dtype": layout.token_dtype},
    )


def _finished(out: Path, encode: Encoder) -> Layout | None:
    """The index in `out`, if a killed build had come to its end."""
    try:
        layout = read_layout(out)
    except (FileNotFoundError, ValueError):
        layout = None
    if layout is None or (layout.token_dtype, layout.tokenizer) != (encode.token_dtype, encode.digest):
        (out / INDEX_FILE).unlink(missing_ok=True)
        return None
    return layout


def _stamps(corpus: Path) -> list[list[int]]:
    """What tells whether the files of a corpus changed."""
    return [file_stamp(path) for path in files_of(corpus, "documents")]


@contextlib.contextmanager
def _unchanged(corpus: Path, before: list[list[int]], out: Path) -> Iterator[None]:
    """Raises a ValueError if a corpus changes meanwhile, whatever its reader came upon then; forgets the shards."""
    error: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as found:  # pyarrow's errors are of both kinds
        error = found
    try:
        same = _stamps(corpus) == before
    except FileNotFoundError:
        same = False
    if not same:
        (out / PROGRESS).unlink(missing_ok=True)
        raise ValueError(f"{corpus}: the corpus changed while it was read; run again") from error
    if error is not None:
        raise error


def _resume(out: Path, what: dict[str, Any]) -> list[Shard]:
    """The shards of `what` in `out` whose tokens are whole; whatever else lies there is deleted."""
    shards = []
    if (out / PROGRESS).is_file():
        found = json.loads((out / PROGRESS).read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("of") == what:  # a list: of an older version
            shards = [Shard(**fields) for fields in found["shards"]]
    kept = {PROGRESS} | {f"{part}.{number}" for part in PARTS for number in range(len(shards))}
    for path in sorted(out.iterdir()):
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return shards


def _copy_tokenizer(source: Path, target: Path) -> None:
    target.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def tokenize(corpus: Path, encode: Encoder, progress: Progress = silent, *, skip: int = 0) -> Iterator[Tokenized]:
    """Streams a corpus as tokens, in its order, without its first `skip` documents.

    Raises:
        ValueError: the corpus holds fewer or more documents at the end than at the beginning.
    """
    total = count_rows(corpus, "documents")
    done = skip
    for rows in _batches(corpus, skip):
        tokens = encode.encode([text for _, _, text in rows])
        for (identifier, source, _), array in zip(rows, tokens, strict=True):
            yield identifier, source, array
        done += len(rows)
        progress(done, total)
    if done != total:
        raise ValueError(
            f"{corpus}: found {done} documents, expected {total}; did the corpus change while it was read?"
        )


def _batches(corpus: Path, skip: int) -> Iterator[list[tuple[str, str, str]]]:
    rows: list[tuple[str, str, str]] = []
    characters = 0
    for batch in iter_batches(corpus, "documents", ["id", "source", "text"], 64):
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        for row in zip(*(column.to_pylist() for column in batch.slice(skip).columns), strict=True):
            rows.append(row)
            characters += len(row[2])
            if len(rows) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
                yield rows
                rows, characters = [], 0
        skip = 0
    if rows:
        yield rows


def write_shards(
    documents: Iterable[Tokenized], out: Path, *, token_dtype: str, entries: int, first: int = 0
) -> Iterator[Shard]:
    """Writes the token, offset and metadata files of an index; a shard is yielded once its files are on the disk.

    Args:
        documents: id, source and tokens of each; no tokens is a document too.
        out: the folder.
        token_dtype: u8, u16 or u32.
        entries: tokens and separators of a shard; a document that is longer is a shard.
        first: number of the first shard.

    Raises:
        ValueError: a token that is the separator or beyond.
    """
    writer: _ShardWriter | None = None
    number = first
    try:
        for identifier, source, array in documents:
            if len(array) and int(array.max()) >= separator(token_dtype):
                raise ValueError(f"document {identifier}: token {array.max()} does not fit into {token_dtype}")
            if writer is not None and writer.entries + 1 + len(array) > entries:
                yield writer.finish()
                number += 1
                writer = None
            if writer is None:
                writer = _ShardWriter(out, number, token_dtype)
            writer.write(identifier, source, array)
        if writer is not None:
            yield writer.finish()
    finally:
        if writer is not None:
            writer.close()


class _ShardWriter:
    """Writes all files of a shard but its table."""

    def __init__(self, out: Path, number: int, token_dtype: str) -> None:
        self.entries = 0
        self._dtype = TOKEN_TYPES[token_dtype]
        self._mark = np.array([separator(token_dtype)], dtype=self._dtype).tobytes()
        self._documents = self._line_offset = 0
        self._files = {part: shard_file(out, part, number).open("wb") for part in PARTS if part != TABLE}

    def write(self, identifier: str, source: str, tokens: np.ndarray) -> None:
        line = json.dumps({"id": identifier, "source": source}).encode() + b"\n"
        self._files[OFFSETS].write((self.entries * self._dtype.itemsize).to_bytes(8, "little"))
        self._files[TOKENS].write(self._mark + tokens.astype(self._dtype).tobytes())
        self._files[METADATA_OFFSETS].write(self._line_offset.to_bytes(8, "little"))
        self._files[METADATA].write(line)
        self._line_offset += len(line)
        self._documents += 1
        self.entries += 1 + len(tokens)

    def finish(self) -> Shard:
        """Closes the files once they are on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.close()
        return Shard(self._documents, self.entries - self._documents)

    def close(self) -> None:
        """Lets go of the files, whole or not."""
        with contextlib.ExitStack() as stack:
            for file in self._files.values():
                stack.callback(file.close)
