"""Tasks of lm-eval: several metrics a task, unlike each other, some of which are better when they are lower."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.tasks.report.build import build
from longloom.tasks.report.differences import compare
from longloom.tasks.report.gather import gather
from longloom.tasks.report.metrics import better
from longloom.tasks.report.render import page
from longloom.tasks.report.render_compare import render_compare
from longloom.tasks.report.summary import summary
from longloom.tasks.report.sweep import sweeps
from longloom.tasks.report.sweep_table import sweep_tables
from longloom.tasks.report.views import evaluation_table, length_table, suite_means

#: Metric -> whether more is better, and a factor: of the second model less of everything.
METRICS = {"acc": (True, 1.0), "ter": (False, 40.0), "exact_match,strict": (True, 1.0)}
SAMPLES = 20


def write(folder: Path, level: float, metrics: dict[str, tuple[bool | None, float]], tasks: tuple[str, ...]) -> None:
    head = {"suite": "lm-eval", "policy": "full", "retrieval": None}
    samples = [
        {
            **head, "task": task, "metric": metric, "sample": number, "references": [f"{number}"], "prompt_tokens": 500,
            "prediction": "seven" if metric == "exact_match,strict" else "It is seven.",
            "score": factor * (level + 0.001 * (number % 5)),
        }
        for task in tasks
        for number in range(SAMPLES)
        for metric, (_, factor) in metrics.items()
    ]  # fmt: skip
    scores = [
        {
            **head, "task": task, "metric": metric, "higher_is_better": higher, "samples": SAMPLES, "failed": 0,
            "truncated": 0,
            "score": sum(row["score"] for row in samples if (row["task"], row["metric"]) == (task, metric)) / SAMPLES,
        }
        for task in tasks
        for metric, (higher, _) in metrics.items()
    ]  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(samples), folder / "samples.parquet")
    schema = pa.Table.from_pylist(scores).schema
    higher = pa.field("higher_is_better", pa.bool_())
    pq.write_table(
        pa.Table.from_pylist(scores, schema.set(schema.get_field_index(higher.name), higher)),
        folder / "scores.parquet",
    )


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Path]:
    """Two models on two tasks of three metrics each."""
    found = {f"evaluation/{model}/lm-eval/full": tmp_path / model for model in ("base", "all")}
    for folder, level in zip(found.values(), (0.6, 0.4), strict=True):
        write(folder, level, METRICS, ("one", "two"))
    return found


@pytest.fixture
def numbers(sections: dict[str, Path]) -> dict[str, Any]:
    return gather(sections, {}, title="t").numbers


def test_unlike_metrics_have_no_mean_and_no_headline(numbers: dict[str, Any]) -> None:
    scores = numbers["evaluation"]["scores"]
    (suite,) = evaluation_table(scores).suites
    assert [(row.task, row.metric) for row in suite.rows] == [
        (task, m) for task in ("one", "two") for m in sorted(METRICS)
    ]
    assert suite.mean is None
    assert suite_means(scores, "lm-eval") == {}
    assert summary(numbers) == []


def test_one_metric_of_several_tasks_has_a_mean(tmp_path: Path) -> None:
    sections = {f"evaluation/{model}/lm-eval/full": tmp_path / model for model in ("base", "all")}
    for folder, level in zip(sections.values(), (0.6, 0.4), strict=True):
        write(folder, level, {"ter": METRICS["ter"]}, ("one", "two"))
    numbers = gather(sections, {}, title="t").numbers
    (suite,) = evaluation_table(numbers["evaluation"]["scores"]).suites
    assert suite.mean is not None
    assert [(cell.score, cell.best) for cell in suite.mean.cells if cell] == [("24.1", False), ("16.1", True)]
    text = "".join(piece for piece, _ in summary(numbers))
    assert text == "On lm-eval (mean of 2 tasks, ter, full KV cache), base scores 24.1 and all 16.1."


def test_each_metric_has_its_own_decimals_and_its_own_best(numbers: dict[str, Any]) -> None:
    (suite,) = evaluation_table(numbers["evaluation"]["scores"]).suites
    cells = {row.metric: [(cell.score, cell.best) for cell in row.cells if cell] for row in suite.rows}
    assert cells["acc"] == [("0.602", True), ("0.402", False)]
    assert cells["ter"] == [("24.1", False), ("16.1", True)]


def test_a_sample_counts_once_a_row_of_lengths(numbers: dict[str, Any]) -> None:
    rows = numbers["evaluation"]["lengths"]
    assert {row["metric"]: row["samples"] for row in rows} == dict.fromkeys(METRICS, 2 * SAMPLES)
    (suite,) = length_table(rows).suites
    ter = next(row for row in suite.rows if row.metric == "ter")
    assert [cell.best for cell in ter.cells if cell] == [False, True]


def test_answers_stand_once_with_the_names_of_their_metrics(sections: dict[str, Path]) -> None:
    gathered = gather(sections, {}, title="t")
    first = next(iter(gathered.evaluations.answers["lm-eval", "one"].values()))
    assert [(one["model"], one["prediction"], list(one["scores"])) for one in first["answers"]] == [
        ("base", "It is seven.", ["acc", "ter"]),
        ("base", "seven", ["exact_match,strict"]),
        ("all", "It is seven.", ["acc", "ter"]),
        ("all", "seven", ["exact_match,strict"]),
    ]
    text = page(gathered)
    assert re.search(r"<td><small>acc</small> 0\.60<br><small>ter</small> 24\.00</td>", text)


def test_samples_of_a_report_are_counted_once(sections: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert build(sections, {}, tmp_path / "out", title="t").counts == {"sections": 2, "scores": 12, "samples": 80}


def test_compare_knows_which_metric_is_better_lower(tmp_path: Path) -> None:
    runs = []
    for level in (0.6, 0.4):
        write(tmp_path / f"{level}", level, METRICS, ("one",))
        runs.append(gather({"evaluation/base/lm-eval/full": tmp_path / f"{level}"}, {}, title="t").numbers)
    comparison = compare(*runs)
    assert {row.metric: (row.better, row.verdict) for row in comparison.rows} == {
        "acc": ("higher", "worse"),
        "ter": ("lower", "better"),
        "exact_match,strict": ("higher", "worse"),
    }
    markdown = render_compare(comparison, "markdown")
    assert "| acc | base | full | 0.602 | 0.402 | −0.200 |" in markdown
    assert "| ter | base | full | 24.1 | 16.1 | −8.0 |" in markdown
    text = render_compare(comparison, "page")
    assert [f"<figcaption>lm-eval, {metric}: differences" in text for metric in METRICS] == [True] * 3
    assert {row["metric"]: row["better"] for row in json.loads(render_compare(comparison, "json"))["rows"]}[
        "ter"
    ] == "lower"


@pytest.mark.parametrize(
    ("told", "metric", "found"),
    [
        (None, "word_perplexity", "lower"),
        (None, "perplexity,none", "lower"),
        (None, "acc", "higher"),
        (False, "acc", "lower"),
        (True, "perplexity", "higher"),
    ],
)
def test_what_is_told_comes_before_what_the_name_says(told: bool | None, metric: str, found: str) -> None:
    assert better({"metric": metric, "higher_is_better": told}) == found


def test_a_sweep_is_of_one_metric(sections: dict[str, Path]) -> None:
    folder = sections["evaluation/base/lm-eval/full"]
    measured = gather(
        {f"evaluation/base/lm-eval/{policy}": folder for policy in ("full", "snapkv:budget=9")}, {}, title="t"
    ).evaluations.measured
    cost = {"model": "base", "retrieval": None, "suite": "lm-eval", "seconds": 1.0, "decode_seconds": 1.0}
    cost |= {"kv_bytes": 10, "kv_bytes_mean": 10.0, "decode_steps": 5}
    costs = [
        {**cost, "policy": policy, "task": task} for policy in ("full", "snapkv:budget=9") for task in ("one", "two")
    ]
    found = sweeps(measured, costs)
    assert [(sweep["metric"], sweep["tasks"]) for sweep in found] == [
        (metric, [("one", metric), ("two", metric)]) for metric in sorted(METRICS)
    ]
    means = {table.metric: table.models[0][1][0].score.score for table in sweep_tables(found)}
    assert means == {"acc": "0.602", "ter": "24.1", "exact_match,strict": "0.602"}
