"""The index stage: files in infini-gram's format, any tokenizer, the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus import tokenizer as bpe
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams import build as module
from longloom.tasks.ngrams.build import build, write_shards
from longloom.tasks.ngrams.encode import TokenizerEncoder
from longloom.tasks.ngrams.layout import PARTS, TOKEN_TYPES, read_layout, token_dtype_for

TEXTS = ["the loom", "", "a", "the loom weaves the loom", "Fäden 🧵"]


def write_corpus(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder, "documents", SCHEMA, rows_per_shard=3) as writer:
        writer.write([{"id": f"d{index}", "source": "s", "text": text} for index, text in enumerate(texts)])
    return folder


def word_tokenizer(folder: Path, size: int) -> Path:
    """A tokenizer of whole words with a vocabulary of `size`."""
    folder.mkdir()
    vocabulary = {"[UNK]": 0, "the": 1, "loom": 2, "weaves": 3, "a": size - 1} | {
        f"w{n}": n for n in range(4, size - 1)
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def run(corpus: Path, tokenizer: Path | None, out: Path) -> Path:
    out.mkdir()
    build(corpus, tokenizer, out, threads=1, memory_gib=1)
    return out


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 200), max_size=5), min_size=1, max_size=8),
    name=st.sampled_from(["u8", "u16", "u32"]),
)
def test_token_files(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], name: str) -> None:
    out = tmp_path_factory.mktemp("tokens")
    dtype = TOKEN_TYPES[name]
    rows = [(f"ä{index}", "s", np.array(row, dtype=np.int64)) for index, row in enumerate(documents)]
    (shard,) = write_shards(rows, out, token_dtype=name, entries=10**9)
    assert (shard.documents, shard.tokens) == (len(documents), sum(map(len, documents)))
    tokens = np.fromfile(out / "tokenized.0", dtype=dtype)
    offsets = np.fromfile(out / "offset.0", dtype="<u8")
    ends = [*offsets[1:], tokens.nbytes]
    for row, start, end in zip(documents, offsets, ends, strict=True):
        assert tokens[start // dtype.itemsize : end // dtype.itemsize].tolist() == [np.iinfo(dtype).max, *row]
    lines = (out / "metadata.0").read_bytes()
    starts = np.fromfile(out / "metaoff.0", dtype="<u8").tolist()
    for index, (start, end) in enumerate(zip(starts, [*starts[1:], len(lines)], strict=True)):
        assert json.loads(lines[start:end]) == {"id": f"ä{index}", "source": "s"}


@pytest.mark.parametrize("token", [255, 300])
def test_tokens_that_collide_with_the_separator_are_refused(tmp_path: Path, token: int) -> None:
    with pytest.raises(ValueError, match=f"document d: token {token} does not fit into u8"):
        list(write_shards([("d", "s", np.array([1, token]))], tmp_path, token_dtype="u8", entries=10))


@pytest.mark.parametrize(("size", "name"), [(300, "u16"), (65535, "u16"), (65536, "u32")])
def test_the_width_follows_the_vocabulary(tmp_path: Path, size: int, name: str) -> None:
    assert token_dtype_for(size) == name
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    index = run(corpus, word_tokenizer(tmp_path / "words", size), tmp_path / "index")
    layout = read_layout(index)
    assert (layout.token_dtype, layout.vocab_size, layout.documents, layout.tokens) == (name, size, 5, 10)
    last = np.iinfo(TOKEN_TYPES[name]).max
    expected = [last, 1, 2, last, last, size - 1, last, 1, 2, 3, 1, 2, last, 0, 0]
    assert np.fromfile(index / "tokenized.0", dtype=TOKEN_TYPES[name]).tolist() == expected


def test_raw_bytes_and_what_lies_in_the_folder(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    calls: list[tuple[int, int | None]] = []
    out = tmp_path / "index"
    out.mkdir()
    stats = build(corpus, None, out, threads=1, memory_gib=1, progress=lambda done, total: calls.append((done, total)))
    assert (out / "tokenized.0").read_bytes() == b"".join(b"\xff" + text.encode() for text in TEXTS)
    assert stats.counts == {"documents": 5, "tokens": sum(len(text.encode()) for text in TEXTS), "shards": 1}
    assert calls[-1] == (5, 5)
    assert sorted(path.name for path in out.iterdir()) == sorted([*(f"{part}.0" for part in PARTS), "index.json"])


def test_batches_do_not_change_the_files_and_builds_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "corpus", [f"{text} {index}" for index in range(10) for text in TEXTS])
    (tmp_path / "bpe").mkdir()
    bpe.build(corpus, tmp_path / "bpe", vocab_size=280)
    (tmp_path / "bpe" / "model.safetensors").write_bytes(b"large")
    one = run(corpus, tmp_path / "bpe", tmp_path / "one")
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 60)
    two = run(corpus, tmp_path / "bpe", tmp_path / "two")
    contents = [
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (one, two)
    ]
    assert contents[0] == contents[1]
    assert {"tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"} <= set(contents[0])
    assert "tokenizer/model.safetensors" not in contents[0]
    assert not any(str(tmp_path).encode() in content for content in contents[0].values())


def test_text_that_spells_a_special_token_stays_text(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    (tmp_path / "bpe").mkdir()
    bpe.build(corpus, tmp_path / "bpe", vocab_size=260)
    encoder = TokenizerEncoder(tmp_path / "bpe")
    tokens = encoder.encode(["<|end|>", ""])
    assert len(tokens[0]) == len("<|end|>")
    assert min(tokens[0]) > 3
    assert len(tokens[1]) == 0


def test_truncation_and_padding_of_a_tokenizer_are_undone(tmp_path: Path) -> None:
    folder = word_tokenizer(tmp_path / "words", 300)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert [array.tolist() for array in TokenizerEncoder(folder).encode(["the loom weaves", "a"])] == [[1, 2, 3], [299]]


def test_faults_are_named(tmp_path: Path) -> None:
    empty = write_corpus(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="empty: the corpus holds no documents"):
        run(empty, None, tmp_path / "one")
    with pytest.raises(
        FileNotFoundError, match=r"tokenizer\.json: is missing; expected a tokenizer saved in the fast format"
    ):
        run(empty, tmp_path, tmp_path / "two")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: cannot be read"):
        run(empty, tmp_path, tmp_path / "three")
    with pytest.raises(ValueError, match="threads is 0"):
        build(empty, None, tmp_path, threads=0, memory_gib=1)
    with pytest.raises(ValueError, match="the tokenizer has 4294967296 tokens"):
        token_dtype_for(2**32)
    with pytest.raises(ValueError, match=r"memory_gib is 0\.2, expected at least 0\.47"):
        build(empty, None, tmp_path, threads=2, memory_gib=0.2)
