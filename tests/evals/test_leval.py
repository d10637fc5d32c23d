"""L-Eval's official metrics with their quirks, its closed-ended tasks, the official score."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedTokenizerFast

from longloom.evals.leval.metrics import (
    chosen_letters,
    clean_code,
    exact_match,
    exam,
    f1,
    final_number,
    rouge_l,
    verdicts,
)
from longloom.evals.leval.suite import LEval, official_score
from longloom.evals.leval.tasks import CLOSED, INSTRUCTIONS, TASK_METRICS
from longloom.evals.protocol import Request, prepare
from longloom.evals.suite import Source

DATA = Path(__file__).resolve().parents[2] / "../shared/data/leval/Closed-ended-tasks"


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("", "AB", 0.25),  # nothing is a subset
        ("the", "AB", 0.25),
        ("A", "AB", 0.25),
        ("AB", "AB", 1.0),
        ("AC", "AB", 0.0),
        ("420", "42", 0.0),
        ("x420", "42", 1.0),
        ("42.0", "42", 1.0),
        ("The Role of Art", "the role of art", 1.0),
        ("a\nthe roleofart!\nno", "The role of art", 1.0),  # the first line of more than one character
        ("no\nthe role of art", "The role of art", 0.0),
    ],
)
def test_exact_match(prediction: str, answer: str, expected: float) -> None:
    assert exact_match(prediction, answer) == expected


@pytest.mark.parametrize(
    ("task", "response", "expected"),
    [
        ("quality", "Answer: C", "A"),  # the A of "Answer"
        ("quality", "(C) because", "C"),
        ("quality", "no letter", "A"),
        ("quality", "  ", "None"),
        ("quality", "BC", "BC"),  # a piece of "ABCD" is taken as it is
        ("tpo", "DB", "D"),
        ("coursera", "DB", "BD"),
        ("coursera", "BD. Because A", "BD"),
        ("coursera", "A, C. and D) are right", "ACD"),  # one letter in front is joined by the others
        ("coursera", "the answer is B", "B"),  # no mark behind it: the first run of letters
        ("coursera", "the answer is BA!", "BA"),
        ("coursera", "B. \nQuestion 2: A. ", "B"),
        ("coursera", "nothing", "A"),
    ],
)
def test_chosen_letters(task: str, response: str, expected: str) -> None:
    assert chosen_letters(task, response) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is $1,200.50", "1200"),
        ("6 + 12 = 18. The answer is 18.", "18"),
        ("so 3 and then 4 apples\n\n5", "4"),
        ("none", ""),
    ],
)
def test_final_number(text: str, expected: str) -> None:
    assert final_number(text) == expected


def test_code() -> None:
    assert clean_code("1.05") == "15"
    assert clean_code("[ [1,\n 2.0] ]") == "[[1 2]]"
    # The last words, three more than the official output has ...
    assert exam("codeU", "I think the value of the result is 7", "7", position=0) == {"score": 1.0}
    assert exam("codeU", "7 one two three four five", "7", position=0) == {"score": 0.0}
    # ... or the first ones after "the final output".
    assert exam("codeU", "the final output is 7 as I said before all this", "7", position=0) == {"score": 1.0}


def test_science_fiction_has_two_verdicts() -> None:
    assert verdicts("It is True! [fact: That is false.]") == ("true", "false")
    assert verdicts("Untrue, false [fact: ]") == ("true", "<error>")
    assert verdicts("no idea") == ("<error>", "<error>")
    parts = exam("sci_fi", "True [fact: True]", "True [fact: False]", position=0)
    assert parts == {"loyalty": 1.0, "fact": 0.0}
    with pytest.raises(ValueError, match="expected 'True \\[fact: False\\]'"):
        exam("sci_fi", "True", "True", position=0)


def test_topics_are_averaged_by_rank() -> None:
    ratings = [
        exam("topic_retrieval_longchat", said, "topic", position=i)
        for i, said in enumerate(["topic", "x", "x", "topic"])
    ]
    assert ratings == [{"first": 1.0}, {"second": 0.0}, {"third": 0.0}, {"first": 1.0}]
    assert official_score(ratings) == pytest.approx(100 / 3)
    assert official_score([{"score": 1.0}, {"score": 0.0}, {"score": 0.0}]) == 33.3333


def test_options_and_numbers_of_the_answers() -> None:
    assert exam("quality", "B", "(B) Their subconscious knew", position=0) == {"score": 1.0}
    assert exam("gsm100", "The answer is 18.", "18", position=0) == {"score": 1.0}


@settings(max_examples=200, deadline=None)
@given(*[st.lists(st.sampled_from(["a", "bb", "Bb", "c3", "d-e", "é", "", "\n", "."]), max_size=20).map(" ".join)] * 2)
def test_rouge_is_the_package_s(prediction: str, answer: str) -> None:
    package = RougeScorer(["rougeL"], use_stemmer=False).score(answer, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, answer) == package


def test_f1_and_rouge() -> None:
    assert f1("The cat sat", "a cat") == pytest.approx(2 / 3)
    # rouge_score: words of the longest common subsequence 2, precision 2/3, recall 1.
    assert rouge_l("the cat sat", "The cat") == pytest.approx(0.8)


def document(**change: Any) -> dict[str, Any]:
    return {
        "instructions": [
            "1. x, True or False? Answer this question based on the world described in the document.",
            "2. y",
        ],
        "outputs": ["True [fact: False]", "False [fact: False]"],
        "input": "A story.",
        "evaluation": "exam",
        **change,
    }


def write(folder: Path, task: str, *documents: dict[str, Any]) -> Source:
    folder.mkdir(exist_ok=True)
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    return Source(data=folder)


def test_one_sample_a_question_and_judged_ones_left_out(tmp_path: Path) -> None:
    suite = LEval(write(tmp_path, "sci_fi", document(), document(evaluation="LLM"), document()))
    assert suite.tasks() == ["sci_fi"]
    records = suite.records("sci_fi")
    assert [(record["position"], record["length"]) for record in records] == [(0, 2), (1, 2), (2, 2), (3, 2)]
    story, fact = records[0]["requests"]
    assert story["before"].startswith(INSTRUCTIONS["sci_fi"])
    assert story["before"].endswith("Document is as follows. ")
    assert (story["document"], story["prefix"], story["cut"]) == ("A story.", "\nAnswer:", "words_right")
    question = document()["instructions"][0]
    assert story["after"] == (
        f" \nQuestion: {question}.  Please directly give the answer without any additional output or explanation "
    )
    assert story["query"] == question
    assert fact["document"] == (
        "1. x, True or False? Answer this question based on the real-world knowledge and facts up until your last "
        "trainingPlease directly answer without any additional output or explanation. "
    )
    assert (fact["chat"], fact["prefix"], fact["context"], fact["query"]) == (False, "\nAnswer:", None, "")
    prediction = suite.answer(["True", "False"])
    assert suite.rate("sci_fi", prediction, records[0]) == {"loyalty": 1.0, "fact": 1.0}


def test_plain_tasks_and_cuts(tmp_path: Path) -> None:
    suite = LEval(write(tmp_path, "codeU", document()))
    (request,) = suite.records("codeU")[1]["requests"]
    assert (request["after"], request["cut"], request["prefix"]) == ("\n\n2. y", "words_left", "")


def test_retrieval_can_replace_the_document(tmp_path: Path) -> None:
    suite = LEval(write(tmp_path, "tpo", document()))
    request = Request.from_dict(suite.records("tpo")[1]["requests"][0])
    assert (request.context, request.query) == ((0, len("A story.")), "2. y")
    assert request.with_context("A passage.").prompt == request.prompt.replace("A story.", "A passage.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": ["True"]}, r"sci_fi.jsonl:1: field 'outputs' has 1 entries, expected 2 as 'instructions'"),
        ({"instructions": "1. x"}, r"sci_fi.jsonl:1: field 'instructions' is \"1. x\", expected a list of strings"),
        ({"evaluation": "LLM"}, r"sci_fi.jsonl: has no records with evaluation 'exam'"),
        ({"evaluation": "f1"}, r"sci_fi.jsonl:1: field 'evaluation' is 'f1', expected 'exam' \(or LLM or human\)$"),
        ({"input": None}, r"sci_fi.jsonl:1: field 'input' is null, expected a string"),
        (
            {"outputs": ["True [fact: False]", "True"]},
            r"sci_fi.jsonl:1: field 'outputs', entry 2, is 'True', expected 'True \[fact: False\]' or the like$",
        ),
        (
            {"outputs": [" ", "True [fact: False]"]},
            r"sci_fi.jsonl:1: field 'outputs', entry 1, is ' ', expected an answer that is not blank$",
        ),
    ],
)
def test_bad_documents(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LEval(write(tmp_path, "sci_fi", document(**change))).records("sci_fi")


@pytest.mark.parametrize("task", [task for task in CLOSED if task != "sci_fi"])
def test_a_blank_answer_to_a_closed_question_is_refused(tmp_path: Path, task: str) -> None:
    suite = LEval(write(tmp_path, task, document(outputs=["A", "B"]), document(outputs=["A", "\t"])))
    expected = rf"{task}.jsonl:2: field 'outputs', entry 2, is '\\t', expected an answer that is not blank$"
    with pytest.raises(ValueError, match=expected):
        suite.records(task)


def test_hidden_files_are_no_records(tmp_path: Path) -> None:
    suite = LEval(write(tmp_path, "sci_fi", document()))
    (tmp_path / "._sci_fi.jsonl").write_bytes(b"\xb0\x00")
    (tmp_path / ".quality.jsonl").write_text(json.dumps(document()))
    with pytest.raises(ValueError, match=r"has no quality.jsonl, only records of sci_fi$"):
        suite.records("quality")


def test_unknown_tasks(tmp_path: Path) -> None:
    suite = LEval(write(tmp_path, "sci_fi", document()))
    for call in (suite.metric, suite.max_new_tokens, suite.records):
        with pytest.raises(ValueError, match=r"suite 'leval' has no task 'x'; known: coursera, .*, tv_show_summ"):
            call("x")
    with pytest.raises(ValueError, match=r"has no quality.jsonl, only records of sci_fi"):
        suite.records("quality")
    write(tmp_path / "other", "mine", document())
    with pytest.raises(ValueError, match=r"other: has records of mine, expected coursera, "):
        LEval(Source(data=tmp_path / "other"))
    with pytest.raises(ValueError, match=r"nowhere: no <task>.jsonl is there"):
        LEval(Source(data=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"suite 'leval': lie is 'no', expected true or false"):
        LEval(Source(data=tmp_path, options={"lie": "no"}))
    assert len(TASK_METRICS) == 20
    assert set(INSTRUCTIONS) == set(TASK_METRICS)


def test_the_hub_s_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "any", document())
    asked: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def download(*args: object, **kwargs: object) -> str:
        asked.append((args, kwargs))
        return str(tmp_path / "any.jsonl")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    suite = LEval(Source())
    assert suite.tasks() == list(TASK_METRICS)
    assert len(suite.records("sci_fi")) == 2
    with pytest.raises(ValueError, match=r"any.jsonl:1: field 'evaluation' is 'exam', expected 'rouge'"):
        suite.records("news_summ")
    assert [(args, kwargs["repo_type"]) for args, kwargs in asked] == [
        (("L4NLP/LEval", "LEval/Exam/sci_fi.jsonl"), "dataset"),
        (("L4NLP/LEval", "LEval/Generation/news_summ.jsonl"), "dataset"),
    ]


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside the checkout")
def test_official_answers_score_full_marks() -> None:
    suite = LEval(Source(data=DATA))
    counts = {}
    for task in suite.tasks():
        records = suite.records(task)
        counts[task] = len(records)
        ratings = [suite.rate(task, record["references"][0], record) for record in records]
        assert suite.score(task, ratings) == 100.0, task
        fixed = [suite.rate_fixed(task, record["references"][0], record) for record in records]
        assert suite.score(task, fixed) == 100.0, task
    assert counts == {
        "coursera": 172,
        "quality": 202,
        "topic_retrieval_longchat": 150,
        "gsm100": 100,
        "sci_fi": 64,
    }


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside the checkout")
def test_prompts_about_one_document_begin_alike(tokenizer: PreTrainedTokenizerFast) -> None:
    records = LEval(Source(data=DATA / "quality.jsonl")).records("quality")
    requests = [Request.from_dict(record["requests"][0]) for record in records]
    same = [request for request in requests if request.document == requests[0].document]
    assert len(same) > 5
    # Uncut, and cut by the protocol's limit: all of the document is shared, token for token.
    for limit in (None, 2000):
        prompts = [prepare(request, tokenizer, room=10**6, limit=limit) for request in same]
        assert {prompt.truncated for prompt in prompts} == {limit is not None}
        columns = zip(*(prompt.ids for prompt in prompts), strict=False)
        text = tokenizer.decode([column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)])
        assert text.startswith("<|user|>" + requests[0].before + requests[0].document[:1000])
        assert text.endswith("\nQuestion:")
