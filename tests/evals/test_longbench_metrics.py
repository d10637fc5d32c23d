"""LongBench's metrics: golden values of the official code, its quirks, and independence of the caller's stack."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longloom.evals.longbench.metrics import (
    METRICS,
    classification,
    code_sim,
    count,
    first_line,
    qa_f1,
    qa_f1_zh,
    retrieval,
    retrieval_zh,
    rouge,
    rouge_zh,
)
from longloom.evals.longbench.tasks import TASKS
from longloom.evals.matching import dataset_score, string_match

CLASSES = ["City", "Country", "City or Country"]


# The first dozen are values of the official code, recorded in the specification; the others were computed by hand.
@pytest.mark.parametrize(
    ("metric", "prediction", "answer", "expected"),
    [
        (qa_f1, "The cat, sat on a mat!", "cat sat on mat", 1.0),
        (qa_f1, "Paris is the capital", "Paris", 0.5),
        (qa_f1, "e-mail", "email", 1.0),
        (qa_f1_zh, "北京是中国的首都。", "中国首都北京", 0.2857142857142857),
        (rouge, "the cat sat on the mat", "the cat is on the mat", 0.7999999950000001),
        (rouge, "a a a a", "a b", 0.6666666622222223),
        (rouge_zh, "今天会议讨论了预算问题", "会议主要讨论预算", 0.5999999952),
        (count, "There are 5 or 6 unique paragraphs", "5", 0.5),
        (retrieval, "Paragraph 12, maybe Paragraph 3", "Paragraph 12", 0.5),
        (code_sim, "```python\nreturn x + 1\n", "return x+1", 0.91),
        (qa_f1, "", "anything", 0.0),
        (qa_f1, "the", "a", 0.0),  # nothing is left of either
        (qa_f1, "an apple and an orange", "apple orange", 0.8),  # precision 2/3, recall 1
        (qa_f1_zh, "，。！", "北京", 0.0),
        (rouge, "", "the cat", 0.0),
        (rouge, "...", "the cat", 0.0),  # no sentence: rouge raises
        (rouge, "The cat", "the cat", 0.4999999950000001),  # case counts
        (rouge, "one two. three", "one two three", 0.9999999950000002),  # sentences are united
        (count, "five", "5", 0.0),
        (count, "15", "5", 0.0),
        (retrieval, "12", "Paragraph 12", 1.0),
        (retrieval, "段落12", "Paragraph 12", 1.0),
        (retrieval_zh, "段落3和段落4", "段落4", 0.5),
        (code_sim, "\n\nreturn x", "return x", 1.0),
        (code_sim, "# a comment\nreturn x", "return x", 1.0),
        (code_sim, "a // b\nreturn x", "return x", 1.0),
        (code_sim, "   \nreturn x", "return x", 0.18),  # a line of spaces counts: one of 11 characters twice over
        (code_sim, "# only\n`marks`", "x", 0.0),
        (code_sim, "# only", "", 1.0),  # equal before empty
        (code_sim, "x", "", 0.0),
    ],
)
def test_golden_values(metric: Callable[[str, str], float], prediction: str, answer: str, expected: float) -> None:
    assert metric(prediction, answer) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("prediction", "answer", "classes", "expected"),
    [
        ("City or Country", "City", ["City", "Country"], 0.5),
        ("city", "City", ["City", "Country"], 0.0),
        ("the City", "City", CLASSES, 1.0),
        # "City" and "Country" are parts of the answer, but removing the one passes over the other: two remain.
        ("City or Country", "City or Country", CLASSES, 0.5),
        ("nothing", "City", CLASSES, 0.0),
    ],
)
def test_classification(prediction: str, answer: str, classes: list[str], expected: float) -> None:
    assert classification(prediction, answer, classes) == expected


def test_a_sample_scores_its_best_answer_and_classes_are_needed() -> None:
    assert METRICS["qa_f1"]("Paris", ["London", "Paris", "Rome"], None) == 1.0
    assert METRICS["classification"]("City", ["Country", "City"], CLASSES) == 1.0
    with pytest.raises(ValueError, match="all_classes is null"):
        METRICS["classification"]("City", ["City"], None)
    with pytest.raises(ValueError, match=r"'12', expected 'Paragraph '"):
        retrieval("12", "12")


def test_string_match_is_the_share_of_references_contained() -> None:
    assert string_match("The KEY is 48213.", ["48213"]) == 1.0
    assert string_match("one and two", ["ONE", "two", "three", "four"]) == 0.5
    assert METRICS["string_match"]("one", ["one", "two"], None) == 0.5
    with pytest.raises(ValueError, match="at least one"):
        string_match("x", [])


def test_first_line_and_dataset_score() -> None:
    assert first_line("\n\nBob\nDialogue: ...") == "Bob"
    assert dataset_score([1.0, 0.0, 0.0]) == 33.33
    assert dataset_score([0.5, 0.25]) == 37.5
    with pytest.raises(ValueError, match="no samples"):
        dataset_score([])


def test_the_table_has_the_official_tasks() -> None:
    assert len(TASKS) == 21
    assert sum(task.samples for task in TASKS.values()) == 4750
    assert {name for name, task in TASKS.items() if task.first_line_only} == {"trec", "triviaqa", "samsum", "lsht"}
    without_chat = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
    assert {name for name, task in TASKS.items() if not task.chat} == without_chat
    assert all(task.metric in METRICS for task in TASKS.values())


@given(st.text("ab #/`\n", max_size=40), st.text("ab ", min_size=1, max_size=20))
def test_code_sim_is_the_ratio_of_matching_blocks(prediction: str, answer: str) -> None:
    """Brute force: strip by hand, and 2 * matches / characters from difflib's blocks."""
    while prediction.startswith("\n"):
        prediction = prediction[1:]
    line = ""
    for candidate in prediction.split("\n"):
        if not set("`#") & set(candidate) and "//" not in candidate:
            line = candidate
            break
    matched = sum(block.size for block in difflib.SequenceMatcher(None, line, answer).get_matching_blocks())
    expected = round(100 * (2 * matched / (len(line) + len(answer)))) / 100 if line else 0.0
    assert code_sim(prediction, answer) == expected


_OFFICIAL_SHAPE = """
import json, sys
from rouge import Rouge
def rouge_score(prediction, answer):
    try:
        return Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except Exception:
        return 0.0
def scorer(pairs):
    scores = []
    for pair in pairs:
        scores.append(rouge_score(*pair))
    return scores
print(json.dumps(scorer(json.load(sys.stdin))))
"""


def test_rouge_fails_at_the_length_where_the_official_script_does() -> None:
    """The script calls rouge from its third frame; ours is called from far deeper, and must not fail earlier."""
    pairs = [("z " + " ".join(f"w{i}" for i in range(words)), "z y x w") for words in range(980, 994)]
    run = subprocess.run(
        [sys.executable, "-c", _OFFICIAL_SHAPE], input=json.dumps(pairs), capture_output=True, text=True, check=True
    )
    official = json.loads(run.stdout)
    assert official[0] > 0
    assert official[-1] == 0

    def deeper(frames: int) -> list[float]:
        return deeper(frames - 1) if frames else [rouge(*pair) for pair in pairs]

    assert deeper(200) == official
