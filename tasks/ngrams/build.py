"""The index stage: a corpus becomes an n-gram index in infini-gram's format (layout.py), of tokens or of raw bytes.

Three steps that know of each other only through files: tokens are written, then their suffix array, then index.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from longloom.storage.parquet import count_rows, iter_batches
from longloom.storage.stats import Stats
from longloom.tasks.ngrams.encode import TOKENIZER_FILE, Encoder, encoder
from longloom.tasks.ngrams.layout import (
    METADATA,
    METADATA_OFFSETS,
    OFFSETS,
    TOKEN_TYPES,
    TOKENIZER_FOLDER,
    TOKENS,
    Layout,
    separator,
)
from longloom.tasks.ngrams.suffix_array import build_table
from longloom.tasks.progress import Progress, silent

#: A batch to encode ends with this many documents or characters: an encoding takes about 100 bytes a token.
BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 1_000_000

#: What is kept of a tokenizer's folder, which may hold a model too.
TOKENIZER_FILES = (
    *(TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)

#: id, source and tokens of a document.
Tokenized = tuple[str, str, np.ndarray]


def build(
    corpus: Path, tokenizer: Path | None, out: Path, *, threads: int, memory_gib: float, progress: Progress = silent
) -> Stats:
    """Indexes a corpus.

    Args:
        corpus: folder of `documents-*.parquet`; read as a stream.
        tokenizer: folder with a tokenizer.json; None for the bytes of UTF-8.
        out: an empty folder; `out/build` is used meanwhile.
        threads: jobs that sort suffixes.
        memory_gib: memory that sorting may take.
        progress: called with the documents encoded.

    Returns:
        Counts of documents and tokens (without the separators).

    Raises:
        FileNotFoundError: no corpus or no tokenizer there.
        ValueError: a corpus without documents; too little memory.
        RuntimeError: infini-gram's builder failed.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}, expected at least 1")
    encode = encoder(tokenizer)
    documents, tokens = write_tokens(tokenize(corpus, encode, progress), out, token_dtype=encode.token_dtype)
    if not documents:
        raise ValueError(f"{corpus}: the corpus holds no documents")
    build_table(out, token_dtype=encode.token_dtype, threads=threads, memory_gib=memory_gib)
    Layout(encode.token_dtype, encode.vocab_size, documents, tokens).write(out)
    if tokenizer is not None:
        (out / TOKENIZER_FOLDER).mkdir()
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, out / TOKENIZER_FOLDER / name)
    return Stats(counts={"documents": documents, "tokens": tokens}, values={"token_dtype": encode.token_dtype})


def tokenize(corpus: Path, encode: Encoder, progress: Progress = silent) -> Iterator[Tokenized]:
    """Streams a corpus as tokens, in its order."""
    total = count_rows(corpus, "documents")
    done = 0
    for rows in _batches(corpus):
        tokens = encode.encode([text for _, _, text in rows])
        for (identifier, source, _), array in zip(rows, tokens, strict=True):
            yield identifier, source, array
        done += len(rows)
        progress(done, total)


def _batches(corpus: Path) -> Iterator[list[tuple[str, str, str]]]:
    rows: list[tuple[str, str, str]] = []
    characters = 0
    for batch in iter_batches(corpus, "documents", ["id", "source", "text"], 64):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            rows.append(row)
            characters += len(row[2])
            if len(rows) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
                yield rows
                rows, characters = [], 0
    if rows:
        yield rows


def write_tokens(documents: Iterable[Tokenized], out: Path, *, token_dtype: str) -> tuple[int, int]:
    """Writes the token, offset and metadata files of an index.

    Args:
        documents: id, source and tokens of each; no tokens is a document too.
        out: the folder.
        token_dtype: u8, u16 or u32.

    Returns:
        The documents and their tokens (without the separators).

    Raises:
        ValueError: a token that is the separator or beyond.
    """
    mark = np.array([separator(token_dtype)], dtype=TOKEN_TYPES[token_dtype]).tobytes()
    count = tokens = line_offset = 0
    with (
        (out / TOKENS).open("wb") as token_file,
        (out / OFFSETS).open("wb") as offset_file,
        (out / METADATA).open("wb") as line_file,
        (out / METADATA_OFFSETS).open("wb") as line_offset_file,
    ):
        for identifier, source, array in documents:
            if len(array) and int(array.max()) >= separator(token_dtype):
                raise ValueError(f"document {identifier}: token {array.max()} does not fit into {token_dtype}")
            content = mark + array.astype(TOKEN_TYPES[token_dtype]).tobytes()
            offset_file.write(((count + tokens) * len(mark)).to_bytes(8, "little"))
            token_file.write(content)
            line = json.dumps({"id": identifier, "source": source}).encode() + b"\n"
            line_offset_file.write(line_offset.to_bytes(8, "little"))
            line_file.write(line)
            count += 1
            tokens += len(array)
            line_offset += len(line)
    return count, tokens
