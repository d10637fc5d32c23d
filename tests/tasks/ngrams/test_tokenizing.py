"""Tokens made in pieces, by whoever, are those of one process, from any document on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from longloom.storage import parquet
from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams import tokenizing as module
from longloom.tasks.ngrams.build import tokenize
from longloom.tasks.ngrams.encode import TOKENIZER_FILE, encoder
from longloom.tasks.ngrams.tokenizing import PREFIX, encode_piece, pieces_of, tokenized
from longloom.tasks.workers import Workers

BASE = Path(__file__).resolve().parents[3] / "tasks" / "training" / "base"
TEXTS = [f"{'the loom weaves ' * (index % 4)}{index} é😀" if index % 5 else "" for index in range(23)]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files, the first two of two row groups each."""
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 5)
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"id": f"d{index}", "source": "s", "text": text} for index, text in enumerate(TEXTS)]
    with ShardWriter(folder, "documents", SCHEMA, rows_per_shard=10) as writer:
        writer.write(rows)
    return folder


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TOKENIZERS_PARALLELISM", "false")  # what a piece sets goes again


@pytest.mark.parametrize("size", [1, 150, 10**9])
@pytest.mark.parametrize("tokenizer", [None, BASE])
def test_pieces_give_the_tokens_of_one_process(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Path | None, size: int
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", size)
    monkeypatch.setattr(module, "AHEAD", 2)
    out = tmp_path / "out"
    out.mkdir()
    encode = encoder(tokenizer)
    with Workers("threads", threads=2) as workers:
        for skip in (0, 7, 10, len(TEXTS)):
            (out / f"{PREFIX}0.dead").touch()  # of a worker that was killed
            expected = list(tokenize(corpus, encode, skip=skip))
            told: list[int] = []

            def progress(done: int, total: int | None, told: list[int] = told) -> None:
                told.append(done)
                assert total == len(TEXTS)

            found = list(tokenized(corpus, tokenizer, encode, out, workers, progress, skip=skip))
            assert [(row[0], row[1]) for row in found] == [(row[0], row[1]) for row in expected]
            for (_, _, tokens), (_, _, theirs) in zip(found, expected, strict=True):
                np.testing.assert_array_equal(tokens, theirs)
                assert tokens.dtype == theirs.dtype
            assert told[-1:] == ([len(TEXTS)] if skip < len(TEXTS) else [])
            assert list(out.iterdir()) == []


def test_pieces_end_with_files_and_row_groups_and_within_large_ones(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pieces_of(corpus, tmp_path)
    assert [(piece.start, piece.stop) for piece in whole] == [(0, 10), (10, 20), (20, 23)]
    first = pq.read_metadata(corpus / "documents-00000.parquet").row_group(0).total_byte_size
    for size, expected in (
        (first, [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]),
        (first // 2, [(0, 2), (2, 5), (5, 7), (7, 10), (10, 12), (12, 15), (15, 17), (17, 20), (20, 23)]),
        (1, [(ordinal, ordinal + 1) for ordinal in range(23)]),
    ):
        monkeypatch.setattr(module, "PIECE_BYTES", size)
        found = pieces_of(corpus, tmp_path)
        assert [(piece.start, piece.stop) for piece in found] == expected
        read = [text for piece in found for table in piece.read(["text"]) for text in table.column("text").to_pylist()]
        assert read == TEXTS


def test_a_tokenizer_that_changed_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / TOKENIZER_FILE).write_bytes((BASE / TOKENIZER_FILE).read_bytes() + b"\n")
    with pytest.raises(ValueError, match="the tokenizer changed while it was used; run again"):
        encode_piece(pieces_of(corpus, tmp_path)[0], tmp_path, encoder(BASE).digest)
