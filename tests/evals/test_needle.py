"""The needle grid: exact lengths, places, templates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerFast

from longloom.evals.needle.haystack import Stream, documents, insert
from longloom.evals.needle.suite import MAX_NEW_TOKENS, Needle
from longloom.evals.protocol import Request, render
from longloom.evals.suite import Source
from longloom.storage.parquet import FileWriter

PROSE = "The fox jumps. Is it lazy? Yes!\nThe dog sleeps over there. "
CODE = "def value(self):\n    return self.value + 1\n\n"


@pytest.fixture
def essays(tmp_path: Path) -> Path:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name}: " + PROSE * 20)
    return tmp_path


def suite(data: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **options: Any) -> Needle:
    grid = {"lengths": [120, 400], "depths": [0, 50, 100], **options}
    return Needle(Source(data=data, tokenizer=tokenizer, seed=seed, options=grid))


def test_lengths_are_exact_with_template_and_answer(essays: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    records = suite(essays, tokenizer, samples=2).records("single")
    assert [(record["length"], record["depth"]) for record in records] == [
        (length, depth) for length in (120, 400) for _ in range(2) for depth in (0.0, 50.0, 100.0)
    ]
    for record in records:
        request = Request.from_dict(record["requests"][0])
        tokens = len(render(request, tokenizer, request.document))
        assert record["length"] - 3 <= tokens + MAX_NEW_TOKENS <= record["length"]


def test_the_wording_and_the_place(essays: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    records = suite(essays, tokenizer).records("single")[3:]
    places = []
    for record in records:
        context, question = record["requests"][0]["document"].rsplit("\n\n", 1)
        key = re.fullmatch(r"What is the pass key for ([a-z]+-[a-z]+)\?", question)[1]
        (value,) = record["references"]
        assert re.fullmatch(r"\d{5}", value)
        sentence = f"The pass key for {key} is {value}."
        assert context.count(sentence) == 1
        places.append(context.index(sentence) / (len(context) - len(sentence)))
        before = context[: context.index(sentence)].rstrip(" ")
        if record["depth"] == 50:
            assert before[-1] in ".?!\n"
    assert places[0] == 0
    assert 0.4 < places[1] <= 0.55
    assert places[2] == 1


def test_code_takes_a_comment_line(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    text = CODE * 10
    schema = pa.schema([(name, pa.string()) for name in ("id", "source", "text")])
    with FileWriter(tmp_path / "documents-00000.parquet", schema) as writer:
        writer.write([{"id": str(number), "source": "s", "text": text} for number in range(3)])
    for record in suite(tmp_path, tokenizer, style="code").records("single"):
        context = record["requests"][0]["document"].rsplit("\n\n", 1)[0]
        (value,) = record["references"]
        needle = re.search(rf"^# The pass key for [a-z-]+ is {value}\.$", context, flags=re.MULTILINE)[0]
        before, after = context.split(needle)
        assert before == "" or before.endswith("\n")
        if record["depth"] == 100:
            assert after == ""
            before = before[:-1]
        # Without the needle's line, the code is whole.
        assert "\n\n".join([text] * 3).startswith(before + after[1:])


def test_the_seed_draws_the_keys(essays: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    first = suite(essays, tokenizer).records("single")
    assert suite(essays, tokenizer).records("single") == first
    other = suite(essays, tokenizer, seed=1).records("single")
    assert [r["references"] for r in other] != [r["references"] for r in first]


def test_own_templates(essays: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    own = {"needle": "Eat a sandwich.", "question": "What to do?", "answer": "sandwich"}
    grid = suite(essays, tokenizer, depths=[100], **own)
    record = grid.records("single")[0]
    assert record["requests"][0]["document"].endswith(" Eat a sandwich.\n\nWhat to do?")
    assert grid.rate("single", "A SANDWICH", record) == {"score": 1.0}
    assert grid.score("single", [{"score": 1.0}, {"score": 0.0}]) == 50.0


@pytest.mark.parametrize(
    ("at", "depth", "expected"),
    [
        (0, 0, "N. One two. Three!\nFour"),
        (5, 20, "N. One two. Three!\nFour"),
        (8, 30, "One two. N. Three!\nFour"),
        (12, 50, "One two. N. Three!\nFour"),
        (16, 60, "One two. Three!\nN. Four"),
        (20, 100, "One two. Three!\nFour N."),
    ],
)
def test_insertion_goes_back_to_a_sentence_end(at: int, depth: float, expected: str) -> None:
    assert insert("One two. Three!\nFour", "N.", at=at, depth=depth, style="prose") == expected


def test_insertion_into_code_goes_back_to_a_line_end() -> None:
    assert insert("a = 1\nb = 2.5\n", "N.", at=9, depth=60, style="code") == "a = 1\n# N.\nb = 2.5\n"
    assert insert("a = 1\nb = 2.5", "N.", at=0, depth=0, style="code") == "# N.\na = 1\nb = 2.5"
    assert insert("a = 1\nb", "N.", at=0, depth=100, style="code") == "a = 1\nb\n# N."


def test_documents_are_dealt_in_order_and_again(essays: Path) -> None:
    stream = Stream(essays)
    assert [stream.next()[0] for _ in range(5)] == ["a", "b", "a", "b", "a"]
    (essays / "a.txt").write_text(" \n")
    assert [text[0] for text in documents(essays)] == ["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": None}, "lengths is None, expected a list of numbers from 1"),
        ({"lengths": [0]}, "lengths holds 0, expected numbers from 1"),
        ({"lengths": [1.5]}, "lengths holds 1.5"),
        ({"depths": [101]}, "depths holds 101, expected numbers from 0 to 100"),
        ({"depths": []}, r"depths is \[\], expected a list"),
        ({"samples": 0}, "samples holds 0"),
        ({"style": "verse"}, "style is 'verse', expected one of prose, code"),
        ({"needle": "{city}"}, "needle is '{city}', expected a text with {key} and {value}"),
        ({"colour": 1}, "suite 'needle' has no option 'colour'; its options: lengths, depths, samples"),
    ],
)
def test_bad_options(essays: Path, tokenizer: PreTrainedTokenizerFast, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite(essays, tokenizer, **options)


def test_impossible_lengths_and_missing_texts(
    essays: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=r"length 60 is too short: .* expected more than \d+"):
        suite(essays, tokenizer, lengths=[60]).records("single")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match=r"has no text, expected a corpus"):
        suite(empty, tokenizer).records("single")
    with pytest.raises(ValueError, match="needs the tokenizer"):
        Needle(Source(data=essays, options={"lengths": [100], "depths": [0]})).records("single")


def test_hidden_files_are_no_documents(essays: Path) -> None:
    expected = list(documents(essays))
    (essays / "._a.txt").write_bytes(b"\xb0\x00")
    assert list(documents(essays)) == expected
