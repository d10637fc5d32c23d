"""Damaged prediction files of every suite, and any text at all as a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longloom.evals.scoring import score_file

from .damage import damaged, damaged_json, damaged_lines, examples, survives, written

CHAT = [{"role": "user", "content": "What was 12% of 50?"}]
#: (suite, task) -> a record of its prediction file.
RECORDS: dict[tuple[str, str], dict[str, Any]] = {
    ("longbench", "qasper"): {"pred": "a cat", "answers": ["the cat", "cats"], "all_classes": None, "length": 9},
    ("longbench", "multifieldqa_zh"): {"pred": "一只猫", "answers": ["猫"], "all_classes": None, "length": 9},
    ("longbench", "gov_report"): {"pred": "a b c.", "answers": ["b c d."], "all_classes": None, "length": 9},
    ("longbench", "vcsum"): {"pred": "会议开始", "answers": ["会议结束"], "all_classes": None, "length": 9},
    ("longbench", "trec"): {"pred": "City", "answers": ["City"], "all_classes": ["City", "Date"], "length": 9},
    ("longbench", "passage_count"): {"pred": "3 or 4", "answers": ["3"], "all_classes": None, "length": 9},
    ("longbench", "passage_retrieval_en"): {
        "pred": "Paragraph 3",
        "answers": ["Paragraph 3"],
        "all_classes": None,
        "length": 9,
    },
    ("longbench", "lcc"): {"pred": "x = 1\n# no", "answers": ["x = 2"], "all_classes": None, "length": 9},
    ("longbench-e", "hotpotqa"): {"pred": "a cat", "answers": ["cat"], "all_classes": None, "length": 9000},
    ("longbench-v2", "longbench-v2"): {
        "response": "The correct answer is (A)",
        "pred": "A",
        "answer": "A",
        "difficulty": "easy",
        "length": "short",
        "_id": "1",
    },
    ("leval", "coursera"): {"query": "q", "gt": "AB", "m_pred": "A, B", "evaluation": "exam"},
    ("leval", "gsm100"): {"query": "q", "gt": "42", "m_pred": "The answer is 42.", "evaluation": "exam"},
    ("leval", "narrative_qa"): {"query": "q", "gt": "a cat", "m_pred": "the cat", "evaluation": "f1"},
    ("leval", "gov_report_summ"): {"query": "q", "gt": "a b c.", "m_pred": "b c d.", "evaluation": "rouge"},
    ("infinitebench", "passkey"): {"id": 0, "prediction": "71432", "ground_truth": "71432"},
    ("infinitebench", "math_calc"): {"id": 0, "prediction": "[1, 2]", "ground_truth": [1, 2, 3]},
    ("infinitebench", "math_find"): {"id": 0, "prediction": "it is 3.5", "ground_truth": 3.5},
    ("infinitebench", "code_run"): {"id": 0, "prediction": "= -12.", "ground_truth": -12},
    ("infinitebench", "code_debug"): {"id": 0, "prediction": "B. f", "ground_truth": ["f", "B"]},
    ("infinitebench", "longdialogue_qa_eng"): {"id": 0, "prediction": "ANN", "ground_truth": ["ANN", "BOB"]},
    ("infinitebench", "longbook_sum_eng"): {"id": 0, "prediction": "a b c.", "ground_truth": ["b c d."]},
    ("infinitebench", "longbook_qa_chn"): {"id": 0, "prediction": "猫", "ground_truth": ["一只猫"]},
    ("chatrag", "coqa"): {"prediction": "a cat", "answers": ["the cat"]},
    ("chatrag", "quac"): {"prediction": "sorry", "answers": ["Sorry. I cannot find the answer based on the context."]},
    ("chatrag", "convfinqa"): {"prediction": "6%", "answers": ["0.12 * 50"], "exe_answer": 6.0, "messages": CHAT},
    ("ruler", "niah_single_1"): {"index": 0, "pred": "12345", "outputs": ["12345"], "input": "", "others": {}},
    ("ruler", "qa_1"): {"index": 0, "pred": "Paris", "outputs": ["Paris", "paris"], "input": "", "others": {}},
}
PARAMETERS = [pytest.param(*key, record, id="-".join(key)) for key, record in RECORDS.items()]
DIALOGUE = [
    {
        "messages": CHAT,
        "ctxs": [{"title": "t", "text": "x"}],
        "answers": ["6"],
        "exe_answer": 6.0,
        "ground_truth_ctx": {"ctx": "x"},
    }
] * 2


@pytest.mark.parametrize(("suite", "task", "record"), PARAMETERS)
def test_damaged_prediction_files_are_scored_or_refused(
    tmp_path: Path, suite: str, task: str, record: dict[str, Any]
) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(written(record) + b"\n")
    assert score_file(suite, task, path)["samples"] == 1

    @examples(25)
    @given(damaged_lines([record, record]))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        scored = survives(lambda: score_file(suite, task, path), names=str(path))
        assert scored is None or scored["samples"] >= 1

    check()


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text("0123456789.,-+eE%$() []ABCD:=\n", max_size=40),
    st.sampled_from(["", "...", ". . .", "\n", "\0", "9" * 5000, "1e999", "(" * 3000, "nan", "inf", "- - -", "٣", "½"]),
)


@pytest.mark.parametrize(("suite", "task", "record"), PARAMETERS)
def test_any_text_as_a_prediction_has_a_score(tmp_path: Path, suite: str, task: str, record: dict[str, Any]) -> None:
    path = tmp_path / "predictions.jsonl"
    field = next(name for name in ("m_pred", "pred", "prediction") if name in record)

    @examples(15)
    @given(TEXTS)
    def check(text: str) -> None:
        path.write_bytes(written(record | {field: text}) + b"\n")
        score = score_file(suite, task, path)["score"]
        assert 0 <= score <= 100

    check()


@examples(40)
@given(data=st.data())
def test_damaged_files_of_official_text_predictions(tmp_path: Path, data: st.DataObject) -> None:
    records, path = tmp_path / "convfinqa" / "dev.json", tmp_path / "convfinqa_output.txt"
    records.parent.mkdir(exist_ok=True)
    first = data.draw(st.booleans())
    records.write_bytes(data.draw(damaged_json(DIALOGUE)) if first else written(DIALOGUE))
    path.write_bytes(b"6%\nsix\n" if first else data.draw(damaged(b"6%\nsix\n")))
    survives(lambda: score_file("chatrag", "convfinqa", path, data=records), names=(str(records), str(path)))
