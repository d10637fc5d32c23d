"""Scores by length and by group, mended scores and costs: against a plain recount of the artifacts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.tasks.report.breakdown import BOUNDS, bucket_name, by_group, by_length, over_tasks
from longloom.tasks.report.costs import cost_rows, seconds_of
from longloom.tasks.report.evaluation import Measured, read_evaluations
from longloom.tasks.report.gather import gather
from longloom.tasks.report.order import group_rank, natural, rank
from longloom.tasks.report.views import evaluation_table, group_table, length_table, task_group_table

V2 = "evaluation/base/longbench-v2/full"
FULL = "evaluation/base/longbench/full"


def samples_of(fakes, label):
    return pq.read_table(fakes.sections[label] / "samples.parquet").to_pylist()


def measured(*samples, scale=100.0, **row):
    names = {"model": "m", "policy": "full", "retrieval": None, "suite": "s", "task": "t", "metric": "f1"}
    blank = {"prompt_tokens": None, "group": None, "length": None, "depth": None, "gold_recall": None}
    return Measured(names | row, scale, [blank | sample for sample in samples])


def test_bucket_names():
    assert [bucket_name(bucket) for bucket in range(9)] == [
        *("< 1K", "1K–2K", "2K–4K", "4K–8K", "8K–16K", "16K–32K", "32K–64K", "64K–128K", "≥ 128K")
    ]
    assert BOUNDS[-1] == 131_072


@pytest.mark.parametrize(
    ("tokens", "bucket"), [(1, 0), (1023, 0), (1024, 1), (2047, 1), (2048, 2), (131_071, 7), (131_072, 8), (10**7, 8)]
)
def test_bucket_bounds(tokens, bucket):
    (row,) = by_length([measured({"prompt_tokens": tokens, "score": 0.25})])
    assert (row["bucket"], row["score"], row["samples"]) == (bucket, 25.0, 1)


def test_lengths_are_recounted(rag_fakes):
    rows = by_length(read_evaluations(rag_fakes.sections).measured)
    for label in (FULL, "evaluation/base/infinitebench/full"):
        _, _, suite, policy = label.split("/")
        found = {row["bucket"]: row for row in rows if (row["suite"], row["policy"]) == (suite, policy)}
        scale = 100 if suite == "longbench" else 1
        for bucket, row in found.items():
            low, high = [0, *BOUNDS][bucket], [*BOUNDS, 10**9][bucket]
            own = [one["score"] for one in samples_of(rag_fakes, label) if low <= one["prompt_tokens"] < high]
            assert row["samples"] == len(own)
            assert row["score"] == pytest.approx(scale * np.mean(own))
        assert sum(row["samples"] for row in found.values()) == len(samples_of(rag_fakes, label))
    assert {row["model"] for row in rows} == {"base"}
    # retrieval is not in it: it would be where its few tokens are
    assert min(row["bucket"] for row in rows if row["suite"] == "longbench") == 3


def test_what_has_no_length_or_scale_is_left_out():
    needle = {"prompt_tokens": 500, "score": 1.0, "length": 500, "depth": 50.0, "group": "a"}
    unknown = {"prompt_tokens": None, "score": 1.0}
    stub = {"prompt_tokens": 0, "score": 1.0}
    assert by_length([measured(needle, unknown, stub)]) == []
    assert by_length([measured({"prompt_tokens": 5, "score": 1.0}, scale=None)]) == []
    assert by_length([measured({"prompt_tokens": 5, "score": 1.0}, retrieval="bm25:k=5")]) == []
    assert by_group([measured(needle, {"score": 1.0})]) == []


def test_older_artifacts_have_no_parts(fakes):
    numbers = gather(fakes.sections, {}, title="t").numbers
    assert numbers["evaluation"]["lengths"] == numbers["evaluation"]["groups"] == []
    assert {row["fixed"] for row in numbers["evaluation"]["scores"]} == {None}
    assert {row["retrieval"] for row in numbers["evaluation"]["scores"]} == {None}
    assert "retrieval" not in numbers


def test_a_sample_counts_for_each_part_of_its_group(rag_fakes):
    rows = by_group(read_evaluations({V2: rag_fakes.sections[V2]}).measured)
    own = samples_of(rag_fakes, V2)
    assert {row["group"]: row["samples"] for row in rows} == {
        "easy": 10,
        "hard": 20,
        "short": 10,
        "medium": 10,
        "long": 10,
    }
    for row in rows:
        scores = [one["score"] for one in own if row["group"] in one["group"].split("/")]
        assert row["score"] == pytest.approx(100 * np.mean(scores))
    table = group_table(rows)
    assert [row.task for row in table.suites[0].rows] == ["easy", "hard", "short", "medium", "long"]
    assert task_group_table(rows).suites == []  # one task: the same again


def test_groups_of_several_tasks(rag_fakes):
    label = "evaluation/base/ruler/full"
    rows = by_group(read_evaluations({label: rag_fakes.sections[label]}).measured)
    assert len(rows) == 13 * 3
    whole = {row["group"]: row for row in over_tasks(rows)}
    own = samples_of(rag_fakes, label)
    for group, row in whole.items():
        scores = [one["score"] for one in own if one["group"] == group]
        assert row["samples"] == len(scores)
        assert row["score"] == pytest.approx(100 * np.mean(scores))
    assert [row.task for row in group_table(rows).suites[0].rows] == ["512", "4096", "8192"]  # as numbers
    by_task = task_group_table(rows).suites[0].rows
    assert len(by_task) == 39
    assert [(row.task, row.metric) for row in by_task[:3]] == [("cwe", "512"), ("cwe", "4096"), ("cwe", "8192")]


def test_length_table_tells_differing_counts_in_the_cells():
    rows = by_length(
        [
            measured({"prompt_tokens": 10, "score": 0.5}, {"prompt_tokens": 5000, "score": 0.1}),
            measured({"prompt_tokens": 10, "score": 0.5}, {"prompt_tokens": 20, "score": 1.0}, policy="window"),
        ]
    )
    table = length_table(rows)
    assert table.rows_are == "prompt tokens"
    assert table.columns == [("m", "full"), ("m", "window")]
    first, second = table.suites[0].rows
    assert (first.task, first.samples) == ("< 1K", "")
    assert [cell.score for cell in first.cells] == ["50.0", "75.0"]
    assert [cell.notes for cell in first.cells] == [("1 sample",), ("2 samples",)]
    assert (second.task, second.samples, second.cells[1]) == ("4K–8K", "1", None)


def test_orders():
    groups = ["8k+", "long", "12k", "4-8k", "hard", "0-4k", "short", "easy", "medium"]
    assert sorted(groups, key=group_rank)[5:] == ["0-4k", "4-8k", "8k+", "12k"]
    assert sorted(["k=20", "k=5", "k=100"], key=natural) == ["k=5", "k=20", "k=100"]
    assert sorted(["²", "1", "a1b", "a"], key=natural) == ["1", "a", "a1b", "²"]
    assert sorted(["all", "random", "tagcos", "base"], key=rank) == ["base", "tagcos", "random", "all"]


def test_mended_scores_are_noted_where_they_differ(rag_fakes):
    numbers = gather(rag_fakes.sections, {}, title="t").numbers
    scores = {(row["task"], row["policy"], row["retrieval"]): row for row in numbers["evaluation"]["scores"]}
    fixed = scores["gov_report", "full", None]["fixed"]
    assert fixed == pytest.approx(100 * np.mean([
        one["fixed"] for one in samples_of(rag_fakes, FULL) if one["task"] == "gov_report"
    ]), abs=0.005)  # fmt: skip
    assert scores["qasper", "full", None]["fixed"] is None
    table = evaluation_table(numbers["evaluation"]["scores"])
    longbench = next(suite for suite in table.suites if suite.name == "longbench")
    notes = {row.task: [cell and cell.notes for cell in row.cells] for row in longbench.rows}
    assert notes["gov_report"][0] == (f"fixed {fixed:.1f}",)
    assert notes["qasper"] == [(), ()]


@pytest.mark.parametrize(
    ("score", "fixed", "notes"),
    [
        (31.25, 34.0, ("fixed 34.0",)),
        (31.25, 31.25, ()),
        (31.249, 31.2504, ()),  # rounding, though it would be written differently
        (31.21, 31.24, ()),  # written alike
        (31.24, 31.28, ("fixed 31.3",)),
        (31.25, None, ()),
        (None, 31.2, ()),
        (0.5, 0.75, ("fixed 0.750",)),
        (0.5, 0.5004, ()),
    ],
)
def test_what_is_more_than_rounding(score, fixed, notes):
    row = {"suite": "s", "task": "t", "metric": "m", "model": "x", "policy": "full", "score": score, "fixed": fixed}
    row |= {"low": None, "high": None, "samples": 3, "failed": 0, "truncated": 0}
    (cell,) = evaluation_table([row]).suites[0].rows[0].cells
    assert cell.notes == notes


def test_full_score_tells_the_scale(rag_fakes):
    label = "evaluation/base/infinitebench/full"
    found = read_evaluations({label: rag_fakes.sections[label]})
    assert {one.scale for one in found.measured} == {1.0}
    assert all(row["low"] < row["score"] < row["high"] < 1 for row in found.scores)
    # a score that is no mean of its samples, as of a metric over a whole corpus, still has parts on its scale
    path = rag_fakes.sections[label] / "scores.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["score"] = 0.9
    pq.write_table(pa.Table.from_pylist(rows), path)
    first = read_evaluations({label: rag_fakes.sections[label]}).measured[0]
    assert (first.scale, first.row["low"], first.row["sample_scores"]) == (1.0, None, {})


def test_costs_count_failed_and_truncated(rag_fakes):
    evaluations = read_evaluations(rag_fakes.sections)
    rows = cost_rows(evaluations.costs, evaluations.scores)
    assert len(rows) == len(rag_fakes.sections)
    direct = next(row for row in rows if (row["suite"], row["policy"], row["retrieval"]) == ("longbench", "full", ""))
    assert (direct["samples"], direct["failed"], direct["truncated"]) == (90, 0, 9)
    assert (direct["seconds"], direct["prompt_tokens"], direct["peak_kv_bytes"]) == (270.0, 810_000, 360_000)
    retrieved = [row for row in rows if row["retrieval"]]
    assert {(row["failed"], row["truncated"]) for row in retrieved} == {(3, 9)}
    assert [row["retrieval"] for row in retrieved][:5:2] == [
        *(
            "bm25:words=100,k=2,order=document",
            "bm25:words=100,k=5,order=document",
            "bm25:words=100,k=20,order=document",
        )
    ]
    for row in rows:
        for name in ("seconds", "new_tokens", "failed", "truncated", "samples"):
            assert row[name] == sum(task[name] for task in row["tasks"])
    seconds = seconds_of(evaluations.costs)
    assert seconds["base", "full", "bm25:words=100,k=5,order=rank", "longbench"] == pytest.approx(22.5)
