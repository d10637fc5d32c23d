"""Damaged n-gram indexes, lists of pairs and ids, tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from longloom.flows.delete import read_ids
from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams.build import build
from longloom.tasks.ngrams.encode import TokenizerEncoder
from longloom.tasks.ngrams.layout import DELETED_FILE, INDEX_FILE, PARTS, read_deleted, read_layout, shard_file
from longloom.tasks.ngrams.pairs import read_pairs
from longloom.tasks.ngrams.query import Index, open_index
from longloom.tasks.sources.explain import texts_of

from .damage import damaged, damaged_json, examples, survives

TEXTS = ["the loom weaves the warp", "the weft", "a loom", ""]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of bytes in two shards."""
    corpus, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("index")
    with ShardWriter(corpus, "documents", SCHEMA, rows_per_shard=4) as writer:
        writer.write([{"id": f"d{number}", "source": "s", "text": text} for number, text in enumerate(TEXTS)])
    build(corpus, None, out, threads=1, memory_gib=1, shard_tokens=30, progress=lambda done, total: None)
    return out


@pytest.fixture
def index(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "index"))


def asked(index: Index) -> Any:
    """One question of every kind."""
    found = [index.count(text) for text in ("the", "loom", "e", "zz")]
    return found, index.document(0).id, index.document(index.layout.documents - 1).tokens.tolist()


def test_damaged_descriptions_of_indexes(index: Path) -> None:
    path = index / INDEX_FILE
    right = asked(open_index(index))

    @examples(80)
    @given(damaged_json(json.loads(path.read_bytes())))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = survives(lambda: asked(open_index(index)), names=str(index))
        assert found in (None, right)

    check()


@pytest.mark.parametrize("part", PARTS)
def test_damaged_parts_of_indexes_end_no_process(index: Path, part: str) -> None:
    """A hash finds damage of an artifact; of a folder from elsewhere only sizes and ends are looked at, so an answer
    may be wrong, but nothing is read beyond a file."""
    path = shard_file(index, part, 0)

    @examples(60)
    @given(damaged(path.read_bytes()))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        survives(lambda: asked(open_index(index)), names=str(index))

    check()


def test_damaged_lists_of_deleted_documents(index: Path) -> None:
    path = index / DELETED_FILE
    np.save(path, np.array([1, 2], dtype=np.int64))

    @examples(60)
    @given(damaged(path.read_bytes()))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = survives(lambda: read_deleted(index, read_layout(index)), names=str(path))
        assert found is None or (found.dtype == np.int64 and found.ndim == 1 and set(found) <= set(range(4)))

    check()


def _text(path: Path) -> list[tuple[str, str]]:
    return texts_of(path, None)


@pytest.mark.parametrize(
    ("name", "load", "content"),
    [
        ("pairs.jsonl", read_pairs, b'["the", "loom"]\n\n["a", "b"]\n'),
        ("pairs.tsv", read_pairs, b"the\tloom\r\na\tb\n"),
        ("ids.txt", lambda path: read_ids(str(path)), b"d1\nd2\n\n"),
        ("answer.txt", _text, "Ada – the mill".encode()),
    ],
)
def test_damaged_lists(tmp_path: Path, name: str, load: Callable[[Path], Any], content: bytes) -> None:
    path = tmp_path / name

    @examples(100)
    @given(damaged(content))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = survives(lambda: load(path), names=str(path))
        assert found is None or found
        json.dumps(found, ensure_ascii=False).encode()

    check()


def tokenizers() -> dict[str, Tokenizer]:
    words = {"[UNK]": 0, "the": 1, "loom": 2}
    found = {
        "words": Tokenizer(models.WordLevel(words, unk_token="[UNK]")),
        "pairs": Tokenizer(models.BPE({"t": 0, "h": 1, "e": 2, "th": 3}, [("t", "h")])),
        "unigram": Tokenizer(models.Unigram([("<unk>", 0.0), ("the", -1.0), ("l", -2.0)], unk_id=0)),
    }
    for tokenizer in found.values():
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return found


@pytest.mark.parametrize("kind", ["words", "pairs", "unigram"])
def test_damaged_tokenizers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tokenizer.json"

    def load() -> list[np.ndarray]:
        encoder = TokenizerEncoder(tmp_path)
        encoded = encoder.encode(["the loom", ""])
        encoder.decode(encoded[0].tolist())
        return encoded

    @examples(100)
    @given(damaged_json(json.loads(tokenizers()[kind].to_str())))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        survives(load, names=str(path))

    check()


@examples(60)
@given(st.lists(st.sampled_from(["index", "table.0", "offset.0"]), max_size=2))
def test_folders_where_files_should_be(whole: Path, names: list[str]) -> None:
    target = whole.parent / "folders"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole, target)
    for name in names:
        for path in target.glob(f"{name}*"):
            if path.is_file():
                path.unlink()
                path.mkdir()
    survives(lambda: asked(open_index(target)), names=str(target))
