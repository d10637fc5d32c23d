"""`longloom count`, `search` and `cooccur` in this process, over indexes of known documents, and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams.build import build
from tests.tasks.ngrams.brute import write_shards

from .command import Run

TEXTS = ["the loom weaves the loom", "silk\tand loom", "", "Fäden und silk", "gone: the loom and silk"]
PAIRS = [["loom", "silk"], ["the", "loom"], ["silk", "silk"], ["loom", "nowhere"], ["the loom", "weaves"]]


@pytest.fixture
def index(tmp_path: Path) -> str:
    documents = [list(text.encode()) for text in TEXTS]
    return str(write_shards(tmp_path / "index", documents, "u8", cuts=[2], deleted=[4]))


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)) + "\n\n")
    return str(path)


def test_search_shows_documents_with_the_match_in_context(longloom: Run, index: str) -> None:
    found = json.loads(longloom("search", "loom", "--index", index, "--json").out)
    assert (found["text"], found["occurrences"], found["documents"]) == ("loom", 3, 2)
    assert found["matches"] == [
        {"document": 0, "id": "d0", "source": "s0", "occurrences": 2, "offset": 4}
        | {"before": "the ", "match": "loom", "after": " weaves the loom"},
        {"document": 1, "id": "d1", "source": "s0", "occurrences": 1, "offset": 9}
        | {"before": "silk\tand ", "match": "loom", "after": ""},
    ]
    assert longloom("search", "loom", "--index", index).out.splitlines() == [
        "d0  s0  2 times, first at token 4",
        "    the loom weaves the loom",
        "d1  s0  once, at token 9",
        "    silk\\tand loom",
        "3 occurrences in 2 documents",
    ]
    assert longloom("search", "loom", "--limit", "1", "--index", index).out.count("\n    ") == 1
    assert longloom("search", "nowhere", "--index", index).out == "0 occurrences in 0 documents\n"


def test_search_cuts_no_character(longloom: Run, tmp_path: Path) -> None:
    index = str(write_shards(tmp_path / "index", [list(("ä" * 100 + "x" + "ä" * 100 + "b").encode())], "u8"))
    (match,) = json.loads(longloom("search", "x", "--index", index, "--json").out)["matches"]
    assert (match["before"], match["after"]) == ("ä" * 40, "ä" * 40)
    index = str(write_shards(tmp_path / "other", [list(("ä" * 100 + "bx" + "ä" * 100).encode())], "u8"))
    (match,) = json.loads(longloom("search", "x", "--index", index, "--json").out)["matches"]
    assert (match["before"], match["after"]) == ("ä" * 39 + "b", "ä" * 40)


def test_cooccur_keeps_every_pair(longloom: Run, index: str, pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "table.parquet"
    found = json.loads(longloom("cooccur", "--pairs", pairs, "--index", index, "--out", str(out), "--json").out)
    assert (found["pairs"], found["never"]) == (5, 1)
    rows = pq.read_table(out).to_pylist()
    assert rows == found["rows"]
    assert [[row["first"], row["second"]] for row in rows] == PAIRS
    assert [row["both"] for row in rows] == [1, 1, 2, 0, 1]
    first = {"first": "the", "first_count": 2, "first_documents": 1}
    assert rows[1] == first | {"second": "loom", "second_count": 3, "second_documents": 2, "both": 1}
    content = out.read_bytes()
    shown = longloom("cooccur", "--pairs", pairs, "--index", index, "--out", str(out)).out
    assert "5 pairs, 1 never together; counts are documents" in shown
    assert out.read_bytes() == content
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_cooccur_within_and_from_a_sample(longloom: Run, index: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes("silk\tloom\r\nFäden\tsilk\n".encode())
    near = longloom("cooccur", "--pairs", str(path), "--index", index, "--within", "5", "--json")
    assert [row["both"] for row in json.loads(near.out)["rows"]] == [1, 1]
    nearer = longloom("cooccur", "--pairs", str(path), "--index", index, "--within", "4", "--json")
    assert [row["both"] for row in json.loads(nearer.out)["rows"]] == [0, 0]
    whole = json.loads(longloom("cooccur", "--pairs", str(path), "--index", index, "--sample", "9", "--json").out)
    assert [(row["both_estimate"], row["both_low"], row["both_high"]) for row in whole["rows"]] == [(1, 1, 1)] * 2
    assert "both" not in whole["rows"][0]
    shown = longloom("cooccur", "--pairs", str(path), "--index", index, "--sample", "2").out
    assert "estimated from 2 documents (95% interval)" in shown


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("p.csv", b"a,b", "ends with '.csv', expected .jsonl or .tsv"),
        ("p.tsv", b"a\tb\na b\n", "p.tsv, line 2: has 1 columns, expected two texts with a tab between them"),
        ("p.tsv", b"\n\n", "p.tsv: holds no pairs"),
        ("p.tsv", b"a\t\xff", "p.tsv: is not UTF-8"),
        ("p.tsv", b"a\tb\na\t\n", "pair 2: '': has no tokens to look for"),
        ("p.jsonl", b'["a", "b"]\n["a"]', 'p.jsonl, line 2: found ["a"], expected a list of two texts'),
        ("p.jsonl", b"{", "p.jsonl, line 1: is not JSON"),
        ("p.jsonl", b'["a", "\\ud800"]', "pair 1: '\\ud800': holds a lone surrogate"),
    ],
)
def test_bad_pairs_are_one_line(
    longloom: Run, index: str, tmp_path: Path, name: str, content: bytes, fault: str
) -> None:
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out.parquet"
    done = longloom("cooccur", "--pairs", str(tmp_path / name), "--index", index, "--out", str(out))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert fault in done.err
    assert not out.exists()


def test_bad_questions_are_one_line(longloom: Run, index: str, pairs: str) -> None:
    for arguments, fault in [
        (["search", "", "--index", index], "'': has no tokens to look for"),
        (["search", "x", "--limit", "0", "--index", index], "limit is 0, expected at least 1 document"),
        (["search", "x", "--index", "nowhere"], "nowhere: no such folder, expected one of an index"),
        (["cooccur", "--pairs", "nowhere.tsv", "--index", index], "nowhere.tsv: No such file"),
        (["cooccur", "--pairs", pairs, "--within", "-1", "--index", index], "within is -1, expected at least 0 tokens"),
        (["cooccur", "--pairs", pairs, "--sample", "0", "--index", index], "sample is 0, expected at least 1 document"),
        (["cooccur", "--pairs", pairs, "--memory-gib", "0", "--index", index], "memory_gib is 0.0, expected more"),
    ]:
        done = longloom(*arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
        assert fault in done.err


@pytest.fixture
def word_index(tmp_path: Path) -> Path:
    """An index of words, each a token of its own."""
    corpus, tokenizer, out = (tmp_path / name for name in ("corpus", "words", "word-index"))
    for folder in (corpus, tokenizer, out):
        folder.mkdir()
    with ShardWriter(corpus, "documents", SCHEMA, rows_per_shard=9) as writer:
        writer.write([{"id": f"d{number}", "source": "s", "text": text} for number, text in enumerate(TEXTS)])
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "loom": 2, "silk": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tokenizer / "tokenizer.json"))
    build(corpus, tokenizer, out, threads=1, memory_gib=1, shard_tokens=6)
    return out


def _truncated(index: Path, part: str) -> None:
    content = (index / part).read_bytes()
    (index / part).write_bytes(content[: len(content) // 2])


def _of_another_width(index: Path) -> None:
    fields = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(fields | {"token_dtype": "u32"}))


def _of_another_tokenizer(index: Path) -> None:
    path = index / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"the"', '"THE"'))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        *(
            (partial(_truncated, part=f"{part}.0"), f"{part}.0: has ")
            for part in ("tokenized", "table", "offset", "metaoff")
        ),
        (partial(_truncated, part="metadata.0"), "metaoff.0: does not belong to metadata.0"),
        (partial(_truncated, part="index.json"), "index.json: cannot be read"),
        (partial(_truncated, part="tokenizer/tokenizer.json"), "tokenizer.json: cannot be read"),
        (_of_another_width, "tokenized.0: has "),
        (_of_another_tokenizer, "holds tokens of the tokenizer "),
        (lambda index: (index / "index.json").unlink(), "is no n-gram index, index.json is missing"),
    ],
)
def test_a_damaged_index_is_one_line(
    longloom: Run, word_index: Path, pairs: str, damage: Callable[[Path], None], fault: str
) -> None:
    assert longloom("count", "the", "--index", str(word_index)).code == 0
    damage(word_index)
    for command in (["count", "the"], ["search", "the"], ["cooccur", "--pairs", pairs]):
        done = longloom(*command, "--index", str(word_index))
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
        assert fault in done.err, done


def test_a_word_that_is_another_token_behind_a_blank_is_told(longloom: Run, tmp_path: Path) -> None:
    corpus, tokenizer, out = (tmp_path / name for name in ("corpus", "bpe", "bpe-index"))
    for folder in (corpus, tokenizer, out):
        folder.mkdir()
    with ShardWriter(corpus, "documents", SCHEMA, rows_per_shard=9) as writer:
        writer.write([{"id": "d", "source": "s", "text": "loom the loom a loom"}])
    vocabulary = {"[UNK]": 0, "loom": 1, " loom": 2, " the": 3, " a": 4, " ": 5}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(" ?[^ ]+"), "isolated")
    words.save(str(tokenizer / "tokenizer.json"))
    build(corpus, tokenizer, out, threads=1, memory_gib=1, shard_tokens=6)
    index = ["--index", str(out)]
    told = longloom("count", "loom", " the", "loom the", *index)
    assert told.out.splitlines() == [
        "loom             1",
        " the             1",
        "loom the         1",
        'not counted: " loom", 2 times, whose first word is another token behind its blank',
    ]
    assert json.loads(longloom("count", "loom", *index, "--json").out) == {"loom": 1}
    assert longloom("search", "loom", *index).out.splitlines()[-2:] == [
        "1 occurrences in 1 documents",
        told.out.splitlines()[-1],
    ]


def test_unknown_words_are_told_and_long_texts_are_nowhere(longloom: Run, word_index: Path, tmp_path: Path) -> None:
    index = ["--index", str(word_index), "--json"]
    assert json.loads(longloom("count", "the loom", "loom silk", *index).out) == {"the loom": 3, "loom silk": 0}
    long = "the loom " * 1000
    assert json.loads(longloom("count", long, *index).out) == {long: 0}
    path = tmp_path / "p.jsonl"
    for asked in (["count", "the", "weaver"], ["search", "weaver"], ["cooccur", "--pairs", str(path)]):
        path.write_text(json.dumps(["the", "weaver"]))
        done = longloom(*asked, *index)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
        assert "'weaver': holds something that is not in the tokenizer's vocabulary" in done.err
    path.write_text(json.dumps(["the", long]) + "\n" + json.dumps(["the", "silk"]))
    rows = json.loads(longloom("cooccur", "--pairs", str(path), *index).out)["rows"]
    assert [row["both"] for row in rows] == [0, 1]
