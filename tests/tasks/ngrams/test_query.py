"""Counts against brute force at every token width, and the refusal of files that would end the process."""

from __future__ import annotations

import hashlib
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus import tokenizer as bpe
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams.build import build, write_shards
from longloom.tasks.ngrams.layout import PARTS, TABLE, TOKENS, Layout, shard_file
from longloom.tasks.ngrams.query import Index, open_index
from longloom.tasks.ngrams.sorters import sort_shard


def occurrences(documents: list[list[int]], query: list[int]) -> int:
    """Looks at every position of every document."""
    length = len(query)
    return sum(row[start : start + length] == query for row in documents for start in range(len(row) - length + 1))


def write_index(out: Path, documents: list[list[int]], name: str, vocab_size: int = 256, entries: int = 10**9) -> Path:
    """An index of given tokens; u16 and u32 get a tokenizer that is never asked."""
    out.mkdir(parents=True, exist_ok=True)
    rows = ((f"d{index}", "s", np.array(row, dtype=np.int64)) for index, row in enumerate(documents))
    shards = tuple(write_shards(rows, out, token_dtype=name, entries=entries))
    for number in range(len(shards)):
        sort_shard(shard_file(out, TOKENS, number), shard_file(out, TABLE, number), name, 1)
    if name != "u8":
        (out / "tokenizer").mkdir()
        vocabulary = {str(n): n for n in range(vocab_size)}
        Tokenizer(models.WordLevel(vocabulary, unk_token="0")).save(str(out / "tokenizer" / "tokenizer.json"))
    Layout(name, vocab_size, shards).write(out)
    return out


SIZES = {"u8": 256, "u16": 300, "u32": 65536}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 2), max_size=7), min_size=1, max_size=6),
    name=st.sampled_from(["u8", "u16"]),
)
def test_every_short_sequence_is_counted(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], name: str
) -> None:
    index = open_index(write_index(tmp_path_factory.mktemp("index"), documents, name, SIZES[name]))
    for length in range(1, 4):
        for query in itertools.product(range(4), repeat=length):
            assert index.count(list(query)) == occurrences(documents, list(query)), query
    longest = max(documents, key=len)
    if longest:
        assert index.count(longest) == occurrences(documents, longest)
        assert index.count([*longest, 0]) == 0


def test_widths_agree(tmp_path: Path) -> None:
    documents = [[1, 1, 1, 1], [], [2], [1, 1, 2], [2, 1]]
    indexes = [open_index(write_index(tmp_path / name, documents, name, size)) for name, size in SIZES.items()]
    queries = {
        (1, 1): 4,
        (1,): 7,
        (1, 1, 1, 1): 1,
        (2,): 3,
        (1, 2): 1,
        (2, 2): 0,
        (2, 1): 1,
        (1, 1, 1, 1, 1): 0,
        (3,): 0,
    }
    for query, expected in queries.items():
        assert [index.count(list(query)) for index in indexes] == [expected] * 3, query


@pytest.mark.parametrize("documents", [[[]], [[], []], [[0]]])
def test_the_smallest_indexes(tmp_path: Path, documents: list[list[int]]) -> None:
    for name, size in SIZES.items():
        index = open_index(write_index(tmp_path / name, documents, name, size))
        assert index.count([0]) == len(documents[0])
        assert index.count([0, 0]) == 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("corpus")
    texts = ["the loom weaves the loom", "loom", "\n\n", "Fäden, the Fäden 🧵", "the  loom\nthe loom"]
    with ShardWriter(folder, "documents", SCHEMA, rows_per_shard=2) as writer:
        writer.write([{"id": str(index), "source": "s", "text": text} for index, text in enumerate(texts)])
    return folder, texts


def built(corpus: Path, tokenizer: Path | None, out: Path) -> Index:
    out.mkdir()
    build(corpus, tokenizer, out, threads=1, memory_gib=1)
    return open_index(out)


def test_bytes_count_substrings(corpus: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, texts = corpus
    index = built(folder, None, tmp_path / "a table of tokenized offsets")  # such names crash the bare engine
    for query in ["loom", "the loom", "o", "oo", "\n", "\n\n", "ä", "🧵", "the  ", "loomloom", "x", "d"]:
        documents = [list(text.encode()) for text in texts]
        assert index.count(query) == occurrences(documents, list(query.encode())), query
    assert index.encode("ä") == [0xC3, 0xA4]
    assert index.count([0xC3]) == 2


def test_tokens_count_token_sequences(corpus: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, texts = corpus
    (tmp_path / "bpe").mkdir()
    bpe.build(folder, tmp_path / "bpe", vocab_size=275)
    index = built(folder, tmp_path / "bpe", tmp_path / "index")
    documents = [index.encode(text) for text in texts]
    queries = ["loom", " loom", "the loom", "Fäden", "🧵", "<|end|>", *texts]
    for query in queries:
        assert index.count(query) == occurrences(documents, index.encode(query)), query
    assert index.count("loom") == 1  # where it begins a text; after a space it is another token
    assert index.count("<|end|>") == 0


def test_a_text_that_has_no_tokens_or_unknown_ones_is_refused(corpus: tuple[Path, list[str]], tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "loom": 2, "silk": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(words / "tokenizer.json"))
    index = built(corpus[0], words, tmp_path / "index")
    assert (index.count("the loom"), index.count("loom"), index.count("silk")) == (4, 5, 0)
    with pytest.raises(ValueError, match=r"'the Webstuhl': holds something that is not in the tokenizer's vocabulary"):
        index.count("the Webstuhl")
    with pytest.raises(ValueError, match=r"'  ': has no tokens to look for"):
        index.count("  ")
    with pytest.raises(ValueError, match="lone surrogate"):
        open_index(built(corpus[0], None, tmp_path / "bytes").path).count("\ud800")
    with pytest.raises(ValueError, match="token 4 is not in the vocabulary, expected 0 to 3"):
        index.count([1, 4])


def test_queries_of_tokens_are_checked(tmp_path: Path) -> None:
    index = open_index(write_index(tmp_path / "index", [[1, 2], [3]], "u8"))
    with pytest.raises(ValueError, match="holds no tokens"):
        index.count([])
    for token in (255, 256, -1):  # 255 is the separator
        with pytest.raises(ValueError, match=f"token {token} is not in the vocabulary, expected 0 to 254"):
            index.count([token])
    assert index.count(list(np.array([1, 2], dtype=np.int64))) == 1
    with pytest.raises(TypeError):
        index.count([1.0])  # type: ignore[list-item]


def test_several_threads_may_ask(tmp_path: Path) -> None:
    documents = np.random.default_rng(0).integers(0, 5, size=(50, 20)).tolist()
    index = open_index(write_index(tmp_path / "index", documents, "u8"))
    queries = [list(query) for query in itertools.product(range(5), repeat=2)] * 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(index.count, queries)) == [occurrences(documents, query) for query in queries]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in (f"{part}.0" for part in PARTS) for damage in ("empty", "missing")),
        *((name, damage) for name in (f"{part}.0" for part in PARTS) for damage in ("truncated", "longer")),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    index = write_index(tmp_path / "index", [[1, 2, 3], [], [1, 2]], "u16", 300)
    path = index / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
        with pytest.raises(FileNotFoundError, match=f"{name}: is missing"):
            open_index(index)
        return
    path.write_bytes({"truncated": content[:-1], "empty": b"", "longer": content + b"\0"}[damage])
    with pytest.raises(ValueError, match=name):
        open_index(index)


def sizes(documents: int, tokens: int) -> dict[str, object]:
    """What index.json says of one shard."""
    return {"documents": documents, "tokens": tokens, "shards": [{"documents": documents, "tokens": tokens}]}


def test_an_index_of_another_width_is_refused(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", [[1, 2, 3], [4]], "u16", 300)
    fields = json.loads((index / "index.json").read_text())
    for wrong, fault in [
        ({"token_dtype": "u32"}, r"tokenized\.0: has 12 bytes, expected 24 for 4 tokens \(u32\) in 2 documents"),
        ({"token_dtype": "u8"}, r"tokenized\.0: has 12 bytes, expected 6"),
        ({"token_dtype": "i16"}, r"token_dtype is 'i16', expected one of u8, u16, u32"),
        ({"token_dtype": "u32", **sizes(2, 1)}, r"offset\.0|table\.0"),  # the tokens' size agrees by chance
        (sizes(4, 2), r"offset\.0: has 16 bytes, expected 32"),
        ({"tokens": 5}, r"found \(2, 5\) as documents and tokens, expected the sums \(2, 4\) of the 1 shards"),
        ({"shards": [{"documents": 2, "tokens": "4"}]}, r"found \(2, '4'\) as documents and tokens of shard 0"),
        ({"shards": [{"documents": 2}]}, r"cannot be read \(KeyError: 'tokens'\)"),
        ({"documents": 0}, "expected counts above zero"),
        ({"tokens": "4"}, "expected counts above zero"),
        ({"vocab_size": 301}, "its tokenizer gives u16 below 300"),
    ]:
        (index / "index.json").write_text(json.dumps(fields | wrong))
        with pytest.raises(ValueError, match=fault):
            open_index(index)
    del fields["tokens"]
    (index / "index.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"index\.json: cannot be read \(KeyError: 'tokens'\)"):
        open_index(index)
    (index / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json: cannot be read"):
        open_index(index)
    with pytest.raises(FileNotFoundError, match=r"is no n-gram index, index\.json is missing"):
        open_index(tmp_path)


def test_an_index_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """Of as many tokens as its own: the width and the vocabulary's size tell nothing."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    with ShardWriter(corpus, "documents", SCHEMA, rows_per_shard=3) as writer:
        writer.write([{"id": "d0", "source": "s", "text": "the loom the silk"}])
    for name, words in {"one": ["the", "loom", "silk"], "two": ["loom", "the", "silk"]}.items():
        (tmp_path / name).mkdir()
        vocabulary = {"[UNK]": 0} | {word: number for number, word in enumerate(words, start=1)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    index = built(corpus, tmp_path / "one", tmp_path / "index").path
    assert open_index(index).count("the") == 2
    ours = index / "tokenizer" / "tokenizer.json"
    content = ours.read_bytes()
    ours.write_bytes((tmp_path / "two" / "tokenizer.json").read_bytes())
    digests = [hashlib.sha256(part).hexdigest()[:12] for part in (content, ours.read_bytes())]
    with pytest.raises(ValueError, match=f"index: holds tokens of the tokenizer {digests[0]}, found {digests[1]} besi"):
        open_index(index)
    fields = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(fields | {"tokenizer": 3}))
    with pytest.raises(ValueError, match="tokenizer is 3, expected a digest or null"):
        open_index(index)
    del fields["tokenizer"]  # of an older version, which did not tell
    (index / "index.json").write_text(json.dumps(fields))
    assert open_index(index).count("the") == 1
    (index / "index.json").write_text(json.dumps(fields | {"tokenizer": "a" * 64}))
    ours.write_bytes(content)
    with pytest.raises(ValueError, match="holds tokens of the tokenizer aaaaaaaaaaaa, found"):
        open_index(index)


def test_what_is_longer_than_the_corpus_is_nowhere(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [], [1, 2]]
    for name in SIZES:
        index = open_index(write_index(tmp_path / name, documents, name, SIZES[name], entries=4))
        longer = [1, 2, 3] * 5
        assert index.count(longer) == 0
        assert index.counts([longer, [1, 2], longer * 9]).tolist() == [0, 2, 0]
        assert index.positions(longer).shape == (0, 2)
        assert index.documents(longer).tolist() == []
        assert index.longest_prefix(longer) == 3
        assert index.cooccurrences([(longer, [1]), ([1], [2])]).tolist() == [0, 2]
        assert index.infgram_probability(longer, 1).probability == 0
        assert index.infgram_next(longer).suffix == 3


def test_offsets_that_do_not_point_at_documents_are_refused(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", [[1, 2, 3], [4]], "u16", 300)
    for offsets in ([0, 2], [0, 3], [0, 999], [8, 8]):
        np.array(offsets, dtype="<u8").tofile(index / "offset.0")
        with pytest.raises(ValueError, match=r"offset\.0"):
            open_index(index)
