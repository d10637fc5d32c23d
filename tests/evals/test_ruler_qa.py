"""RULER's questions about documents, from tiny files in the official formats of SQuAD and HotpotQA."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from longloom.evals.harness import task_of
from longloom.evals.protocol import Request, render
from longloom.evals.ruler.suite import Ruler
from longloom.evals.suite import Source

LENGTHS = [1400, 9000]

PARAGRAPHS = [
    [f"Town {article}{place} has {article * 10 + place + 3} mills." * 3 for place in range(4)] for article in range(5)
]
SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": text,
                    "qas": [
                        {"question": f"Never {text[:8]}?", "answers": [], "is_impossible": True},
                        {
                            "question": f"How many mills has {text[:7]}?",
                            "answers": [{"text": text.split()[3]}, {"text": f"{text.split()[3]} mills"}],
                            "is_impossible": False,
                        },
                    ],
                }
                for text in article
            ]
        }
        for article in PARAGRAPHS
    ]
}
HOTPOT = [
    {
        "question": f"Who leads the town of person {number}?",
        "answer": f"Mayor {number}",
        "context": [
            [f"Person {number}", [f"Person {number} is old.", f" Person {number} lives in Town {number}."]],
            [f"Town {number}", [f"Town {number} is led by Mayor {number}.", " It has a river."]],
            ["Rivers", ["Rivers flow."]],
        ],
        "supporting_facts": [[f"Person {number}", 1], [f"Town {number}", 0], [f"Town {number}", 7]],
    }
    for number in range(4)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both files."""
    folder = tmp_path_factory.mktemp("ruler-qa")
    (folder / "squad.json").write_text(json.dumps(SQUAD))
    (folder / "hotpotqa.json").write_text(json.dumps(HOTPOT))
    return folder


def suite(data: Path | None, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **options: Any) -> Ruler:
    return Ruler(
        Source(data=data, tokenizer=tokenizer, seed=seed, options={"lengths": LENGTHS, "samples": 3, **options})
    )


def mills(prompt: str) -> list[str]:
    town = re.search(r"How many mills has (.+)\?$", prompt)[1]
    number = re.search(rf"\n{town} has (\d+) mills\.", prompt)[1]
    return [number, f"{number} mills"]


def mayor(prompt: str) -> list[str]:
    person = re.search(r"Who leads the town of person (\d+)\?$", prompt)[1]
    town = re.search(rf"Person {person} lives in (Town \d+)\.", prompt)[1]
    return [re.search(rf"{town} is led by (Mayor \d+)\.", prompt)[1]]


SOLVERS = {"qa_1": mills, "qa_2": mayor}
UNITS = {
    "qa_1": "\n\nDocument 100:\n" + PARAGRAPHS[0][0],
    "qa_2": "\n\nDocument 100:\nPerson 1\nPerson 1 is old. Person 1 lives in Town 1.",
}


@pytest.mark.parametrize("task", SOLVERS)
def test_lengths_are_exact_and_answers_stand_in_the_prompt(
    data: Path, tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    made = suite(data, tokenizer)
    records = made.records(task)
    assert [(r["length"], r["group"]) for r in records] == [(each, str(each)) for each in LENGTHS for _ in range(3)]
    unit = len(tokenizer(UNITS[task])["input_ids"])
    for record in records:
        (fields,) = record["requests"]
        request = Request.from_dict(fields)
        tokens = len(render(request, tokenizer, request.document)) + 32
        assert record["length"] - unit - 8 <= tokens <= record["length"]
        found = SOLVERS[task](request.prompt)
        assert found == record["references"]
        assert made.rate(task, found[-1], record) == made.rate_fixed(task, found[-1], record) == {"score": 1.0}
        # The gold passages stand in the context, and suffice.
        assert request.context == (0, len(request.document))
        assert all(passage in request.document for passage in record["gold"])
        assert SOLVERS[task](request.with_context("\n" + "\n".join(record["gold"])).prompt) == found
        assert request.after.endswith(f"Question: {request.query}")
        assert request.prefix == " Answer:"


def test_the_seed_draws_the_other_documents(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for task in SOLVERS:
        records = suite(data, tokenizer).records(task)
        assert suite(data, tokenizer).records(task) == records
        assert suite(data, tokenizer, lengths=LENGTHS[1:]).records(task) == records[3:]
        other = suite(data, tokenizer, seed=1).records(task)
        assert [r["references"] for r in other] == [r["references"] for r in records]
        assert all(mine["requests"] != theirs["requests"] for mine, theirs in zip(records, other, strict=True))


def test_qa_documents(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    for record in suite(data, tokenizer).records("qa_1"):
        documents = re.split(r"(?:\n\n|^)Document (\d+):\n", record["requests"][0]["document"])[1:]
        assert [int(number) for number in documents[::2]] == list(range(1, len(documents) // 2 + 1))
        counts = Counter(documents[1::2])
        # First the article's own, then any of the others, and none twice before all stood once.
        article = next(article for article in PARAGRAPHS if record["gold"][0] in article)
        every = {text for article in PARAGRAPHS for text in article}
        assert set(article) < set(counts) <= every
        if record["length"] == LENGTHS[0]:
            assert set(counts.values()) == {1}
        else:
            assert set(counts) == every
            assert max(counts.values()) - min(counts.values()) <= 1
    (record, *_) = suite(data, tokenizer).records("qa_2")
    assert record["gold"] == ["Person 0 lives in Town 0.", "Town 0 is led by Mayor 0."]
    assert "Person 0\nPerson 0 is old. Person 0 lives in Town 0." in record["requests"][0]["document"]
    assert record["requests"][0]["prefix"] == " Answer:"


def test_both_names_of_the_files(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"qa_2 needs hotpotqa.json or hotpot_dev_distractor_v1.json in the folder"):
        suite(None, tokenizer).records("qa_2")
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(SQUAD))
    assert {"qa_1", "qa_2"} & set(suite(tmp_path, tokenizer).tasks()) == {"qa_1"}
    (tmp_path / "hotpot_dev_distractor_v1.json").write_text(json.dumps(HOTPOT))
    assert {"qa_1", "qa_2"} <= set(suite(tmp_path, tokenizer).tasks())
    assert [len(suite(tmp_path, tokenizer).records(task)) for task in SOLVERS] == [6, 6]


def test_impossible_lengths(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    for task in SOLVERS:
        with pytest.raises(ValueError, match=rf"length 40 is too short for {task}: .* expected at least \d+") as error:
            suite(data, tokenizer, lengths=[40]).records(task)
        least = int(str(error.value).split()[-1])
        assert suite(data, tokenizer, lengths=[least], samples=1).records(task)


def test_lm_eval_runs_it(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    task = task_of(suite(data, tokenizer), "qa_1")
    task.build_all_requests()
    first = task.instances[0]
    parts = task.process_results(first.doc, [first.doc["references"][1]])
    assert task.aggregation()["score"]([parts["score"], {"score": 0.0}]) == 50.0


def changed(records: Any, *path: Any, value: Any = None) -> Any:
    """A copy with another value at a place, or without that place."""
    copy = json.loads(json.dumps(records))
    *parents, last = path
    inner = copy
    for step in parents:
        inner = inner[step]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return copy


QAS = ("data", 0, "paragraphs", 1, "qas")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(SQUAD, "data"), r"squad.json: field 'data' is missing, expected a list, not empty"),
        (changed(SQUAD, "data", 0, value=[]), r"squad.json: data\[0\]: is a JSON list, expected an object"),
        (changed(SQUAD, *QAS[:4], "context"), r"squad.json: data\[0\].paragraphs\[1\]: field 'context' is missing"),
        (changed(SQUAD, *QAS, 1, "is_impossible"), r"paragraphs\[1\].qas\[1\]: field 'is_impossible' is missing"),
        (changed(SQUAD, *QAS, 1, "answers", value=[]), r"qas\[1\]: field 'answers' is \[\], expected a list, not em"),
        (changed(SQUAD, *QAS, 1, "answers", 0, "text", value=3), r"qas\[1\]: field 'text' is 3, expected a string"),
        ([], r"squad.json: is a JSON list, expected an object"),
    ],
)
def test_bad_squad_files(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "squad.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        suite(tmp_path, tokenizer).records("qa_1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(HOTPOT, 2, "answer"), r"hotpotqa.json: \[2\]: field 'answer' is missing, expected a string"),
        (
            changed(HOTPOT, 1, "context", value=[["T", "s"]]),
            r"\[1\]: field 'context' is .*, expected a list of \[title",
        ),
        (changed(HOTPOT, 1, "supporting_facts", value=[["T"]]), r"\[1\]: field 'supporting_facts' is \[\[\"T\"\]\]"),
        (changed(HOTPOT, 1, value="x"), r"\[1\]: is a JSON str, expected an object"),
        ({}, r"hotpotqa.json: has no questions, expected a list of objects"),
    ],
)
def test_bad_hotpot_files(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "hotpotqa.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        suite(tmp_path, tokenizer).records("qa_2")


def test_torn_files_and_too_few_questions(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, data: Path) -> None:
    (tmp_path / "squad.json").write_text("{")
    with pytest.raises(ValueError, match=r"squad.json:1: is not JSON \(Expecting property name"):
        suite(tmp_path, tokenizer).records("qa_1")
    with pytest.raises(ValueError, match=r"hotpotqa.json: has 4 questions with an answer, expected at least 5"):
        suite(data, tokenizer, samples=5).records("qa_2")
