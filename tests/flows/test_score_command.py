"""`longloom score`: official files of predictions of every suite, the score on its scale, and one line for bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .command import Done, Run

Row = dict[str, Any]


class File(NamedTuple):
    """A file of predictions: task, records as the official script writes them, and what the command says of them."""

    task: str
    records: list[Row]
    expected: Row


_V2 = {
    "_id": "1",
    "domain": "Single-Document QA",
    "sub_domain": "Literary",
    "context": "It is",
    "question": "Who?",
    "choice_A": "Ada",
    "choice_B": "Bo",
    "choice_C": "Cy",
    "choice_D": "Di",
    "difficulty": "easy",
    "length": "short",
}
_DIALOGUE = {"messages": [{"role": "user", "content": "How?"}], "ctxs": [{"title": "T", "text": "By mail."}]}
_RULER = {"input": "A special magic number", "others": {"id": 0}, "truncated": -1, "length": 4096}

FILES = {
    "longbench": File(
        "gov_report",
        [
            {
                "pred": "the cat sat on the mat",
                "answers": ["the cat is on the mat"],
                "all_classes": None,
                "length": 9000,
            },
            {"pred": "\n", "answers": ["a cat"], "all_classes": None, "length": 9000},
        ],
        # rouge-l of sets of words: 4 of 5 and 5, 0.8; of sequences: 5 of 6 and 6, 0.8333.
        {"metric": "rouge", "score": 40.0, "samples": 2, "empty": 1, "fixed": {"rouge_fixed": 41.67}},
    ),
    "longbench-e": File(
        "qasper",
        [
            {"pred": "Paris is the capital", "answers": ["Rome", "Paris"], "all_classes": None, "length": 3999},
            {"pred": "Paris", "answers": ["Paris"], "all_classes": None, "length": 8000},
            {"pred": "", "answers": ["Paris"], "all_classes": None, "length": 8001},
        ],
        {
            "metric": "qa_f1",
            "score": 50.0,
            "samples": 3,
            "empty": 1,
            "buckets": {"0-4k": 50.0, "4-8k": None, "8k+": 50.0},
        },
    ),
    "longbench-v2": File(
        "all",
        [
            {**_V2, "answer": "B", "response": "**The correct answer is (B)**", "pred": "B", "judge": True},
            {**_V2, "answer": "C", "response": "The correct answer is B", "pred": "B", "judge": False},
            {**_V2, "answer": "D", "response": "It is (D)", "pred": None, "judge": False, "difficulty": "hard"},
        ],
        {
            "metric": "accuracy",
            "score": 33.3,
            "samples": 3,
            "empty": 0,
            "unanswered": 1,
            "breakdown": {"easy": 50.0, "hard": 0.0, "short": 33.3, "medium": None, "long": None},
        },
    ),
    "leval": File(
        "quality",
        [
            {"query": "Who?", "gt": "(B) Bo", "llama2-7b_pred": "(B) Bo", "evaluation": "exam"},
            # "Answer: C" is the letter A of "Answer", officially.
            {"query": "Who?", "gt": "(C) Cy", "llama2-7b_pred": "Answer: C", "evaluation": "exam"},
            {"query": "Who?", "gt": "(C) Cy", "llama2-7b_pred": "", "evaluation": "LLM"},
        ],
        {
            "metric": "exam",
            "score": 50.0,
            "samples": 2,
            "skipped": 1,
            "empty": 0,
            "fixed": {"exam_fixed": 100.0},
        },
    ),
    "infinitebench": File(
        "code_run",
        [
            {"id": 0, "prediction": " The value is -7.", "ground_truth": -7},
            {"id": 1, "prediction": "4.0", "ground_truth": [4]},  # officially the 0 behind the full stop
            {"id": 2, "prediction": " ", "ground_truth": 4},
            {"id": 3, "prediction": "4", "ground_truth": 5},
        ],
        {"metric": "code_run", "score": 0.25, "samples": 4, "empty": 1, "fixed": {"code_run_fixed": 0.5}},
    ),
    "chatrag": File(
        "quac",
        [
            # Punctuation is a space: e, mail of by, e, mail.
            {**_DIALOGUE, "answers": ["E mail.", "x"], "prediction": "by e-mail"},
            {
                **_DIALOGUE,
                "answers": ["Sorry. I cannot find the answer based on the context."],
                "prediction": "There is no mail",
            },
            {**_DIALOGUE, "answers": [" "], "prediction": "By mail"},
        ],
        {
            "metric": "f1",
            "score": pytest.approx(90.0, abs=1e-9),
            "samples": 2,
            "skipped": 1,
            "empty": 0,
            "unanswerable": {
                "score": 100.0,
                "unanswerable": 100.0,
                "answerable": 100.0,
                "unanswerable_samples": 1,
                "answerable_samples": 2,
            },
        },
    ),
    "ruler": File(
        "niah_multivalue",
        [
            {"index": 0, "pred": " 12, 34 and 56", "outputs": ["12", "34", "56", "78"], **_RULER},
            {"index": 1, "pred": "It is 1234.", "outputs": ["12", "34"], **_RULER},  # containment knows no bounds
            {"index": 2, "pred": "\x00", "outputs": ["12"], **_RULER},
        ],
        {
            "metric": "string_match_all",
            "score": 58.33,
            "samples": 3,
            "empty": 1,
            "fixed": {"string_match_all_fixed": 25.0},
        },
    ),
}
SUITES = list(FILES)


@pytest.fixture
def score(longloom: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `longloom score` on a file."""
    monkeypatch.chdir(tmp_path)

    def call(suite: str, task: str, content: str | list[Row], *more: str, name: str = "p.jsonl") -> Done:
        text = content if isinstance(content, str) else "".join(json.dumps(record) + "\n" for record in content)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return longloom("score", "--suite", suite, "--task", task, "--predictions", name, *more)

    return call


def refused(done: Done) -> str:
    """The one line of a command that was refused."""
    code, out, error = done
    assert (code, out, error.count("\n")) == (2, "", 1), done
    return error.removeprefix("longloom: ").strip()


@pytest.mark.parametrize("suite", SUITES)
def test_an_official_file(score: Run, suite: str) -> None:
    file = FILES[suite]
    code, out, error = score(suite, file.task, file.records, "--json")
    assert (code, error, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == {"suite": suite, "task": file.task, **file.expected}
    code, out, error = score(suite, file.task, file.records)
    assert (code, error) == (0, "")
    found = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert list(found) == ["suite", "task", *file.expected]
    assert float(found["score"]) == file.expected["score"]


def test_official_text_of_predictions_alone(score: Run, tmp_path: Path) -> None:
    records = [{**_DIALOGUE, "answers": [answer]} for answer in ("by mail", "by foot", "by car")]
    (tmp_path / "coqa").mkdir()
    (tmp_path / "coqa" / "dev.json").write_text(json.dumps(records))
    done = score("chatrag", "coqa", "by mail\nby train\n", "--data", str(tmp_path), "--json", name="coqa_output.txt")
    assert (done.code, done.err) == (0, "")
    expected = {"metric": "f1", "score": 75.0, "samples": 2, "skipped": 0, "empty": 0, "missing": 1}
    assert json.loads(done.out) == {"suite": "chatrag", "task": "coqa", **expected}
    without = refused(score("chatrag", "coqa", "by mail\n", name="coqa_output.txt"))
    assert without == "coqa_output.txt: has predictions alone, expected the official records of 'chatrag' as data"
    given = refused(score("chatrag", "coqa", FILES["chatrag"].records, "--data", str(tmp_path)))
    assert given == f"data is {tmp_path}, but p.jsonl has the answers in it, expected no data"


@pytest.mark.parametrize("asked", SUITES)
def test_the_file_of_another_suite(score: Run, asked: str) -> None:
    for suite, file in FILES.items():
        if {suite, asked} <= {"longbench", "longbench-e"}:  # one format
            continue
        known = "longbench" if suite == "longbench-e" else suite
        fields = ", ".join(file.records[0])
        expected = f"p.jsonl:1: looks like a prediction file of the suite '{known}' (fields {fields}), expected one of "
        if suite != asked:
            assert refused(score(asked, FILES[asked].task, file.records)) == f"{expected}'{asked}'"


@pytest.mark.parametrize("line", [1, 2])
@pytest.mark.parametrize(
    ("suite", "field", "expected"),
    [
        ("longbench", "answers", "a list of strings, at least one"),
        ("longbench", "all_classes", "null or a list of strings"),
        ("longbench-e", "length", "a whole number"),
        ("longbench-v2", "answer", "one of A, B, C, D"),
        ("leval", "gt", "a string that is not blank"),
        ("leval", "evaluation", "a string that is not blank"),
        ("infinitebench", "prediction", "a string"),
        ("infinitebench", "ground_truth", "a whole number, or a list that begins with one"),
        ("chatrag", "answers", "a list of strings, at least one"),
        ("chatrag", "prediction", "a string"),
        ("ruler", "pred", "a string"),
        ("ruler", "outputs", "a list of strings, at least one"),
    ],
)
def test_a_missing_field(score: Run, suite: str, field: str, expected: str, line: int) -> None:
    file = FILES[suite]
    records = [dict(record) for record in file.records]
    del records[line - 1][field]
    assert (
        refused(score(suite, file.task, records)) == f"p.jsonl:{line}: field {field!r} is missing, expected {expected}"
    )


@pytest.mark.parametrize(("line", "field"), [(1, "<model>_pred"), (2, "llama2-7b_pred")])
def test_a_missing_answer_of_leval_s_model(score: Run, line: int, field: str) -> None:
    records = [dict(record) for record in FILES["leval"].records]
    del records[line - 1]["llama2-7b_pred"]
    assert f"p.jsonl:{line}: field '{field}' is missing, expected " in refused(score("leval", "quality", records))


@pytest.mark.parametrize("suite", SUITES)
def test_an_unknown_task(score: Run, suite: str) -> None:
    known = f"suite '{suite}' has no task 'nope'; known: "
    assert refused(score(suite, "nope", FILES[suite].records)).startswith(known)


@pytest.mark.parametrize("suite", SUITES)
def test_files_that_are_none(score: Run, suite: str) -> None:
    task, (first, *_), _ = FILES[suite]
    good = json.dumps(first) + "\n"
    torn = good[: len(good) // 2]
    assert refused(score(suite, task, good + torn)).startswith("p.jsonl:2: is not JSON (")
    assert refused(score(suite, task, good + "\n[1]\n")) == "p.jsonl:3: holds a JSON list, expected an object"
    assert refused(score(suite, task, "\n")) == "p.jsonl: has no predictions, expected at least one line"
