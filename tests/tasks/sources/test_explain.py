"""Explanations on real indexes of bytes and of tokens: spans, ranks, documents, the page and its escapes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.tasks.sources.explain import build, texts_of
from longloom.tasks.sources.located import locate, open_corpus
from longloom.tasks.sources.page import pieces
from longloom.tasks.sources.spans import Unigrams, maximal_spans, whole_words

from .conftest import MakeIndex

QUOTE = "the quick brown fox jumps over the lazy dog"
DOCUMENTS = [
    f"First came {QUOTE}, they say.",
    "the dog of the fox and the fox of the dog are the best",
    f"Then <b>again</b> {QUOTE} & more of the best of the fox.",
    "the cat sat on the mat, and the best of the cats sat there",
]
ANSWER = f"I think {QUOTE}, and the best of the fox. Zyx!"


def explained(index: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    options: dict[str, Any] = {"text": ANSWER, "limit": None, "share": 0.05, "documents": 10, "context": 4}
    answers = changes.pop("answers", None)
    build(index, answers, out, **{**options, **changes})
    found: list[dict[str, Any]] = json.loads((out / "explain.json").read_text())
    return found


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_quoted_sentence_is_the_rarest_span_and_its_documents_are_named(
    make_index: MakeIndex, tmp_path: Path, kind: str
) -> None:
    [one] = explained(make_index(DOCUMENTS, kind), tmp_path / "out")
    first = one["spans"][0]
    assert QUOTE in first["text"]
    assert ANSWER[first["begin"] : first["end"]] == first["text"]
    assert (first["occurrences"], first["in_documents"]) == (1, 1) if "," in first["text"] else (2, 2)
    assert first["matches"][0]["id"] == "doc0"
    assert first["matches"][0]["source"] == "file0.txt"
    assert first["matches"][0]["match"].strip() == first["text"]
    assert one["documents"][0]["id"] == "doc0"
    logs = [span["log_probability"] for span in one["spans"]]
    assert logs == sorted(logs)
    assert len(logs) <= math.ceil(len(locate(open_corpus(make_index(DOCUMENTS, kind)).encoder, ANSWER).tokens) / 20)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_every_span_stands_in_its_documents_and_context_is_cut_there(
    make_index: MakeIndex, tmp_path: Path, kind: str
) -> None:
    [one] = explained(make_index(DOCUMENTS, kind), tmp_path / "out", share=1.0)
    assert len(one["spans"]) == one["found"] >= 3
    for span in one["spans"]:
        for match in span["matches"]:
            text = DOCUMENTS[match["document"]]
            assert match["before"] + match["match"] + match["after"] in text
            assert span["text"] in match["match"]
            assert match["cut_before"] == (not text.startswith(match["before"] + match["match"]))
            assert match["cut_after"] == (not text.endswith(match["match"] + match["after"]))
    assert not any("Zyx" in span["text"] for span in one["spans"])


def test_the_documents_that_hold_most_come_first_and_the_others_are_counted(
    make_index: MakeIndex, tmp_path: Path
) -> None:
    index = make_index(["one two three", "one two three and nine ten eleven"], "bytes")
    [one] = explained(index, tmp_path / "out", text="one two three! nine ten eleven", share=1.0, documents=1)
    spans = {span["text"]: (span["in_documents"], [match["id"] for match in span["matches"]]) for span in one["spans"]}
    assert spans == {"one two three": (2, ["doc1"]), "nine ten eleven": (1, ["doc1"])}
    assert [(entry["id"], entry["characters"]) for entry in one["documents"]] == [("doc1", 28)]
    assert "1 further document" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_quotation_between_chinese_characters_is_found(make_index: MakeIndex, tmp_path: Path, kind: str) -> None:
    quote = "经纱与纬纱彼此交错"
    index = make_index([*DOCUMENTS, f"甲{quote}乙"], kind)
    [one] = explained(index, tmp_path / "out", text=f"丙{quote}丁", share=1.0)
    assert [(span["text"], span["occurrences"]) for span in one["spans"]] == [(quote, 1)]
    assert one["spans"][0]["matches"][0]["before"].endswith("甲")


def test_spans_are_the_same_on_tokens_whose_first_word_lacks_its_space(make_index: MakeIndex) -> None:
    corpus = open_corpus(make_index(DOCUMENTS, "bpe"))
    located = locate(corpus.encoder, ANSWER)
    spans = whole_words(located, maximal_spans(corpus.index, located.tokens, corpus.encoder.unknown))
    for begin, end in spans:
        tokens = located.tokens[slice(*located.tokens_within(begin, end))]
        assert corpus.index.count(tokens) > 0
        assert Unigrams(corpus.index).log_probability(tokens) < 0


def test_the_page_marks_what_is_found_and_escapes_what_is_shown(make_index: MakeIndex, tmp_path: Path) -> None:
    text = f"<script>x</script> <b>again</b> {QUOTE} & more"
    [one] = explained(make_index(DOCUMENTS, "bytes"), tmp_path / "out", text=text)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<script>") == 1  # its own
    assert "&lt;script&gt;" in page
    assert 'id="span-1-1"' in page
    assert "file2.txt" in page
    assert "".join(piece.text for piece in pieces(one)) == text
    ranked = [piece for piece in pieces(one) if piece.rank == 1]
    assert "".join(piece.text for piece in ranked) == one["spans"][0]["text"]


def test_a_text_without_matches_has_none(make_index: MakeIndex, tmp_path: Path) -> None:
    [one] = explained(make_index(DOCUMENTS, "bytes"), tmp_path / "out", text="ŽŽŽ QQQ")
    assert (one["spans"], one["documents"], one["found"], one["covered"]) == ([], [], 0, 0.0)
    assert "No span" in (tmp_path / "out" / "index.html").read_text()


def test_equal_inputs_equal_bytes(make_index: MakeIndex, tmp_path: Path) -> None:
    index = make_index(DOCUMENTS, "bytes")
    for name in ("one", "two"):
        explained(index, tmp_path / name)
    for file in ("explain.json", "index.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def samples(folder: Path, answers: list[str]) -> Path:
    folder.mkdir()
    rows = [
        {
            "suite": "s",
            "task": "t",
            "policy": "full",
            "sample": number // 2,
            "metric": f"m{number % 2}",
            "prediction": text,
        }
        for number, text in enumerate(answers)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    return folder


def test_answers_of_an_evaluation_are_explained_once(make_index: MakeIndex, tmp_path: Path) -> None:
    folder = samples(tmp_path / "evaluation", [QUOTE, QUOTE, " ", " ", "the cat sat", "the cat sat"])
    assert texts_of(folder, None) == [("s t full 0", QUOTE), ("s t full 2", "the cat sat")]
    found = explained(make_index(DOCUMENTS, "bytes"), tmp_path / "out", answers=folder, text=None, limit=1)
    assert [one["name"] for one in found] == ["s t full 0"]


def test_what_cannot_be_explained_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no answer"):
        texts_of(samples(tmp_path / "empty", ["", " "]), None)
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"blank\.txt: is blank"):
        texts_of(tmp_path / "blank.txt", None)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="is not UTF-8"):
        texts_of(tmp_path / "latin.txt", None)
    with pytest.raises(FileNotFoundError):
        texts_of(tmp_path / "none.txt", None)
