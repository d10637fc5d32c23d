"""LongBench v2: prompt, extraction, official scores, records, and bad inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from longloom.evals.longbench.v2 import LongBenchV2, accuracy, extract, recognises, request, score
from longloom.evals.suite import Source

ROW = {
    "_id": "1",
    "domain": "Single-Document QA",
    "sub_domain": "Academic",
    "difficulty": "easy",
    "length": "short",
    "question": " What is {it}? ",
    "choice_A": "one\n",
    "choice_B": "two",
    "choice_C": " three",
    "choice_D": "four",
    "answer": "B",
    "context": "\nIt is two.\n",
}

PROMPT = """Please read the following text and answer the question below.

<text>
It is two.
</text>

What is the correct answer to this question: What is {it}?
Choices:
(A) one
(B) two
(C) three
(D) four

Format your response as follows: "The correct answer is (insert answer here)"."""


def predicted(response: str | None, **more: Any) -> dict[str, Any]:
    return {**ROW, "context": "", "response": response, "pred": None, "judge": False, **more}


def numbered(*records: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(records, start=1))


def test_the_official_prompt_and_the_context_s_place() -> None:
    made = request(ROW)
    assert made.prompt == PROMPT
    assert (made.cut, made.chat, made.query) == ("middle", True, "What is {it}?")
    assert made.context is not None
    begin, end = made.context
    assert made.document[begin:end] == "It is two."
    assert made.with_context("No.").prompt == PROMPT.replace("It is two.", "No.")


@pytest.mark.parametrize(
    "context", ["<text>\nIt is two.\n</text>", "What is {it}?", "costs $Q$ or $C_A$", "$", "$DOC$ and $C_D", ""]
)
def test_placeholders_in_a_context_are_replaced_as_officially(context: str) -> None:
    row = {**ROW, "context": context, "question": "a $C_B$ question"}
    expected = PROMPT.replace("It is two.", "$DOC$").replace("What is {it}?", "$Q$")
    for letter, text in zip("ABCD", ("one", "two", "three", "four"), strict=True):
        expected = expected.replace(f"({letter}) {text}", f"({letter}) $C_{letter}$")
    for place, field in [("$DOC$", "context"), ("$Q$", "question"), *((f"$C_{x}$", f"choice_{x}") for x in "ABCD")]:
        expected = expected.replace(place, row[field].strip())
    made = request(row)
    assert made.prompt == expected
    assert made.context is not None
    assert made.prompt[: made.context[0]].endswith("\n\n<text>\n")
    assert made.prompt[made.context[1] :].startswith("\n</text>\n\nWhat is the correct")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("The correct answer is (B)", "B"),
        ("The correct answer is B.", "B"),
        ("**The correct answer is (*C*)**", "C"),
        ("The correct answer is A ... The correct answer is (D)", "D"),  # brackets first, wherever they stand
        ("The correct answer is (A) or The correct answer is (B)", "A"),
        ("The correct answer is Dubai", "D"),
        ("the correct answer is (A)", None),
        ("The correct answer is (E)", None),
        ("The correct answer is (a)", None),
        ("The correct answer is: (A)", None),
        ("The correct answer is\n(A)", None),
        ("The correct answer  is (A)", None),
        ("B", None),
        ("", None),
    ],
)
def test_extraction(response: str, letter: str | None) -> None:
    assert extract(response) == letter


def test_records_ratings_and_groups(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "_id": "2", "difficulty": "hard", "length": "long", "answer": "D"}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    suite = LongBenchV2(Source(data=tmp_path))
    assert (suite.tasks(), suite.metric("all"), suite.max_new_tokens("all")) == (["all"], "accuracy", 128)
    first, second = suite.records("all")
    assert (first["group"], second["group"]) == ("easy/short", "hard/long")
    assert first["requests"][0]["document"] == PROMPT
    ratings = [suite.rate("all", f"The correct answer is ({letter})", first) for letter in "BAC"]
    assert ratings == [{"score": 1.0}, {"score": 0.0}, {"score": 0.0}]
    assert suite.score("all", ratings) == 33.3
    assert suite.rate("all", "", second) == {"score": 0.0}
    assert suite.rate_fixed("all", "B", first) is None
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert LongBenchV2(Source(data=tmp_path / "mine.jsonl")).records("all") == [first, second]


def test_the_hub_s_file_is_read_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.json").write_text(json.dumps([ROW]))
    asked = []

    def download(repository: str, name: str, **kwargs: Any) -> str:
        asked.append((repository, name, kwargs["repo_type"]))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert len(LongBenchV2(Source()).records("all")) == 1
    assert asked == [(LongBenchV2.hub, "data.json", "dataset")]


def test_scores_of_an_official_file() -> None:
    records = [
        predicted("The correct answer is (B)"),
        predicted("The correct answer is (A)", difficulty="hard", length="long"),
        predicted("", difficulty="hard", length="long"),  # a failed call
        predicted("I do not know.", pred="B"),  # the response counts, not what was made of it
        predicted(None, pred="B", difficulty="hard"),
        predicted(None, length="long"),
        {name: value for name, value in predicted("").items() if name != "response"} | {"pred": "B"},
    ]
    expected = {
        "metric": "accuracy",
        "score": 42.9,  # 3 of 7
        "samples": 7,
        "empty": 2,
        "unanswered": 3,
        "breakdown": {"easy": 50.0, "hard": 33.3, "short": 75.0, "medium": None, "long": 0.0},
    }
    assert score("all", numbered(*records), "p") == expected
    assert score("longbench-v2", numbered(*records), "p") == expected
    assert accuracy([1.0, 0.0, 0.0]) == 33.3
    with pytest.raises(ValueError, match="no samples to score, expected at least one"):
        accuracy([])


def test_recognition() -> None:
    assert recognises(predicted("x"))
    assert not recognises(ROW)  # a record, no prediction
    assert not recognises({"pred": "A", "answers": ["A"], "all_classes": None, "length": 9})
    assert not recognises({"query": "q", "gt": "A", "llama_pred": "A", "evaluation": "exam"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"difficulty": "mid"}, r"^p:2: field 'difficulty' is \"mid\", expected one of easy, hard$"),
        ({"length": 12}, r"^p:2: field 'length' is 12, expected one of short, medium, long$"),
        ({"answer": "E"}, r"^p:2: field 'answer' is \"E\", expected one of A, B, C, D$"),
        ({"response": 1}, r"^p:2: field 'response' is 1, expected a string$"),
        ({"response": None, "pred": 1}, r"^p:2: field 'pred' is 1, expected null or a letter"),
    ],
)
def test_bad_predictions(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score("all", numbered(predicted("x"), {**predicted("x"), **change}), "p")


def test_bad_tasks_and_missing_predictions() -> None:
    with pytest.raises(ValueError, match=r"^suite 'longbench-v2' has no task 'qasper'; known: all$"):
        score("qasper", numbered(predicted("x")), "p")
    with pytest.raises(ValueError, match=r"^suite 'longbench-v2' has no task 'x'; known: all$"):
        LongBenchV2(Source()).records("x")
    without = {name: value for name, value in ROW.items() if name != "context"}
    with pytest.raises(ValueError, match=r"^p:1: field 'pred' is missing, expected null or a letter"):
        score("all", numbered(without), "p")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{torn", r"data.json:1: is not JSON \(.*\), expected LongBench v2's data.json$"),
        ("{}", r"data.json: holds a JSON dict, expected a list of records$"),
        ("[]", r"data.json: has no records, expected at least one$"),
        ("[1]", r"data.json: record 1: is a JSON int, expected an object$"),
        (
            json.dumps([ROW, {**ROW, "context": None}]),
            r"data.json: record 2: field 'context' is null, expected a string$",
        ),
        (
            json.dumps([{**ROW, "length": "tiny"}]),
            r"data.json: record 1: field 'length' is \"tiny\", expected one of short",
        ),
        (None, r"cannot read .*data.json: No such file or directory; expected LongBench v2's data.json$"),
    ],
)
def test_bad_data(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        LongBenchV2(Source(data=tmp_path)).records("all")


def test_bad_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps({**ROW, "answer": ""}) + "\n")
    with pytest.raises(ValueError, match=r"mine.jsonl:3: field 'answer' is \"\", expected one of A, B, C, D$"):
        LongBenchV2(Source(data=path)).records("all")
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"mine.jsonl: has no records, expected at least one$"):
        LongBenchV2(Source(data=path)).records("all")
