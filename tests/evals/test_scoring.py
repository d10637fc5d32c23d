"""Scores of prediction files, and what is said of bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longloom.evals import registry
from longloom.evals.scoring import score_file


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def official(suite: str, task: str, path: Path) -> dict[str, Any]:
    """What is scored, without the mended metrics, which the suites' own tests hold."""
    return {name: value for name, value in score_file(suite, task, path).items() if name != "fixed"}


def longbench(pred: str, *answers: str, **more: Any) -> dict[str, Any]:
    return {"pred": pred, "answers": list(answers), "all_classes": None, "length": 9, **more}


def leval(pred: str, gt: str, evaluation: str = "exam", **more: Any) -> dict[str, Any]:
    return {"query": "q", "gt": gt, "llama_pred": pred, "evaluation": evaluation, **more}


def test_longbench(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", longbench("the cat sat on the mat", "the cat is on the mat"), longbench(" ", "x")
    )
    assert official("longbench", "multi_news", path) == {
        "suite": "longbench",
        "task": "multi_news",
        "metric": "rouge",
        "score": 40.0,
        "samples": 2,
        "empty": 1,
    }


def test_first_line_rule_and_classes_of_the_last_record(tmp_path: Path) -> None:
    first = longbench("City\nCountry", "City", all_classes=["City"])
    last = longbench("none", "City", all_classes=["City", "Cit"])
    # Only the first line counts, and the last record's classes hold for all: "Cit" is removed as a part of "City".
    assert score_file("longbench", "trec", write(tmp_path / "p.jsonl", first, last))["score"] == 50.0
    # By its own classes the first record would score nothing.
    other = longbench("City", "City", all_classes=[])
    assert score_file("longbench", "trec", write(tmp_path / "p.jsonl", other, last))["score"] == 50.0


def test_leval_exam(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        leval("Answer: C", "C"),  # read as A
        leval("C", "C"),
        leval("C", "C", "LLM"),
    )
    assert official("leval", "tpo", path) == {
        "suite": "leval",
        "task": "tpo",
        "metric": "exam",
        "score": 50.0,
        "samples": 2,
        "skipped": 1,
        "empty": 0,
    }


def test_leval_open_ended_and_rank_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", leval("the cat sat", "a cat", "f1"), leval("x", "y", "f1"))
    assert score_file("leval", "multidoc_qa", path)["score"] == 33.3333
    path = write(tmp_path / "p.jsonl", leval("the cat sat", "the cat", "rouge"))
    assert score_file("leval", "tv_show_summ", path)["score"] == 80.0
    topics = [leval(said, "topic") for said in ("topic", "x", "x", "topic")]
    score = score_file("leval", "topic_retrieval_longchat", write(tmp_path / "p.jsonl", *topics))["score"]
    assert score == pytest.approx(100 / 3)


def test_unknown_suites_and_tasks(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", longbench("x", "y"))
    with pytest.raises(ValueError, match=r"unknown suite of prediction files 'glue'; known: .*leval, longbench"):
        score_file("glue", "x", path)
    with pytest.raises(ValueError, match=r"suite 'longbench' has no task 'x'; known: narrativeqa, "):
        score_file("longbench", "x", path)
    with pytest.raises(ValueError, match=r"suite 'leval' has no task 'x'; known: coursera, "):
        score_file("leval", "x", write(tmp_path / "q.jsonl", leval("A", "A")))


@pytest.mark.parametrize(
    ("suite", "task", "records", "message"),
    [
        ("longbench", "lcc", [leval("A", "A")], r"p.jsonl:1: looks like a prediction file of the suite 'leval'"),
        ("leval", "tpo", [longbench("A", "A")], r"p.jsonl:1: looks like a prediction file of the suite 'longbench'"),
        ("longbench", "lcc", [longbench("A", "A"), {"pred": "A"}], r"p.jsonl:2: field 'answers' is missing"),
        ("longbench", "lcc", [{"answers": ["A"]}], r"p.jsonl:1: field 'pred' is missing, expected a string"),
        ("longbench", "lcc", [longbench("A")], r"p.jsonl:1: field 'answers' is \[\], expected a list of strings"),
        ("longbench", "trec", [longbench("A", "A")], r"p.jsonl:1: field 'all_classes' is null, expected the classes"),
        ("leval", "tpo", [{"gt": "A", "evaluation": "exam"}], r"p.jsonl:1: field '<model>_pred' is missing"),
        ("leval", "tpo", [leval("A", "A"), {"gt": "A"}], r"p.jsonl:2: field 'evaluation' is missing"),
        ("leval", "sci_fi", [leval("A", "True")], r"p.jsonl:1: field 'gt' is 'True', expected 'True \[fact: False\]'"),
        ("leval", "tpo", [leval("A", "A", "f1")], r"p.jsonl:1: field 'evaluation' is 'f1', which no closed-ended"),
        (
            "leval",
            "multidoc_qa",
            [leval("A", "A", "f1"), leval("A", "A", "rouge")],
            r"p.jsonl:2: field 'evaluation' is 'rouge', expected 'f1' as before",
        ),
        ("leval", "tpo", [leval("A", "A", "human")], r"p.jsonl: has no record with an evaluation of exam, f1, rouge"),
        ("leval", "tpo", [], r"p.jsonl: has no predictions"),
    ],
)
def test_bad_files(tmp_path: Path, suite: str, task: str, records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_file(suite, task, write(tmp_path / "p.jsonl", *records))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*none.jsonl: No such file"):
        score_file("longbench", "lcc", tmp_path / "none.jsonl")
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8"):
        score_file("longbench", "lcc", tmp_path / "p.jsonl")


def test_data_goes_with_files_that_have_predictions_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", longbench("x", "y"))
    with pytest.raises(ValueError, match=r"data is .*, but .*p.jsonl has the answers in it, expected no data"):
        score_file("longbench", "lcc", path, data=tmp_path)
    with pytest.raises(ValueError, match=r"data is .*, but .*p.jsonl has the answers in it, expected no data"):
        score_file("chatrag", "sqa", path, data=tmp_path)
    # A file's name means nothing where the official format is JSON Lines.
    named = write(tmp_path / "p.txt", longbench("x", "x"))
    assert score_file("longbench", "lcc", named)["score"] == 100.0
    with pytest.raises(ValueError, match=r"p.txt has the answers in it, expected no data"):
        score_file("longbench", "lcc", named, data=tmp_path)


def test_a_suite_that_cannot_be_imported_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"aaa": "longloom.evals.no_such_module", **registry._PREDICTIONS}
    monkeypatch.setattr(registry, "_PREDICTIONS", broken)
    path = write(tmp_path / "p.jsonl", leval("A", "A"))
    with pytest.raises(ValueError, match=r"p.jsonl:1: looks like a prediction file of the suite 'leval'"):
        score_file("chatrag", "sqa", path)
    with pytest.raises(ImportError, match="no_such_module"):
        score_file("aaa", "x", path)
