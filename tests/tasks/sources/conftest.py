"""Small indexes of given documents, of bytes and of a byte-level BPE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus import tokenizer as bpe
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams.build import build

#: From documents and "bytes" or "bpe" to the folder of their index.
MakeIndex = Callable[[Sequence[str], str], Path]


@pytest.fixture
def make_index(tmp_path: Path) -> MakeIndex:
    def make(documents: Sequence[str], kind: str) -> Path:
        place = tmp_path / f"index-{len(list(tmp_path.iterdir()))}"
        corpus, tokenizer, out = place / "corpus", place / "tokenizer", place / "index"
        for folder in (corpus, tokenizer, out):
            folder.mkdir(parents=True)
        rows: list[dict[str, object]] = [
            {"id": f"doc{number}", "source": f"file{number}.txt", "text": text} for number, text in enumerate(documents)
        ]
        with ShardWriter(corpus, "documents", SCHEMA, rows_per_shard=1000) as writer:
            writer.write(rows)
        if kind == "bpe":
            bpe.build(corpus, tokenizer, vocab_size=300)
        build(corpus, tokenizer if kind == "bpe" else None, out, threads=1, memory_gib=1)
        return out

    return make
