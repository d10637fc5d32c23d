"""Retrieval against long context: means, intervals and paired differences, kept apart from the table of scores."""

from __future__ import annotations

import json
import re
from itertools import product

import numpy as np
import pyarrow.parquet as pq
import pytest

from longloom.tasks.report.differences import compare
from longloom.tasks.report.evaluation import read_evaluations
from longloom.tasks.report.figures import SERIES
from longloom.tasks.report.gather import gather
from longloom.tasks.report.intervals import mean_interval, strata_interval
from longloom.tasks.report.render import page as render_page
from longloom.tasks.report.render_compare import render_compare
from longloom.tasks.report.retrieval import comparisons, line_name
from longloom.tasks.report.retrieval_table import retrieval_lines
from longloom.tasks.report.score_plots import retrieval_curves
from longloom.tasks.report.views import evaluation_table, suite_means

FULL = "evaluation/base/longbench/full"
BM25 = f"{FULL}/bm25:words=100,k=5,order=rank"
TASKS = ("gov_report", "hotpotqa", "qasper")


def only(fakes, *labels):
    (found,) = comparisons(read_evaluations({label: fakes.sections[label] for label in labels}).measured)
    return found


def samples_of(fakes, label, task):
    return [row for row in pq.read_table(fakes.sections[label] / "samples.parquet").to_pylist() if row["task"] == task]


def rewrite(path, change):
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(table.from_pylist(rows, table.schema), path)


def test_rows_are_direct_ones_and_every_retrieval(rag_fakes):
    (found,) = comparisons(read_evaluations(rag_fakes.sections).measured)  # other suites ran without retrieval
    assert (found["suite"], found["model"]) == ("longbench", "base")
    assert [task["task"] for task in found["tasks"]] == list(TASKS)
    rows = found["rows"]
    assert [row["policy"] for row in rows if row["retrieval"] is None] == ["full", "streaming:sink=4,window=28"]
    assert len(rows) == 2 + 12
    assert [row["retrieval"] for row in rows[2:8]] == [
        f"bm25:words=100,k={k},order={order}" for k in (2, 5, 20) for order in ("document", "rank")
    ]


def test_means_are_recounted(rag_fakes):
    found = only(rag_fakes, FULL, BM25)
    row = found["rows"][1]
    strata = [np.array([100 * one["score"] for one in samples_of(rag_fakes, BM25, task)]) for task in TASKS]
    assert row["scores"] == pytest.approx([values.mean() for values in strata], abs=0.005)
    assert row["score"] == pytest.approx(np.mean(row["scores"]))
    assert (row["low"], row["high"]) == pytest.approx(strata_interval(strata))
    every = [one for task in TASKS for one in samples_of(rag_fakes, BM25, task)]
    assert row["prompt_tokens"] == pytest.approx(np.mean([one["prompt_tokens"] for one in every]))
    known = [one["gold_recall"] for one in every if one["gold_recall"] is not None]
    assert len(known) == 45
    assert row["gold_recall"] == pytest.approx(np.mean(known))
    assert (row["samples"], row["failed"]) == (90, 3)
    assert found["rows"][0]["gold_recall"] is None


def test_the_difference_is_paired_by_sample(rag_fakes):
    row = only(rag_fakes, FULL, BM25)["rows"][1]
    differences = []
    for task in TASKS:
        a, b = ({one["sample"]: one["score"] for one in samples_of(rag_fakes, label, task)} for label in (FULL, BM25))
        differences.append(np.array([100 * (b[number] - a[number]) for number in range(30)]))
    against = row["against"]
    assert against["policy"] == "full"
    assert against["difference"] == pytest.approx(np.mean([part.mean() for part in differences]))
    assert against["low"] < against["difference"] < against["high"] < 0
    width = np.sqrt(sum(part.var() / 30 for part in differences)) / 3 * 2 * 1.96
    assert against["high"] - against["low"] == pytest.approx(width, rel=0.1)


def test_p_flips_the_signs_of_samples_within_their_tasks(rag_fakes):
    def keep(count):
        def cut(rows):
            rows[:] = [row for row in rows if row["sample"] < count[row["task"]]]

        return cut

    counts = dict(zip(TASKS, (2, 3, 4), strict=True))
    for label in (FULL, BM25):
        rewrite(rag_fakes.sections[label] / "samples.parquet", keep(counts))
    for label in (FULL, BM25):  # a score is the mean of its samples
        means = {task: 100 * np.mean([one["score"] for one in samples_of(rag_fakes, label, task)]) for task in TASKS}
        rewrite(
            rag_fakes.sections[label] / "scores.parquet",
            lambda rows, means=means: [row.update(score=means[row["task"]]) for row in rows],
        )
    against = only(rag_fakes, FULL, BM25)["rows"][1]["against"]
    pairs = {}
    for task in TASKS:
        a, b = ({one["sample"]: one["score"] for one in samples_of(rag_fakes, label, task)} for label in (FULL, BM25))
        pairs[task] = [b[number] - a[number] for number in sorted(a)]

    def mean(signs):
        signs = iter(signs)
        return np.mean([np.mean([next(signs) * value for value in pairs[task]]) for task in TASKS])

    seen = abs(mean([1] * 9))
    flipped = [abs(mean(signs)) >= seen - 1e-12 for signs in product((1, -1), repeat=9)]
    assert against["p"] == pytest.approx(np.mean(flipped))


@pytest.mark.parametrize(("samples", "p", "verdict"), [(3, "p 0.250", ""), (6, "p 0.031", "worse")])
def test_few_samples_are_no_verdict_whatever_their_interval(rag_fakes, samples, p, verdict):
    for label, score in ((FULL, 0.75), (BM25, 0.25)):
        rewrite(
            rag_fakes.sections[label] / "samples.parquet",
            lambda rows, score=score: rows.__setitem__(
                slice(None),
                [{**row, "score": score} for row in rows if row["task"] == "qasper" and row["sample"] < samples],
            ),
        )
        rewrite(
            rag_fakes.sections[label] / "scores.parquet",
            lambda rows, score=score: rows.__setitem__(
                slice(None), [{**row, "score": 100 * score} for row in rows if row["task"] == "qasper"]
            ),
        )
    found = only(rag_fakes, FULL, BM25)
    assert found["rows"][1]["against"]["high"] < 0  # all samples alike
    line = retrieval_lines(found)[1]
    assert (line.difference.notes, line.verdict) == ((p,), verdict)
    page = render_page(gather({label: rag_fakes.sections[label] for label in (FULL, BM25)}, {}, title="t"))
    assert (f'<small class="note">{p}</small>' in page, "not corrected for the number of rows" in page) == (True, True)


def test_one_task_is_an_ordinary_interval(rag_fakes):
    for label in (FULL, BM25):
        for name in ("scores", "samples", "cost"):
            path = rag_fakes.sections[label] / f"{name}.parquet"
            rewrite(path, lambda rows: rows.__setitem__(slice(None), [row for row in rows if row["task"] == "qasper"]))
    row = only(rag_fakes, FULL, BM25)["rows"][1]
    own = np.array([100 * one["score"] for one in samples_of(rag_fakes, BM25, "qasper")])
    assert (row["low"], row["high"]) == pytest.approx(mean_interval(own))


def test_other_samples_are_not_paired(rag_fakes):
    def forget(rows):
        del rows[0]

    rewrite(rag_fakes.sections[BM25] / "samples.parquet", forget)
    assert only(rag_fakes, FULL, BM25)["rows"][1]["against"] is None

    def change(rows):
        rows[1]["references"] = ["another question"]

    other = f"{FULL}/dense:words=100,k=5,order=rank"
    rewrite(rag_fakes.sections[other] / "samples.parquet", change)
    assert only(rag_fakes, FULL, other)["rows"][1]["against"] is None
    assert only(rag_fakes, BM25)["rows"][0]["against"] is None  # nothing direct


def test_a_missing_task_leaves_no_mean(rag_fakes):
    direct = rag_fakes.sections[FULL] / "scores.parquet"
    rewrite(direct, lambda rows: rows.pop())
    found = only(rag_fakes, FULL, BM25)
    assert (found["rows"][0]["score"], found["rows"][0]["low"]) == (None, None)
    assert found["rows"][0]["scores"].count(None) == 1
    assert found["rows"][1]["score"] is not None
    assert found["rows"][1]["against"] is None
    line = retrieval_lines(found)[0]
    assert (line.score.score, line.difference) == ("–", None)


def test_tasks_without_a_context_to_search_do_not_count(rag_fakes):
    for name in ("scores", "samples", "cost"):
        path = rag_fakes.sections[BM25] / f"{name}.parquet"
        rewrite(path, lambda rows: rows.__setitem__(slice(None), [row for row in rows if row["task"] != "gov_report"]))
    found = only(rag_fakes, FULL, BM25)
    assert [task["task"] for task in found["tasks"]] == ["hotpotqa", "qasper"]
    assert found["rows"][0]["score"] == pytest.approx(np.mean(found["rows"][0]["scores"]))
    assert found["rows"][1]["against"] is not None


def test_the_retrieval_comes_from_the_label_or_else_the_table(rag_fakes):
    folder = rag_fakes.sections[BM25]
    (score, *_) = read_evaluations({"evaluation/base/longbench/full": folder}).scores
    assert score["retrieval"] == "bm25:words=100,k=5,order=rank"
    (score, *_) = read_evaluations({"evaluation/base/longbench/full/dense:model=a/b,k=3": folder}).scores
    assert (score["policy"], score["retrieval"]) == ("full", "dense:model=a/b,k=3")
    with pytest.raises(ValueError, match=r"both hold the score base/full/bm25:k=1/longbench/qasper/qa_f1"):
        read_evaluations({f"evaluation/base/{part}/full/bm25:k=1": folder for part in ("x", "y")})


def test_scores_means_and_answers_are_direct_ones(rag_fakes):
    whole = gather(rag_fakes.sections, {}, title="t")
    scores = whole.numbers["evaluation"]["scores"]
    assert len(scores) == 3 * 14 + 2 + 1 + 13
    table = evaluation_table(scores)
    assert table.columns == [("base", "full"), ("base", "streaming:sink=4,window=28")]
    direct = [row for row in scores if row["retrieval"] is None]
    assert evaluation_table(direct).suites == table.suites
    assert suite_means(scores, "longbench") == suite_means(direct, "longbench")
    answers = whole.evaluations.answers["longbench", "qasper"].values()
    assert [len(sample["answers"]) for sample in answers] == [2, 2, 2]
    assert "retrieval" in whole.numbers


def test_lines_are_written(rag_fakes):
    (found,) = comparisons(read_evaluations(rag_fakes.sections).measured)
    lines = retrieval_lines(found, {("full", ""): 270.0, ("full", "bm25:words=100,k=5,order=rank"): 22.5})
    assert [line.name for line in lines[:2]] == ["direct · full", "direct · streaming:sink=4,window=28"]
    by_name = {line.name: line for line in lines}
    bm25 = by_name["bm25:words=100,k=5,order=rank · full"]
    assert (bm25.seconds, bm25.samples, bm25.verdict) == ("22.5 s", "90", "worse")
    assert bm25.score.notes == ("3 failed",)
    assert re.fullmatch(r"−\d+\.\d", bm25.difference.score)
    assert [line.score.best for line in lines] == [True] + [False] * 13
    assert lines[1].seconds == "–"
    alone = retrieval_lines(only(rag_fakes, FULL, BM25))
    assert [line.name for line in alone] == ["direct", "bm25:words=100,k=5,order=rank"]


def test_better_than_direct_is_told(rag_fakes):
    weak = "evaluation/base/longbench/streaming:sink=4,window=28"
    found = only(rag_fakes, weak, f"{FULL}/dense:words=100,k=20,order=rank")
    row = found["rows"][1]
    assert row["against"]["policy"] == "streaming:sink=4,window=28"  # the only direct one
    line = retrieval_lines(found)[1]
    assert line.verdict == "better"
    assert line.difference.score.startswith("+")


@pytest.mark.parametrize(
    ("retrieval", "line"),
    [
        ("bm25:words=100,k=5,order=rank", "bm25:words=100,order=rank"),
        ("dense:budget=1500,order=document", "dense:order=document"),
        ("bm25:k=5", "bm25"),
        ("bm25", "bm25"),
    ],
)
def test_a_line_runs_along_the_amount(retrieval, line):
    assert line_name(retrieval) == line


def test_the_plot_has_a_line_a_retriever(rag_fakes):
    (found,) = comparisons(read_evaluations(rag_fakes.sections).measured)
    svg = retrieval_curves(found)
    assert svg == retrieval_curves(json.loads(json.dumps(found)))
    for name in ("bm25:words=100,order=rank", "dense:words=100,order=document", "direct, full", "prompt tokens"):
        assert name in svg
    drawn = re.sub(" data-points='[^']*'", "", svg)  # what is told at the pointer names the line at every point
    assert drawn.count("bm25:words=100,order=rank") == 1
    for colour in SERIES[:4]:
        assert f", {colour})" in svg
    assert re.findall(r"(?:fill|stroke): #(?!ffffff)", svg) == []


def test_the_plot_of_little(rag_fakes):
    found = only(rag_fakes, BM25)  # one point, nothing direct
    assert "<path" in retrieval_curves(found)
    for row in found["rows"]:
        row["prompt_tokens"] = None
    assert retrieval_curves(found) == ""


def test_compare_tells_retrievals_apart(rag_fakes):
    first = gather({label: rag_fakes.sections[label] for label in (FULL, BM25)}, {}, title="a").numbers
    second = json.loads(json.dumps(first))
    for row in second["evaluation"]["scores"]:
        if row["retrieval"] and row["task"] == "qasper":
            row["score"] += 10
            row["sample_scores"] = {name: score + 10 for name, score in row["sample_scores"].items()}
    comparison = compare(first, second)
    assert len(comparison.rows) == 6
    (changed,) = [row for row in comparison.rows if row.difference]
    assert (changed.task, changed.retrieval) == ("qasper", "bm25:words=100,k=5,order=rank")
    assert changed.paired.difference == pytest.approx(10)
    assert [row.retrieval for row in comparison.rows if row.task == "qasper"] == [None, changed.retrieval]
    for form in ("page", "markdown"):
        assert "full · bm25:words=100,k=5,order=rank" in render_compare(comparison, form)
    assert json.loads(render_compare(comparison, "json"))["rows"][1]["retrieval"] == changed.retrieval
    # a report of an earlier version has no word of retrieval
    older = json.loads(json.dumps(first))
    older["evaluation"]["scores"] = [
        {name: value for name, value in row.items() if name != "retrieval"}
        for row in older["evaluation"]["scores"]
        if row["retrieval"] is None
    ]
    rows = compare(older, first).rows
    assert [row.difference for row in rows if row.retrieval is None] == [0.0] * 3
    assert [row.a for row in rows if row.retrieval] == [None] * 3
