"""Comparing two reports: differences, alignment of samples, parameters, and the forms they are written in."""

from __future__ import annotations

import json
from copy import deepcopy

import numpy as np
import pytest

from longloom.tasks.report import render_compare as render_compare_module
from longloom.tasks.report.compare import build as build_comparison
from longloom.tasks.report.differences import compare
from longloom.tasks.report.gather import gather
from longloom.tasks.report.intervals import paired
from longloom.tasks.report.render_compare import FORMS, render_compare


@pytest.fixture
def first(fakes):
    return gather(fakes.sections, fakes.manifests, title="First | run").numbers


@pytest.fixture
def second(first):
    """The same run with every other sample of one score turned around, and some parameters changed."""
    report = deepcopy(first)
    report["title"] = "Second <b>run</b>"
    row = score_of(report, "definition")
    for name in list(row["sample_scores"])[::2]:
        row["sample_scores"][name] = 100.0
    row["score"] = float(np.mean(list(row["sample_scores"].values())))
    parameters = report["manifests"]["coreset/tagcos"]["parameters"]
    parameters |= {"share": 0.1, "lora": {"rank": 16, "targets": ["q_proj", "v_proj"], "alpha": 32}}
    del parameters["seed"]
    del report["manifests"]["features"]
    return report


def score_of(report, task, model="tagcos", policy="full"):
    rows = report["evaluation"]["scores"]
    return next(row for row in rows if (row["task"], row["model"], row["policy"]) == (task, model, policy))


def test_equal_runs_do_not_differ(first):
    comparison = compare(first, first)
    assert len(comparison.rows) == 32
    assert {row.difference for row in comparison.rows} == {0.0}
    assert {row.paired.p for row in comparison.rows} == {1.0}
    assert comparison.changes == ()
    assert comparison.sections == {}


def test_a_difference_is_paired_over_its_samples(first, second):
    comparison = compare(first, second)
    (row,) = [row for row in comparison.rows if row.difference]
    assert (row.suite, row.task, row.model, row.policy) == ("longbench", "definition", "tagcos", "full")
    scores = [score_of(report, "definition")["sample_scores"] for report in (first, second)]
    a, b = (np.array([samples[name] for name in sorted(samples)]) for samples in scores)
    assert row.paired == paired(a, b)
    assert row.samples == 50
    assert row.difference == pytest.approx(row.paired.difference, abs=0.005)  # scores are rounded to two decimals
    assert row.paired.p < 0.01


def test_samples_align_by_name_and_not_by_order(first, second):
    row = score_of(second, "definition")
    row["sample_scores"] = dict(reversed(row["sample_scores"].items()))
    assert compare(first, second).rows == compare(first, deepcopy(second)).rows
    (shuffled,) = [row for row in compare(first, second).rows if row.difference]
    assert shuffled.paired.p < 0.01


def test_other_samples_are_not_paired(first, second):
    samples = score_of(second, "definition")["sample_scores"]
    samples["another"] = samples.pop(next(iter(samples)))
    (row,) = [row for row in compare(first, second).rows if row.difference]
    assert (row.paired, row.samples) == (None, 0)
    assert row.a is not None
    assert row.b is not None


def test_changed_parameters_and_lone_sections(first, second):
    comparison = compare(first, second)
    changes = {(change.section, change.parameter): (change.a, change.b, change.only) for change in comparison.changes}
    assert changes == {
        ("coreset/tagcos", "share"): (0.05, 0.1, ""),
        ("coreset/tagcos", "lora.rank"): (8, 16, ""),
        ("coreset/tagcos", "lora.alpha"): (None, 32, "b"),
        ("coreset/tagcos", "seed"): (0, None, "a"),
    }
    assert comparison.sections == {"features": "a"}


def test_other_questions_are_not_paired_and_other_inputs_are_told(first):
    other = deepcopy(first)
    label = score_of(first, "definition")["section"]
    digests = ["a" * 64, "b" * 64]
    for report, digest in zip((first, other), digests, strict=True):
        report["manifests"][label]["parents"]["data"] = digest
    comparison = compare(first, other)
    assert {row.paired is None for row in comparison.rows if row.artifacts[0] == label} == {True}
    assert {row.paired is None for row in comparison.rows if row.artifacts[0] != label} == {False}
    assert [(change.section, change.parameter, change.a, change.b) for change in comparison.changes] == [
        (label, "input data", *digests)
    ]
    table = render_compare(comparison, "table", width=200)
    assert "a" * 12 in table
    assert "a" * 13 not in table


def test_what_a_run_made_is_no_input_of_it(first):
    """A corpus that differs is told where it was given, not with all that was made of it."""
    other = deepcopy(first)
    other["manifests"]["corpus"] |= {"digest": "c" * 64, "parents": {"sources": "d" * 64}}
    for label, manifest in other["manifests"].items():
        if label != "corpus":
            manifest["parents"] = {"corpus": "c" * 64}
    other["manifests"]["index"]["version"] = 2
    assert [(change.section, change.parameter, change.a, change.b) for change in compare(first, other).changes] == [
        ("corpus", "input sources", None, "d" * 64),
        ("index", "stage's version", 1, 2),
    ]


def test_a_page_says_what_was_tested(first):
    other = deepcopy(first)
    for row in other["evaluation"]["scores"] + other.get("long", []):
        row["sample_scores"] = {f"other-{name}": score for name, score in row["sample_scores"].items()}
    assert "No score is of the same samples" in render_compare(compare(first, other), "page")
    assert "No score differs by more than chance" in render_compare(compare(first, first), "page")


def test_scores_of_one_run_only(first, second):
    second["evaluation"]["scores"].remove(score_of(second, "constant"))
    lone = [row for row in compare(first, second).rows if row.b is None]
    assert [(row.task, row.model, row.policy, row.difference) for row in lone] == [("constant", "tagcos", "full", None)]
    for form in FORMS:
        assert render_compare(compare(first, second), form)


def test_lists_of_scores_compare_too(first, second):
    comparison = compare(first["evaluation"]["scores"], second["evaluation"]["scores"])
    assert comparison.rows == compare(first, second).rows
    assert comparison.titles == ("a", "b")


def test_what_is_no_report_is_refused(first):
    with pytest.raises(ValueError, match=r"run b is no report.json and holds no scores"):
        compare(first, {})
    with pytest.raises(ValueError, match=r"a score of run a lacks policy, score; has suite, task, metric, model"):
        compare([{"suite": "s", "task": "t", "metric": "m", "model": "x"}], first)


def test_forms(first, second):
    comparison = compare(first, second)
    table = render_compare(comparison, "table", width=120)
    assert "\x1b" not in table
    assert "\x1b" in render_compare(comparison, "table", colour=True)
    assert max(map(len, table.splitlines())) <= 120
    assert "lora.alpha" in table
    assert "not set" in table
    whole = json.loads(render_compare(comparison, "json"))
    assert whole["titles"] == ["First | run", "Second <b>run</b>"]
    assert [row["difference"] for row in whole["rows"]] == [row.difference for row in comparison.rows]
    page = render_compare(comparison, "page")
    assert "Second &lt;b&gt;run&lt;/b&gt;" in page
    assert page.count('class="better"') == 1
    assert "http://" not in page
    assert "https://" not in page
    markdown = render_compare(comparison, "markdown")
    assert "First \\| run" in markdown
    assert markdown.count("\n| longbench | ") == 24
    with pytest.raises(ValueError, match="unknown form 'pdf'; known: table, markdown, json, page"):
        render_compare(comparison, "pdf")


@pytest.mark.parametrize("form", FORMS)
def test_decimals_are_looked_up_once_a_form(first, monkeypatch, form):
    """Once a row, a comparison of thousands of scores would take minutes."""
    rows = [{**score_of(first, "constant"), "task": f"task {number}", "sample_scores": {}} for number in range(4000)]
    comparison = compare(rows, rows)
    asked, written = [], []
    digits, line = render_compare_module._digits, render_compare_module._line
    monkeypatch.setattr(render_compare_module, "_digits", lambda rows: asked.append(1) or digits(rows))
    monkeypatch.setattr(render_compare_module, "_line", lambda *values: written.append(1) or line(*values))
    render_compare(comparison, form)
    assert len(asked) == {"json": 0, "page": 2}.get(form, 1)  # the page has figures
    assert len(written) == (0 if form == "json" else 4000)


def test_less_is_better_for_perplexity():
    row = {"suite": "s", "task": "t", "metric": "perplexity", "model": "m", "policy": "full"}
    a, b = ({f"{n}": base + n % 3 for n in range(20)} for base in (9.0, 7.0))
    runs = [[{**row, "score": np.mean(list(samples.values())), "sample_scores": samples}] for samples in (a, b)]
    page = render_compare(compare(*runs), "page")
    assert 'class="better">−2.0' in page


def test_stage_writes_every_form(first, second, tmp_path):
    for name, report in (("first", first), ("second", second)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    for out in ("one", "two"):
        (tmp_path / out).mkdir()
        stats = build_comparison(tmp_path / "first", tmp_path / "second", tmp_path / out)
    assert stats.counts == {"scores": 32, "measures": 4, "changes": 4}
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"compare.json", "compare.md", "compare.txt", "index.html"}
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    (tmp_path / "second" / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*second.report\.json"):
        build_comparison(tmp_path / "first", tmp_path / "second", tmp_path / "one")
