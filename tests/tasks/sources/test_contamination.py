"""Shares of windows against brute force; planted records are flagged and clean ones are not; parts and short texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longloom.evals.protocol import Request
from longloom.evals.suite import make_record
from longloom.storage.stats import Stats
from longloom.tasks.ngrams.encode import ByteEncoder
from longloom.tasks.sources.contamination import build
from longloom.tasks.sources.located import Corpus, open_corpus
from longloom.tasks.sources.measures import MEASURES, NAMES, Measure, measures_for, overlap
from longloom.tasks.sources.records import jsonl_records, record_of

from .brute import BruteIndex
from .conftest import MakeIndex

WORDS = [f"{letter}-word" for letter in "abcdefghijklmnopqrs"]
PLANTED = " ".join(WORDS)
CLEAN = " ".join(reversed(WORDS))
DOCUMENTS = [f"Some text before. {PLANTED} And after.", "another document with other words in it altogether"]


def looked_up(index: Path, out: Path, records: list[dict[str, Any]], **changes: Any) -> tuple[Stats, Path]:
    out.mkdir(exist_ok=True)
    (out / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    folder = out / "artifact"
    folder.mkdir()
    options: dict[str, Any] = {
        "suite": None,
        "tasks": None,
        "suite_options": {},
        "seed": 0,
        "fields": [],
        "limit": None,
    }
    options |= {"by": ["8-gram", "50-char"]} | changes
    return build(index, out / "questions.jsonl", None, folder, **options), folder


def rows_of(folder: Path, table: str = "contamination") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / f"{table}.parquet").to_pylist()
    return found


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_planted_record_is_flagged_and_a_clean_one_is_not(make_index: MakeIndex, tmp_path: Path, kind: str) -> None:
    records = [{"text": PLANTED}, {"text": CLEAN}, {"text": "yes"}]
    stats, folder = looked_up(make_index(DOCUMENTS, kind), tmp_path / "out", records)
    planted, clean, short = rows_of(folder)
    assert (planted["contaminated"], planted["verdict"]) == (True, "dirty")
    assert planted["id"] == "doc0"
    assert planted["source"] == "file0.txt"
    assert planted["match"] in PLANTED
    assert planted["8-gram_share"] == 1
    assert (clean["contaminated"], clean["verdict"], clean["8-gram_share"], clean["match"]) == (False, "clean", 0, None)
    assert (short["contaminated"], short["verdict"], short["8-gram_share"]) == (False, None, None)
    assert stats.counts == {"records": 3, "contaminated": 1, "suspicious": 0, "too_short": 1}
    measured = planted["50-char_share"]
    assert measured == 1 if kind == "bytes" else measured is None
    assert stats.values["measures"] == (list(NAMES) if kind == "bytes" else ["13-gram", "8-gram"])


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_chinese_and_japanese_have_a_word_a_character(make_index: MakeIndex, tmp_path: Path, kind: str) -> None:
    planted = ["织机上的经纱与纬纱彼此交错成布", "たて糸とよこ糸が交わり布になる"]
    clean = ["这句话在语料库里从来没有出现过", "この文章はどこにも書かれていない"]
    records = [{"text": text} for text in (*planted, *clean)]
    stats, folder = looked_up(make_index([f"前文：{text}。后文" for text in planted], kind), tmp_path / "out", records)
    rows = rows_of(folder)
    assert [row["contaminated"] for row in rows] == [True, True, False, False]
    assert [row["8-gram_windows"] for row in rows] == [len(record["text"]) - 7 for record in records]
    assert [row["8-gram_share"] for row in rows] == [1, 1, 0, 0]
    assert rows[0]["match"] == planted[0][:8]
    assert stats.counts["too_short"] == 0


def test_words_of_several_scripts() -> None:
    text = "用 Python3写，ok です"
    words = Measure("m", 1, "words", 0, 0).windows(text)
    assert [text[begin:end] for begin, end in words] == ["用", "Python3", "写", "，ok", "で", "す"]


def test_a_token_that_reaches_beyond_a_window_counts_whole() -> None:
    """Tokens of two characters: a window that begins within one stands there only if that token does."""

    class Pairs(ByteEncoder):
        def locate(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
            places = [(place, min(place + 2, len(text))) for place in range(0, len(text), 2)]
            return [sum(map(ord, text[slice(*place)])) for place in places], places

    encoder, three = Pairs(), Measure("m", 3, "words", 0, 0)
    index: Any = BruteIndex([encoder.locate("一二三四五六")[0]])
    corpus = Corpus(index, encoder)
    assert overlap(corpus, three, ["一二三四五六"])[:2] == (4, 4)
    assert overlap(corpus, three, ["七二三四五八"])[:2] == (4, 0)  # of every window a whole token stands there


@settings(deadline=None, max_examples=100)
@given(
    documents=st.lists(st.text(alphabet="ab \n", max_size=20), min_size=1, max_size=3),
    text=st.text(alphabet="ab \né", max_size=15),
    size=st.integers(1, 4),
    unit=st.sampled_from(["words", "characters"]),
)
def test_shares_are_those_of_brute_force(documents: list[str], text: str, size: int, unit: str) -> None:
    index: Any = BruteIndex([list(document.encode()) for document in documents])
    measured = overlap(Corpus(index, ByteEncoder()), Measure("m", size, unit, 0.2, 0.8), [text])
    if unit == "characters":
        windows = [text[place : place + size] for place in range(len(text) - size + 1)]
    else:
        words = text.split()
        windows = []
        place = 0
        begins = []
        for word in words:
            place = text.index(word, place)
            begins.append((place, place + len(word)))
            place += len(word)
        for first in range(len(words) - size + 1):
            windows.append(text[begins[first][0] : begins[first + size - 1][1]])
    held = [any(window in document for document in documents) for window in windows]
    assert (measured.windows, measured.found) == (len(windows), sum(held))
    if measured.example:
        assert measured.example[0] == windows[held.index(True)]


@pytest.mark.parametrize(
    ("name", "found", "verdict"),
    [
        *(
            ("50-char", 0, "clean"),
            ("50-char", 19, "clean"),
            ("50-char", 20, "suspicious"),
            ("50-char", 79, "suspicious"),
        ),
        *(("50-char", 80, "dirty"), ("50-char", 100, "dirty"), ("8-gram", 69, "suspicious"), ("8-gram", 70, "dirty")),
        *(("8-gram", 19, "clean"), ("13-gram", 0, "clean"), ("13-gram", 1, "dirty")),
    ],
)
def test_verdicts_follow_their_sources(name: str, found: int, verdict: str) -> None:
    [measure] = [measure for measure in MEASURES if measure.name == name]
    assert measure.verdict(found, 100) == verdict
    assert measure.verdict(0, 0) is None


def test_only_the_deciding_measures_flag(make_index: MakeIndex, tmp_path: Path) -> None:
    text = f"{CLEAN} {CLEAN} {CLEAN} {PLANTED} {CLEAN} {CLEAN} {CLEAN}"  # a single passage of many words
    index = make_index(DOCUMENTS, "bytes")
    _, folder = looked_up(index, tmp_path / "shares", [{"text": text}])
    [row] = rows_of(folder)
    assert (row["contaminated"], row["13-gram_verdict"]) == (False, "dirty")
    _, folder = looked_up(index, tmp_path / "single", [{"text": text}], by=["13-gram"])
    assert rows_of(folder)[0]["contaminated"]


def test_parts_are_told_apart_and_summed(make_index: MakeIndex, tmp_path: Path) -> None:
    _, folder = looked_up(
        make_index(DOCUMENTS, "bytes"), tmp_path / "out", [{"q": CLEAN, "a": [PLANTED, "no"], "n": 3}]
    )
    [row] = rows_of(folder)
    parts = {(part["part"], part["measure"]): part for part in rows_of(folder, "parts")}
    assert parts["a", "8-gram"]["share"] == 1
    assert parts["q", "8-gram"]["share"] == 0
    assert {part for part, _ in parts} == {"q", "a"}
    assert row["8-gram_share"] == pytest.approx(0.5)
    assert (row["verdict"], row["contaminated"]) == ("suspicious", False)


def test_windows_do_not_reach_from_one_text_into_the_next(make_index: MakeIndex) -> None:
    corpus = open_corpus(make_index([PLANTED], "bytes"))
    halves = [" ".join(WORDS[:7]), " ".join(WORDS[7:14])]
    assert overlap(corpus, MEASURES[1], halves).windows == 0
    assert overlap(corpus, MEASURES[1], [" ".join(halves)]).found == 7


def test_fields_and_limit_choose(make_index: MakeIndex, tmp_path: Path) -> None:
    records = [{"q": CLEAN, "a": PLANTED}] * 3
    stats, folder = looked_up(make_index(DOCUMENTS, "bytes"), tmp_path / "out", records, fields=["q"], limit=2)
    assert stats.counts["records"] == 2
    assert not any(row["contaminated"] for row in rows_of(folder))


def test_bad_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"q": "x"}\n{"p": "y"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: field 'q' is missing"):
        list(jsonl_records(path, ["q"], None))
    path.write_text('{"n": 1}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: holds no text"):
        list(jsonl_records(path, [], None))


def test_no_records_and_unanswerable_measures_are_refused(make_index: MakeIndex, tmp_path: Path) -> None:
    index = make_index(DOCUMENTS, "bpe")
    with pytest.raises(ValueError, match="holds no records"):
        looked_up(index, tmp_path / "none", [])
    with pytest.raises(ValueError, match="cannot be asked for characters"):
        measures_for(open_corpus(index), ["50-char"])
    with pytest.raises(ValueError, match=r"unknown measure '7-gram'; known: 13-gram"):
        measures_for(open_corpus(index), ["7-gram"])


def test_a_suites_record_has_its_own_texts_without_the_prompt() -> None:
    request = Request(document="Read this: CONTEXT. Question: Q?", context=(11, 18), query="Q?", before="Instructions.")
    record = record_of("s", "t", 3, make_record([request, request], ["A", "A", " "]))
    assert record.parts == {"context": ["CONTEXT"], "question": ["Q?"], "answer": ["A"]}
    other = record_of("s", "t", 3, make_record([Request(document="plain")], ["A"]))
    assert other.parts == {"context": ["plain"], "question": [], "answer": ["A"]}
    assert record.digest != other.digest


def test_a_words_own_tokens_are_looked_up_where_the_vocabulary_lacks_one() -> None:
    class Lacking(ByteEncoder):
        unknown = ord("?")

    index: Any = BruteIndex([list(b"a ? b")])
    assert overlap(Corpus(index, Lacking()), Measure("m", 1, "words", 0, 0), ["a ? b"]).found == 2


def test_a_folder_of_json_lines_is_a_set_of_tasks(make_index: MakeIndex, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, text in (("a", PLANTED), ("b", CLEAN)):
        (data / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    out = tmp_path / "folder"
    out.mkdir()
    options: dict[str, Any] = {"suite": None, "tasks": None, "suite_options": {}, "seed": 0, "limit": None}
    build(make_index(DOCUMENTS, "bpe"), data, None, out, fields=["text"], by=["8-gram"], **options)
    assert [(row["task"], row["contaminated"]) for row in rows_of(out)] == [("a", True), ("b", False)]
