"""The numbers of each section against a plain recount of the fake artifacts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.tasks.report.coreset import coreset_numbers
from longloom.tasks.report.data import TOP_SOURCES, corpus_numbers, index_numbers
from longloom.tasks.report.evaluation import read_evaluations
from longloom.tasks.report.figures import NEUTRAL
from longloom.tasks.report.gather import gather
from longloom.tasks.report.summary import summary
from longloom.tasks.report.training import probe_numbers, speed_numbers, training_numbers
from longloom.tasks.report.training_plots import schedule_curves
from longloom.tasks.report.views import evaluation_table, grid_scale, suite_means

FULL = "evaluation/base/longbench/full"


def rewrite(path, change):
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_corpus_counts(fakes):
    folder = fakes.sections["corpus"]
    rows = [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    numbers = corpus_numbers(folder)
    assert numbers["documents"] == len(rows)
    assert numbers["characters"] == sum(len(row["text"]) for row in rows)
    assert numbers["bytes"] == sum(len(row["text"].encode()) for row in rows)
    by_source = Counter()
    for row in rows:
        by_source[row["source"]] += len(row["text"].encode())
    assert len(by_source) > TOP_SOURCES
    assert [row["source"] for row in numbers["sources"]] == [name for name, _ in by_source.most_common(TOP_SOURCES)]
    assert {row["source"]: row["bytes"] for row in numbers["sources"]} == dict(by_source.most_common(TOP_SOURCES))
    assert numbers["other"]["sources"] == len(by_source) - TOP_SOURCES
    assert numbers["other"]["bytes"] == sum(by_source.values()) - sum(row["bytes"] for row in numbers["sources"])


def test_index_size_leaves_out_the_manifest(fakes):
    before = index_numbers(fakes.sections["index"])
    (fakes.sections["index"] / "manifest.json").write_text("{}")
    assert index_numbers(fakes.sections["index"]) == before
    assert before["bytes"] == 252_804 + (fakes.sections["index"] / "index.json").stat().st_size
    assert before["tokens"] == 126_402


def test_coreset_counts_by_source_and_cluster(fakes):
    coresets = {name: fakes.sections[f"coreset/{name}"] for name in ("tagcos", "random")}
    pool = pq.read_table(fakes.sections["instructions"] / "instructions.parquet")["source"].to_pylist()
    numbers = coreset_numbers(fakes.sections["instructions"], coresets)
    assert numbers["pool"] == len(pool)
    for method, folder in coresets.items():
        chosen = Counter(pq.read_table(folder / "coreset.parquet")["source"].to_pylist())
        assert {row["source"]: row["chosen"][method] for row in numbers["sources"]} == {
            source: chosen[source] for source in Counter(pool)
        }
    assert {row["source"]: row["pool"] for row in numbers["sources"]} == dict(Counter(pool))
    clusters = numbers["methods"]["tagcos"]["clusters"]
    assert sum(row["examples"] for row in clusters) == len(pool)
    assert sum(row["chosen"] for row in clusters) == numbers["methods"]["tagcos"]["examples"] == 100
    assert [row["examples"] for row in clusters] == sorted((row["examples"] for row in clusters), reverse=True)
    assert numbers["methods"]["random"]["clusters"] is None
    # without the pool's own artifact, clusters.parquet tells what there was to choose from
    assert coreset_numbers(None, coresets) == numbers


def test_training_numbers(fakes, tmp_path):
    table = pq.read_table(fakes.sections["model"] / "training.parquet")
    loss = table["loss"].to_numpy()
    numbers = training_numbers(fakes.sections["model"])
    assert numbers["steps"] == 900
    assert numbers["tokens"] == 900 * 8192
    assert numbers["first_loss"] == loss[0]
    assert numbers["final_loss"] == pytest.approx(loss[-45:].mean())
    assert len(numbers["curve"]["loss"]) == 120
    assert np.average(numbers["curve"]["loss"], weights=[8] * 60 + [7] * 60) == pytest.approx(loss.mean())
    rates = table["learning_rate"].to_numpy()
    assert np.average(numbers["curve"]["learning_rate"], weights=[8] * 60 + [7] * 60) == pytest.approx(rates.mean())
    assert numbers["curve"]["grad_norm"] == sorted(numbers["curve"]["grad_norm"], reverse=True)
    assert training_numbers(tmp_path) is None


def test_a_gradient_norm_that_is_not_finite_is_left_out(tmp_path):
    columns = {"step": [1, 2, 3], "tokens": [1, 2, 3], "loss": [3.0, np.nan, 1.0]}
    columns |= {"learning_rate": [1.0, 2.0, 3.0], "grad_norm": [0.5, 0.7, np.inf]}
    pq.write_table(pa.table(columns), tmp_path / "training.parquet")
    curve = training_numbers(tmp_path)["curve"]
    assert curve == {"tokens": [1, 3], "loss": [3.0, 1.0], "learning_rate": [1.0, 3.0], "grad_norm": [0.5, None]}
    assert "<path" in schedule_curves({"a": {"curve": curve}}, {"a": NEUTRAL})
    for absent in ({"tokens": [], "loss": [], "grad_norm": []}, {"tokens": [1], "loss": [1.0]}):
        assert schedule_curves({"a": {"curve": absent}}, {"a": NEUTRAL}) == ""


def test_a_training_of_one_step_is_a_mark():
    one = {"tokens": [8], "loss": [3.0], "learning_rate": [0.1], "grad_norm": [0.5]}
    two = {name: values * 2 for name, values in one.items()} | {"tokens": [8, 16]}
    drawn = [schedule_curves({"a": {"curve": curve}}, {"a": "#cc0000"}) for curve in (one, two)]
    assert [svg.count("fill: #cc0000") > 0 for svg in drawn] == [True, False]


def test_speed_is_that_of_all_tokens(tmp_path):
    assert speed_numbers(tmp_path) is None
    columns = {"step": [2, 4], "tokens": [300, 400], "seconds": [1.0, 3.0], "tokens_per_second": [300.0, 100 / 3]}
    pq.write_table(pa.table({**columns, "memory_bytes": [7, 5]}), tmp_path / "speed.parquet")
    found = speed_numbers(tmp_path)
    assert found == {"seconds": 4.0, "tokens_per_second": pytest.approx(100.0), "memory_bytes": 7}


@pytest.mark.parametrize(("loss", "final", "bad"), [([3.0, np.nan, 1.0], 1.0, 1), ([np.nan], None, 1), ([], None, 0)])
def test_training_without_finite_losses(tmp_path, loss, final, bad):
    steps = pa.array(range(1, len(loss) + 1), pa.int64())
    pq.write_table(
        pa.table({"step": steps, "tokens": steps, "loss": pa.array(loss, pa.float64())}), tmp_path / "training.parquet"
    )
    numbers = training_numbers(tmp_path)
    assert (numbers["final_loss"], numbers["not_finite"]) == (final, bad)
    gathered = gather({"model": tmp_path, "finetune/all": tmp_path}, {}, title="t")
    assert gathered.numbers["finetune"]["all"] == numbers


def test_probes_are_kept(fakes, tmp_path):
    probes = probe_numbers(fakes.sections["model"])
    assert len(probes["copy_accuracy"]) == 9
    assert np.shape(probes["induction"]) == np.shape(probes["echo"]) == (6, 8)
    assert probe_numbers(tmp_path) == {}


def test_scores_and_intervals_share_a_scale(fakes):
    scores = read_evaluations({FULL: fakes.sections[FULL]}).scores
    samples = pq.read_table(fakes.sections[FULL] / "samples.parquet").to_pylist()
    for row in scores:
        own = [100 * sample["score"] for sample in samples if sample["task"] == row["task"]]
        assert list(row["sample_scores"].values()) == pytest.approx(own)
        assert row["low"] < row["score"] < row["high"]
        assert row["score"] == pytest.approx(np.mean(own), abs=0.005)


def test_a_score_that_is_no_mean_has_no_interval(fakes):
    rewrite(fakes.sections[FULL] / "scores.parquet", lambda rows: rows[0].update(score=99.0))
    first, second, _ = read_evaluations({FULL: fakes.sections[FULL]}).scores
    assert (first["low"], first["high"], first["sample_scores"]) == (None, None, {})
    assert second["low"] is not None


def test_a_sample_with_another_reference_has_another_name(fakes):
    path = fakes.sections[FULL] / "samples.parquet"
    names = list(read_evaluations({FULL: fakes.sections[FULL]}).scores[0]["sample_scores"])
    assert len(set(names)) == 50
    rewrite(path, lambda rows: rows[7].update(references=["another"]))
    other = list(read_evaluations({FULL: fakes.sections[FULL]}).scores[0]["sample_scores"])
    assert [position for position in range(50) if names[position] != other[position]] == [7]


def test_a_question_of_another_length_depth_or_group_has_another_name(fakes):
    """RULER's and needle's references are the same at every length."""
    label = "evaluation/base/needle/full"
    path = fakes.sections[label] / "samples.parquet"

    def names(**change):
        rewrite(path, lambda rows: [row.update({"group": "a", **(change if row is rows[3] else {})}) for row in rows])
        return list(read_evaluations({label: fakes.sections[label]}).scores[0]["sample_scores"])

    before = names(length=256, depth=0.0)
    for change in ({"length": 512}, {"depth": 50.0}, {"group": "b"}):
        other = names(**{"length": 256, "depth": 0.0, **change})
        assert [place for place in range(80) if other[place] != before[place]] == [3], change


def test_what_was_left_out_stands_beside_the_score(fakes):
    def leave_out(rows):
        for row, count in zip(rows, (3, 1, 0), strict=True):
            row["contaminated"] = count

    rewrite(fakes.sections[FULL] / "scores.parquet", leave_out)
    scores = gather({FULL: fakes.sections[FULL]}, {}, title="t").numbers["evaluation"]["scores"]
    assert [row["contaminated"] for row in scores] == [3, 1, 0]
    rows = evaluation_table(scores).suites[0].rows
    assert [[note for note in row.notes if "left out" in note] for row in rows] == [["3 left out"], ["1 left out"], []]


def test_the_same_score_twice_is_refused(fakes):
    folder = fakes.sections[FULL]
    with pytest.raises(ValueError, match=r"evaluation/base/a and evaluation/base/b both hold .*longbench/constant"):
        read_evaluations({"evaluation/base/a": folder, "evaluation/base/b": folder})


def test_needle_grid_is_the_mean_by_length_and_depth(fakes):
    label = "evaluation/tagcos/needle/full"
    (grid,) = read_evaluations({label: fakes.sections[label]}).grids
    samples = pq.read_table(fakes.sections[label] / "samples.parquet").to_pylist()
    assert grid["lengths"] == [256, 512, 1024, 2048]
    for depth, row in zip(grid["depths"], grid["scores"], strict=True):
        for length, score in zip(grid["lengths"], row, strict=True):
            own = [s["score"] for s in samples if (s["length"], s["depth"]) == (length, depth)]
            assert score == pytest.approx(100 * np.mean(own))
    rewrite(fakes.sections[label] / "samples.parquet", lambda rows: rows.__delitem__(slice(0, 4)))
    assert read_evaluations({label: fakes.sections[label]}).grids[0]["scores"][0][0] is None


def test_scores_from_0_to_1_stay_so(fakes):
    label = "evaluation/tagcos/needle/full"
    path = fakes.sections[label] / "scores.parquet"
    before = read_evaluations({label: fakes.sections[label]})
    rewrite(path, lambda rows: rows[0].update(score=rows[0]["score"] / 100))
    after = read_evaluations({label: fakes.sections[label]})
    for name in ("low", "high"):
        assert after.scores[0][name] == pytest.approx(before.scores[0][name] / 100)
    assert np.array(after.grids[0]["scores"]) * 100 == pytest.approx(np.array(before.grids[0]["scores"]))
    assert grid_scale(before.grids[0], before.grids) == (100.0, 0)
    assert grid_scale(after.grids[0], after.grids) == (1.0, 2)


def test_table_marks_the_best_and_tells_what_differs(fakes):
    numbers = gather(fakes.sections, {}, title="t").numbers
    scores = numbers["evaluation"]["scores"]
    table = evaluation_table(scores)
    assert table.columns[:3] == [("base", "full"), ("base", "streaming"), ("tagcos", "full")]
    assert table.models == [("base", 2), ("tagcos", 2), ("random", 2), ("all", 2)]
    suite = table.suites[0]
    assert [row.task for row in suite.rows] == ["constant", "definition", "next_line"]
    for row in suite.rows:
        values = [float(cell.score) for cell in row.cells]
        assert [cell.best for cell in row.cells] == [value == max(values) for value in values]
    assert suite.rows[0].notes == ("14 truncated",)  # the same in every column
    assert [cell.notes for cell in suite.rows[2].cells] == [(), ("2 failed",)] * 4
    means = suite_means(scores, "longbench")
    expected = np.mean(
        [row["score"] for row in scores if (row["model"], row["policy"], row["suite"]) == ("all", "full", "longbench")]
    )
    assert means["all", "full"] == pytest.approx(expected)
    assert suite.mean.cells[6].score == f"{expected:.1f}"
    assert table.suites[1].mean is None


def test_equal_scores_have_no_best_and_less_perplexity_is_better():
    row = {
        "suite": "s",
        "task": "t",
        "policy": "full",
        "low": None,
        "high": None,
        "samples": 3,
        "failed": 0,
        "truncated": 0,
    }
    equal = [{**row, "metric": "m", "model": model, "score": 0.5} for model in "ab"]
    assert [cell.best for cell in evaluation_table(equal).suites[0].rows[0].cells] == [False, False]
    worse = [
        {**row, "metric": "perplexity", "model": model, "score": score} for model, score in (("a", 9.0), ("b", 7.5))
    ]
    assert [cell.best for cell in evaluation_table(worse).suites[0].rows[0].cells] == [False, True]


def test_a_column_that_lacks_a_task_has_no_mean(fakes):
    rewrite(fakes.sections[FULL] / "scores.parquet", lambda rows: rows.pop())
    scores = gather(fakes.sections, {}, title="t").numbers["evaluation"]["scores"]
    table = evaluation_table(scores)
    assert table.suites[0].rows[2].cells[0] is None
    assert table.suites[0].mean.cells[0] is None
    assert table.suites[0].mean.cells[1] is not None


def test_summary_tells_the_headline_numbers(fakes):
    spans = summary(gather(fakes.sections, {}, title="t").numbers)
    text = "".join(piece for piece, _ in spans)
    assert "The corpus holds 160 documents" in text
    assert "Of 2,000 instruction examples, tagcos and random each chose 100 (5.0%)." in text
    assert "On longbench (mean of 3 tasks, full KV cache), base scores" in text
    assert {"160", "2,000", "100", "5.0%"} <= {piece for piece, strong in spans if strong}
    assert "  " not in text
