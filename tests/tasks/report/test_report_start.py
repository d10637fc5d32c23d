"""The start page of a store, the links of the pages, and what a comparison tells besides paired scores."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest

from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import Run
from longloom.storage.stats import Stats
from longloom.storage.store import Store
from longloom.tasks.report.beyond import by_asked_length
from longloom.tasks.report.differences import compare
from longloom.tasks.report.evaluation import read_evaluations
from longloom.tasks.report.links import Links, anchor
from longloom.tasks.report.measures import measures
from longloom.tasks.report.render_compare import FORMS, render_compare
from longloom.tasks.report.start import start_page, write_start

HOSTILE = "<script>alert(1)</script>"


def publish(store: Store, kind: str, key: str, files: dict[str, str], parents: dict[str, str]) -> ArtifactRef:
    with store.lock(kind, key):
        work = store.begin(kind, key, resume=False)
        for name, text in files.items():
            (work / name).write_text(text)
        return store.publish(
            work, Stats(counts={"scores": 3}), stage=kind, version=1, kind=kind, key=key, parameters={},
            parents=parents, runtime={}, seconds=0.5, code="c", environment={},
        )  # fmt: skip


def record(store: Store, number: int, **more: object) -> Run:
    run = Run(
        id=f"2026010{number}-000000-abcd",
        flow="pipeline",
        state="completed",
        started=f"2026-01-0{number}T00:00:00.000+00:00",
        ended=f"2026-01-0{number}T00:01:15.000+00:00",
        parameters={"corpus": {"limit": number}, "note": HOSTILE},
    ).model_copy(update=more)
    store.write_record(f"runs/{run.id}.json", run.model_dump_json())
    return run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two pipelines, the second with a report; a trace of which a report was made later; one that failed."""
    store = Store(tmp_path / "store")
    corpus = publish(store, "corpus", "1" * 32, {"data": "x"}, {})
    page = {"index.html": "<p>", "report.json": json.dumps({"format": 1, "title": "t", "corpus": None})}
    report = publish(store, "report", "2" * 32, page, {"corpus": "another"})
    later = publish(store, "report", "3" * 32, {**page, "more": "y"}, {"corpus": corpus.digest})
    publish(
        store, "compare", "4" * 32, {"index.html": "<p>", "compare.json": json.dumps({"titles": ["One", HOSTILE]})}, {}
    )
    record(store, 1)
    record(store, 2, stages={"corpus": corpus, "report": report})
    record(store, 3, flow="trace", stages={"corpus": corpus})
    record(store, 4, state="failed", ended="")
    assert later.digest != report.digest
    return store


def test_runs_are_listed_newest_first_with_their_pages(store):
    page = start_page(store)
    table = page[page.index('id="runs"') : page.index('id="comparisons"')]
    assert re.findall(r"2026010\d-000000-abcd(?=</a>)", table) == [f"2026010{n}-000000-abcd" for n in (4, 3, 2, 1)]
    # The trace's report was made by another command: found by what it is of.
    assert re.findall(r'href="(artifacts/[^"]*)"', table) == [f"artifacts/report/{key * 32}/index.html" for key in "32"]
    assert "1 min 15 s" in table
    assert "failed" in table
    assert f'href="artifacts/compare/{"4" * 32}/index.html"' in page
    for link in re.findall(r'href="(artifacts/[^"]*)"', page):
        assert (store.root / link).exists()


def test_a_run_without_a_report_links_the_page_that_it_made(store):
    explained = publish(store, "explain", "5" * 32, {"index.html": "<p>"}, {})
    record(store, 5, flow="explain", stages={"explain": explained})
    page = start_page(store)
    assert f'<a href="artifacts/explain/{"5" * 32}/index.html">explain</a>' in page
    assert page.count('index.html">report</a>') == 2


def test_what_was_set_otherwise_is_told(store):
    page = start_page(store)
    details = page[page.index('id="run-20260102-000000-abcd"') : page.index('id="run-20260101-000000-abcd"')]
    change = details[details.index("Set otherwise than in 20260101") : details.index("</table>")]
    assert re.findall(r"<code>(.*?)</code>", change) == ["1", "2"]


def test_data_stays_text_and_the_page_is_a_function_of_the_store(store):
    assert write_start(store) == store.root / "index.html"
    page = (store.root / "index.html").read_text()
    assert page == start_page(store)
    assert page.count("<script>") == 1
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in page
    assert str(store.root.parent) not in page


def test_a_page_that_is_gone_is_not_linked_and_damage_is_passed_over(store):
    (store.root / "artifacts/report" / ("2" * 32) / "index.html").unlink()
    (store.root / "artifacts/report" / ("3" * 32) / "manifest.json").write_text("{")
    (store.root / "artifacts/compare" / ("4" * 32) / "compare.json").write_bytes(b"\xff")
    (store.root / "runs/20260101-000000-abcd.json").write_text("[]")
    page = start_page(store)
    assert not re.search(r"artifacts/report/[^\"]*index.html", page)
    assert "20260101" not in page


def test_an_empty_store_has_a_page_too(tmp_path):
    assert "No run yet" in start_page(Store(tmp_path / "new"))


def test_links_lead_to_what_is_there_alone():
    case = {"model": "m<", "policy": "full", "retrieval": None, "suite": "s"}
    links = Links(
        ["corpus", "contamination/a b", "evaluation/m</s/full"], [{**case, "section": "evaluation/m</s/full"}]
    )
    assert links.at("x", "nowhere", "corpus") == f'<a href="#{anchor("corpus")}">x</a>'
    assert links.at("<", "nowhere") == "&lt;"
    assert anchor("evaluation/m</s/full") in links.scored("1.0", **case)
    assert links.scored("1.0", **{**case, "policy": "other"}) == "1.0"
    assert links.of("contamination") == ["contamination/a b"]
    assert re.fullmatch(r"artifact-[0-9a-f]{10}", anchor("evaluation/m</s/full"))


def test_long_scores_are_compared_length_by_length(fakes):
    label = "evaluation/tagcos/needle/full"
    found = read_evaluations({"long/tagcos/needle/full": fakes.sections[label]})
    rows = by_asked_length(found.measured)
    assert [(row["length"], len(row["sample_scores"])) for row in rows] == [(n, 20) for n in (256, 512, 1024, 2048)]
    assert rows[0]["section"] == "long/tagcos/needle/full"
    a = {"format": 1, "title": "a", "long": rows}
    b = deepcopy(a)
    b["long"][3]["sample_scores"] = dict.fromkeys(rows[3]["sample_scores"], 0.0)
    b["long"][3]["score"] = 0.0
    comparison = compare(a, b)
    assert [row.task for row in comparison.rows] == [f"single at {n} tokens" for n in (256, 512, 1024, 2048)]
    assert [row.verdict for row in comparison.rows] == ["", "", "", "worse"]
    assert comparison.rows[3].paired.difference == -rows[3]["score"]
    assert {row.suite for row in comparison.rows} == {"needle, long"}


@pytest.fixture
def measured():
    """A report.json of everything that has measures without samples."""
    accuracy = {"value": 0.8, "low": 0.75, "high": 0.85}
    spread = {"mean": 1.5, "low": 1.4, "high": 1.6}
    mem = {
        "measure": "task-gram",
        "task": "qa",
        "set": "own",
        "n": 2,
        "model": "m",
        "rho": 0.3,
        "low": 0.1,
        "high": 0.5,
    }
    conditions = {"conditions": {"nc": {**accuracy, "value": 0.5}, "ctx": accuracy, "negated": accuracy}}
    preference = {
        "sets": {"pairs": {**conditions, "two_step": None}},
        "judges": {"pairs": {"conditions": {"ctx": accuracy}}},
        "best_of": {"score": 0.6, "subsets": [{"subset": "maths", "score": 0.6, "low": 0.5, "high": 0.7}]},
    }
    return {
        "format": 1,
        "title": "t",
        "model": {"training": {"final_loss": 1.7}},
        "memorization": {"rows": [mem]},
        "contamination": {"set": {"records": 10, "contaminated": 2}},
        "proof": {"rows": [{"method": "tagcos", "share": 0.05, "loss": spread}]},
        "extension": {"perplexity": {"after": [{"first": 0, "last": 511, "perplexity": 4.5}]}},
        "tuning": {"instruct": []},
        "finetune": {name: {"final_loss": 0.5} for name in ("all", "instruct", "extended")},
        "preference": preference,
    }


def test_measures_without_samples_are_set_side_by_side(measured):
    found = measures(measured)
    assert {key[0]: measure.section for key, measure in found.items() if key[0] != "training loss"} == {
        "memorization, task-gram": "trace",
        "contamination": "contamination/set",
        "held-out loss": "proof",
        "perplexity": "positions/after",
        "preference accuracy": "preference/pairs",
        "judge’s accuracy": "preference-judge/pairs",
        "best of several": "best-of",
    }
    trained = {key[1]: measure.section for key, measure in found.items() if key[0] == "training loss"}
    assert trained == {
        "base model": "model",
        "all": "finetune/all",
        "instruct": "tune/instruct",
        "extended": "extended",
    }
    other = deepcopy(measured)
    other["proof"]["rows"][0]["loss"] = {"mean": 1.2, "low": 1.1, "high": 1.3}
    other["preference"]["sets"]["pairs"]["conditions"]["ctx"] = {"value": 0.7, "low": 0.65, "high": 0.74}
    other["preference"]["sets"]["pairs"]["conditions"]["negated"] = {"value": 0.7, "low": 0.65, "high": 0.76}
    other["finetune"]["all"]["final_loss"] = 0.25
    del other["contamination"]
    comparison = compare(measured, other)
    verdicts = {row.name: row.verdict for row in comparison.measures if row.verdict}
    assert verdicts == {"tagcos at 5%": "better", "pairs, its context": "worse"}
    (loss,) = [row for row in comparison.measures if row.name == "all"]
    assert (loss.difference, loss.verdict) == (-0.25, "")  # no interval, no verdict
    (lone,) = [row for row in comparison.measures if row.part == "contamination"]
    assert (lone.b, lone.difference) == (None, None)
    written = {form: render_compare(comparison, form, pages=("../a.html", "../b.html")) for form in FORMS}
    assert f'<a href="../a.html#{anchor("proof")}">1.500</a><small>1.400 to 1.600</small>' in written["page"]
    assert "| held-out loss | tagcos at 5% | 1.500 | 1.400 to 1.600 | 1.200 |" in written["markdown"]
    assert "all" in written["table"]
    assert "contamination" not in written["table"]  # a terminal shows what differs
    assert json.loads(written["json"])["measures"][0]["a"]["section"] == "model"


def test_a_number_without_a_page_is_not_linked(measured):
    assert '<a href="../' not in render_compare(compare(measured, measured), "page")
