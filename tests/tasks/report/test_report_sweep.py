"""Quality against the KV cache and decode time: numbers recounted, what is left out, the table, the plot, the page."""

from __future__ import annotations

import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from longloom.tasks.report.build import build
from longloom.tasks.report.evaluation import read_evaluations
from longloom.tasks.report.figures import INK, SERIES
from longloom.tasks.report.intervals import strata_interval
from longloom.tasks.report.sweep import line_names, sweeps
from longloom.tasks.report.sweep_plots import line_styles, sweep_curves
from longloom.tasks.report.sweep_table import sweep_tables

TASKS = {"qasper": "qa_f1", "hotpotqa": "qa_f1"}
RAZOR, SMALL = "razor:window=64,compression=5", "razor:window=32,compression=10"
BARE, WINDOW = "razor:window=64,compression=5,compensate=0", "streaming:sink=4,window=28"
#: Policy -> mean score of a sample, share of full's bytes, seconds of decoding.
LEVELS = {
    "full": (0.7, 1.0, 4.0),
    RAZOR: (0.68, 0.32, 1.8),
    SMALL: (0.6, 0.2, 1.6),
    BARE: (0.5, 0.32, 1.8),
    WINDOW: (0.3, 0.1, 1.5),
}


@pytest.fixture
def swept(tmp_path, make_evaluation):
    """Makes label -> folder of an evaluation under each of the policies; `add` says more of all of them."""

    def sections(*policies, model="base", suite="longbench", tasks=TASKS, retrieval=None, **cost):
        found = {}
        for policy in policies or LEVELS:
            level, share, seconds = LEVELS.get(policy, (0.4, 0.5, 2.0))
            label = "/".join(filter(None, ("evaluation", model, suite, policy, retrieval)))
            found[label] = tmp_path / f"{model}-{suite}-{len(list(tmp_path.iterdir()))}"
            found[label].mkdir()
            spent = {"kv_bytes": int(3e6 * share), "kv_bytes_mean": 2e6 * share, "decode_seconds": seconds}
            rng = np.random.default_rng(5)
            more = {"level": level, "retrieval": retrieval, "cost": {**spent, **cost}}
            make_evaluation(found[label], suite, tasks, policy, rng, **more)
        return found

    return sections


def read(sections):
    found = read_evaluations(sections)
    return sweeps(found.measured, found.costs)


def rewrite(path, change):
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(table.from_pylist(rows, table.schema), path)


def test_numbers_are_recounted(swept):
    sections = swept()
    path = sections[f"evaluation/base/longbench/{RAZOR}"] / "cost.parquet"
    rewrite(path, lambda rows: rows[0].update(kv_bytes=5_000_000, kv_bytes_mean=840_000.0, decode_steps=1500))
    (sweep,) = read(sections)
    assert (sweep["suite"], sweep["model"]) == ("longbench", "base")
    assert sweep["tasks"] == [("hotpotqa", "qa_f1"), ("qasper", "qa_f1")]
    assert [row["policy"] for row in sweep["rows"]] == [WINDOW, SMALL, BARE, RAZOR, "full"]  # by bytes
    row = sweep["rows"][3]
    assert row["bytes"] == pytest.approx((840_000 + 640_000) / 2)
    assert row["largest"] == 5_000_000
    assert row["seconds"] == pytest.approx((1.8 + 1.8) / (1500 + 500))
    assert row["bytes_share"] == pytest.approx(740_000 / 2e6)
    assert row["seconds_share"] == pytest.approx(0.0018 / 0.008)
    samples = pq.read_table(path.parent / "samples.parquet").to_pylist()
    strata = [np.array([100 * one["score"] for one in samples if one["task"] == task]) for task, _ in sweep["tasks"]]
    assert row["scores"] == pytest.approx([values.mean() for values in strata], abs=0.005)
    assert row["score"] == pytest.approx(np.mean(row["scores"]))
    assert (row["low"], row["high"]) == pytest.approx(strata_interval(strata))
    full = sweep["rows"][-1]
    assert (full["bytes_share"], full["seconds_share"]) == (1.0, 1.0)


def test_models_and_suites_are_apart(swept):
    sections = {**swept(model="tagcos"), **swept("full", RAZOR), **swept("full", WINDOW, suite="ruler")}
    found = read(sections | swept("full", suite="needle"))  # under one policy: nothing to compare
    assert [(one["suite"], one["model"], len(one["rows"])) for one in found] == [
        ("longbench", "base", 2),
        ("longbench", "tagcos", 5),
        ("ruler", "base", 2),
    ]
    assert [(table.suite, [model for model, _ in table.models]) for table in sweep_tables(found)] == [
        ("longbench", ["base", "tagcos"]),
        ("ruler", ["base"]),
    ]


def test_what_is_not_measured_is_left_out(swept):
    endpoint = swept("endpoint", kv_bytes=0, kv_bytes_mean=0.0)
    assert read({**swept("full"), **endpoint}) == []
    (sweep,) = read({**swept("full", RAZOR), **endpoint})
    assert [row["policy"] for row in sweep["rows"]] == [RAZOR, "full"]
    retrieved = swept(RAZOR, retrieval="bm25:k=5")
    assert read({**swept("full"), **retrieved}) == []
    assert len(read({**swept("full", RAZOR), **retrieved})[0]["rows"]) == 2


@pytest.mark.parametrize(("missing", "shown"), [("kv_bytes_mean", False), ("kv_bytes", False), ("decode_steps", True)])
def test_artifacts_of_earlier_versions(swept, missing, shown):
    sections = swept("full", RAZOR)
    for folder in sections.values():
        table = pq.read_table(folder / "cost.parquet")
        pq.write_table(table.drop_columns([missing]), folder / "cost.parquet")
    found = read(sections)
    assert bool(found) == shown
    for sweep in found:
        assert [row["seconds"] for row in sweep["rows"]] == [None, None]
        assert sweep["rows"][0]["bytes_share"] == pytest.approx(0.32)
        (table,) = sweep_tables(found)
        assert (table.shared, table.timed) == (True, False)
        assert "decode" not in sweep_curves(sweep, line_styles(found)).partition("<defs>")[2]


def test_a_policy_without_a_task_has_neither_mean_nor_share(swept):
    sections = swept("full", RAZOR, SMALL)
    for name in ("scores", "samples", "cost"):
        path = sections[f"evaluation/base/longbench/{SMALL}"] / f"{name}.parquet"
        rewrite(path, lambda rows: rows.__setitem__(slice(None), [row for row in rows if row["task"] == "qasper"]))
    found = read(sections)
    row, whole, _ = found[0]["rows"]
    assert (row["policy"], row["score"], row["low"], row["bytes_share"]) == (SMALL, None, None, None)
    assert row["bytes"] == pytest.approx(400_000)
    assert whole["bytes_share"] == pytest.approx(0.32)
    line = sweep_tables(found)[0].models[0][1][0]
    assert (line.score.score, line.size_share, line.scores[0].score) == ("–", None, "–")
    assert "<path" in sweep_curves(found[0], line_styles(found))


def test_without_the_full_cache_bytes_stand_for_shares(swept):
    found = read(swept(RAZOR, WINDOW))
    assert {row["bytes_share"] for row in found[0]["rows"]} == {None}
    svg = sweep_curves(found[0], line_styles(found))
    assert "KV cache of a sample, measured" in svg
    assert ">full<" not in svg
    assert INK not in re.sub(r"<text.*?</text>", "", svg)  # no reference
    assert not sweep_tables(found)[0].shared


@pytest.mark.parametrize(
    ("policies", "lines"),
    [
        (["full", "streaming:sink=4,window=28"], ["full", "streaming"]),
        ([RAZOR, SMALL, "razor"], ["razor"] * 3),
        ([RAZOR, BARE], ["razor", "razor:compensate=0"]),
        ([BARE], ["razor"]),
        (["snapkv:budget=64", "snapkv:budget=0.3", "recent:budget=64,sink=0"], ["snapkv", "snapkv", "recent"]),
        (["razor:induction=0.25", "razor-alibi:eps=0.001", "razor-alibi"], ["razor", "razor-alibi", "razor-alibi"]),
        (["duo:retrieval=0.25,recent=64", "duo"], ["duo", "duo"]),
        (["streaming:sink=4,window=28", "streaming:sink=0,window=28"], ["streaming:sink=4", "streaming:sink=0"]),
    ],
)
def test_a_line_runs_along_the_budgets_of_a_policy(policies, lines):
    assert line_names(policies) == dict(zip(policies, lines, strict=True))


def test_the_table_is_written(swept):
    sections = swept()
    slow = f"evaluation/base/longbench/{WINDOW}"
    rewrite(sections[slow] / "cost.parquet", lambda rows: [row.update(decode_seconds=8.0) for row in rows])
    (table,) = sweep_tables(read(sections))
    assert (table.shared, table.timed) == (True, True)
    ((model, lines),) = table.models
    assert model == "base"
    by_policy = {line.policy: line for line in lines}
    razor = by_policy[RAZOR]
    assert (razor.size, razor.largest, razor.seconds) == ("640 kB", "960 kB", "3.60 ms")
    assert (razor.size_share.score, razor.size_share.interval) == ("32.0%", "3.1× smaller")
    assert (razor.seconds_share.score, razor.seconds_share.interval) == ("45.0%", "2.2× faster")
    assert re.fullmatch(r"\d\d\.\d–\d\d\.\d", razor.score.interval)
    assert len(razor.scores) == len(table.tasks) == 2
    slower = by_policy[WINDOW].seconds_share
    assert (slower.score, slower.interval) == ("200.0%", "2.0× slower")
    assert (by_policy["full"].size_share.score, by_policy["full"].size_share.interval) == ("100.0%", "")


@pytest.mark.parametrize(("count", "columns"), [(1, 0), (2, 2), (5, 5), (6, 0), (40, 0)])
def test_few_tasks_have_columns(swept, count, columns):
    (table,) = sweep_tables(read(swept("full", RAZOR, tasks={f"task{number}": "f1" for number in range(count)})))
    assert len(table.tasks) == columns
    assert {len(line.scores) for _, lines in table.models for line in lines} == {columns}


def drawn(svg, colour):
    """How many points each of the lines of a colour joins; the key is not clipped to axes."""
    paths = re.findall(rf'<path d="([^"]*)" clip-path="[^"]*" style="fill: none;[^"]* {colour}\)', svg)
    return sorted(len(re.findall("[ML]", path)) for path in paths)


def test_the_plot_has_a_line_a_policy_and_marks_by_time(swept):
    found = read(swept())
    styles = line_styles(found)
    svg = sweep_curves(found[0], styles)
    assert svg == sweep_curves(found[0], styles)
    assert list(styles) == ["razor", "razor:compensate=0", "streaming"]
    assert [style[0] for style in styles.values()] == [SERIES[0], SERIES[0], SERIES[1]]  # a colour a family
    assert len(set(styles.values())) == 3
    for name in ("razor", "razor:compensate=0", "streaming", "full", "KV cache, % of the full one"):
        assert svg.count(f">{name}<") == 1
    assert "decode time, ms a token" in svg
    assert drawn(svg, SERIES[0]) == [1, 2]  # two budgets of razor, and one without compensation; by time no lines
    assert drawn(svg, SERIES[1]) == [1]
    assert drawn(svg, INK) == [2, 2]  # across
    assert len(re.findall("stroke-dasharray: 1.8,2.88", svg)) == 1 + 1  # a variant's, in the key too
    assert re.findall(r"(?:fill|stroke): #(?!ffffff)", svg) == []


def test_the_full_cache_has_its_interval(swept):
    found = read(swept("full", RAZOR))
    svg = sweep_curves(found[0], line_styles(found))
    assert svg.count("opacity: 0.15") == 2
    for row in found[0]["rows"]:
        row["low"] = row["high"] = None
    assert "opacity: 0.15" not in sweep_curves(found[0], line_styles(found))


def test_the_plot_of_little(swept):
    found = read(swept("full", RAZOR))
    (razor, full), styles = found[0]["rows"], line_styles(found)
    alike = {"score": 0.0, "low": 0.0, "high": 0.0, "bytes_share": 1.0, "seconds": 1e-6}
    assert "<path" in sweep_curves({**found[0], "rows": [{**razor, **alike}, {**full, **alike}]}, styles)
    assert "<path" in sweep_curves({**found[0], "rows": [{**razor, "seconds": 9.0}, full]}, styles)  # logarithmic
    assert "<path" in sweep_curves({**found[0], "rows": [razor, {**full, "seconds": None}]}, styles)
    assert sweep_curves({**found[0], "rows": [{**razor, "score": None}, full]}, styles) == ""
    many = [{**razor, "line": f"policy{number}", "policy": f"policy{number}"} for number in range(30)]
    sweep = {**found[0], "rows": many}
    styles = line_styles([sweep])
    assert len(set(styles.values())) == 30
    assert "policy29" in sweep_curves(sweep, styles)


def test_the_page_shows_policies_as_text(swept, tmp_path):
    hostile = "razor:<script>$x$&=1"
    sections = {**swept("full", hostile, WINDOW), **swept("full", WINDOW, model="tagcos")}
    out = tmp_path / "out"
    out.mkdir()
    build(sections, {}, out, title="t")
    page = (out / "index.html").read_text()
    assert 'href="#kv"' in page
    section = page[page.index('<section id="kv">') :]
    section = section[: section.index("</section>")]
    assert "<script" not in section
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>', section)
    shown = "razor:&lt;script&gt;$x$&amp;=1"
    assert rows == [WINDOW, shown, "full", WINDOW, "full"]
    assert section.count("<svg") == 2
    assert section.count("<details>") == section.count("</details>") == 1  # a figure of another model
    for name in ("report.md", "report.json"):  # what is measured varies
        assert not re.search(r"\d [kM]B|\d ms|bytes", (out / name).read_text())
