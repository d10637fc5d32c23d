"""The whole pipeline on tiny inputs, under one server: again, damaged, in parts, compared; and errors in its tasks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from longloom.flows.params import STAGES
from longloom.flows.params_pipeline import PipelineParams
from longloom.flows.pipeline import pipeline
from longloom.flows.report import report
from longloom.flows.show import show_pipeline
from longloom.kernels.kvcache.registry import names
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import list_runs
from longloom.storage.store import Store
from longloom.tasks.corpus.standard_library import modules

from .command import Done, Run

pytestmark = pytest.mark.usefixtures("harness")

Refs = dict[str, ArtifactRef]
POLICIES = ("full", "streaming:sink=4,window=12", "streaming:sink=4,window=28")


def params_of(inputs: Path, **changes: Any) -> PipelineParams:
    given: dict[str, Any] = {
        "corpus": {"sources": [str(inputs / "corpus")]},
        "index": {"tokenizer": str(inputs / "model"), "threads": 1, "memory_gib": 0.5},
        "model": {"source": str(inputs / "model")},
        "instructions": {"sources": [str(inputs / "instructions.jsonl")]},
        "coreset": {"share": 0.2, "clusters": 2, "dimension": 16, "checkpoints": 1, "warmup_share": 0.2, "batch": 4},
        "tracing": {"completions": 2, "prompt_tokens": 24, "new_tokens": 6},
        "finetune": {"epochs": 1, "batch": 4},
        "evaluate": {
            "suite": "records",
            "data": str(inputs / "records"),
            "limit": 1,
            "policies": POLICIES,
            "lengths": [256],
            "depths": [50],
            "samples": 1,
        },
        "full_pool": False,
    }
    return PipelineParams.model_validate(given | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline") / "store"


@pytest.fixture(scope="module")
def first(inputs: Path, root: Path) -> Refs:
    return pipeline(params_of(inputs), store=str(root))


def digests(refs: Refs) -> dict[str, str]:
    return {label: ref.digest for label, ref in refs.items()}


def said(text: str, mark: str) -> set[str]:
    """The stages whose lines begin with + (built) or = (unchanged)."""
    return {line.split()[1] for line in text.splitlines() if line.startswith(f"{mark} ")}


@pytest.fixture
def store(root: Path) -> Store:
    """The pipeline's store."""
    return Store(root)


@pytest.fixture
def run(run: Run, first: Refs) -> Run:
    """Runs `longloom ...` on the pipeline's store; of standard error it gives the last line."""

    def call(*arguments: str) -> Done:
        code, out, err = run(*arguments)
        return Done(code, out, (err.splitlines() or [""])[-1])

    return call


def test_it_comes_to_the_report(first: Refs, root: Path) -> None:
    models = ("base", "tagcos", "random")
    shown = ("full", *POLICIES[1:])
    assert list(first) == [
        *("corpus", "tokenizer", "index", "model", "explain/completions", "explain"),
        *("instructions", "warmup", "features"),
        *("coreset/tagcos", "coreset/random", "finetune/tagcos", "finetune/random"),
        *(
            f"evaluation/{model}/{suite}/{policy}"
            for model in models
            for suite in ("records", "needle")
            for policy in shown
        ),
        *("retrieval/records/words=20", "passages/records/bm25:words=20"),
        *(
            f"evaluation/random/records/full/bm25:words=20,k={k},order={order}"
            for k, order in ((1, "rank"), (2, "rank"), (2, "document"), (4, "rank"), (4, "document"))
        ),
        "report",
    ]
    assert first["coreset/tagcos"].counts["examples"] == 4
    assert first["corpus"].counts["documents"] == 4
    store = Store(root)
    assert all(store.open(ref).is_dir() for ref in first.values())
    assert not list(root.glob("work/*"))
    kernels = {label: store.manifest(ref).values["kernels"] for label, ref in first.items() if ref.kind == "evaluation"}
    assert ["prefill:sdpa"] in kernels.values()  # full attention's prompts; streaming has attention of its own
    page = (store.open(first["report"]) / "index.html").read_text()
    assert "streaming:sink=4,window=28" in page
    assert "Retrieval against long context" in page
    assert "Completions and their sources" in page
    assert "Memorization" not in page  # which is asked of the standard library
    run = list_runs(store)[-1]
    assert (run.flow, run.state, run.stages) == ("pipeline", "completed", first)


def test_the_model_of_the_whole_pool_meets_the_sweep_and_longer_prompts_too(
    first: Refs, inputs: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = "streaming:window=12,sink=4"  # is there in other words
    swept = ["razor:window=8,compression=100", POLICIES[1], again, "snapkv:budget=0.5,window=4"]
    long = {"policies": ["full", "longcache:sink=4"], "lengths": [256, 800], "depths": [0, 50], "samples": 1}
    found = pipeline(params_of(inputs, full_pool=True, sweep=swept, long=long, rag=False), store=str(root))
    assert set(first) - set(found) == {label for label in first if "bm25" in label or label.startswith("retrieval/")}
    assert {label for label in found if "/all" in label} == {
        *("finetune/all", "heads/all"),
        *(
            f"evaluation/all/{suite}/{policy}"
            for suite in ("records", "needle")
            for policy in (*POLICIES, "razor", "snapkv")
        ),
        *("long/all/needle/full", "long/all/needle/longcache"),
    }
    place = Store(root)
    page = (place.open(found["report"]) / "index.html").read_text()
    assert "Quality and KV cache" in page
    (entry,) = json.loads((place.open(found["report"]) / "report.json").read_text())["beyond"]
    assert (entry["model"], entry["window"], entry["lengths"]) == ("all", 512, [800])
    assert [row["policy"] for row in entry["rows"]] == ["full", "longcache"]
    asked = place.manifest(found["long/all/needle/longcache"]).parameters
    assert (asked["policy_options"], asked["suite_options"]["lengths"]) == ({"sink": 4}, [256, 800])
    show_pipeline(found, str(root), as_json=False)
    shown = capsys.readouterr().out
    assert re.search(r"^needle single, all +within 512 +800 *$", shown, re.MULTILINE)
    assert re.search(r"^longcache +\d+\.\d\d +\d+\.\d\d *$", shown, re.MULTILINE)


@pytest.mark.parametrize("tokenizer", ["base", "bytes"])
def test_the_standard_library_is_traced(
    tokenizer: str,
    harness: None,
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(modules, "library_root", lambda: library)
    given: dict[str, Any] = {
        "index": {"threads": 1, "memory_gib": 0.5, "tokenizer": tokenizer},
        "model": {"tokens": 10_000},
        "tracing": {
            "small": {"tokens": 10_000},
            "functions": 6,
            "gamma": [-0.5],
            "completions": 1,
            "prompt_tokens": 24,
            "new_tokens": 4,
            "clean": 2,
        },
        "until_stage": "trace",
    }
    params = PipelineParams.model_validate(given)
    place = Store(tmp_path / "store")
    found = pipeline(params, store=str(place.root))
    sides, models = ("corpus", "held-out"), ("base", "tiny")
    assert list(found) == [
        *("corpus", *(["tokenizer"] if tokenizer == "base" else []), "index", "model", "trace/model/tiny"),
        *(
            f"trace/{part}"
            for side in sides
            for part in (
                f"records/{side}",
                f"pairs/{side}/2/input-embeddings",
                *(f"scores/{side}/{model}" for model in models),
            )
        ),
        *("trace", "planted", "contamination/planted", "explain/completions", "explain"),
    ]
    assert found["trace/records/held-out"].counts == {"records": 18, "tasks": 3, "functions": 6, "modules": 2}
    sizes = {model: place.manifest(found[f"trace/scores/corpus/{model}"]).values["parameters"] for model in models}
    study = json.loads((place.open(found["trace"]) / "trace.json").read_text())
    told = {(row["set"], row["task"], row["model"], row["parameters"]) for row in study["memorization"]}
    tasks = ("knowledge", "translation", "completion")
    assert told == {(side, task, model, sizes[model]) for side in sides for task in tasks for model in models}
    assert {(row["set"], row["task"]) for row in study["dropped"] if row["pairs"]} == {
        (side, task) for side in sides for task in tasks
    }
    table = pq.read_table(place.open(found["contamination/planted"]) / "contamination.parquet").to_pylist()
    assert [row["contaminated"] for row in table] == [True, False, False]
    capsys.readouterr()
    assert pipeline(params, store=str(place.root)) == found
    assert said(capsys.readouterr().err, "+") == set()
    page = report(store=str(place.root))
    text = (place.open(page) / "index.html").read_text()
    assert all(name in text for name in ("Memorization", "Completions and their sources", "and is flagged"))


def test_again_nothing_changes(first: Refs, inputs: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.glob("artifacts/*/*/*")}
    assert pipeline(params_of(inputs), store=str(root)) == first
    err = capsys.readouterr().err
    assert said(err, "+") == set()
    assert {"corpus", "index", "features", "coreset-tagcos", "finetune-random", "report"} <= said(err, "=")
    assert {path: path.stat().st_mtime_ns for path in root.glob("artifacts/*/*/*")} == before


def test_inputs_elsewhere_give_the_same_digests(first: Refs, inputs: Path, root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    inputs.rename(moved)
    try:
        assert digests(pipeline(params_of(moved), store=str(root))) == digests(first)
    finally:
        moved.rename(inputs)


@pytest.mark.parametrize(
    ("label", "line"), [("corpus", "corpus"), ("coreset/tagcos", "coreset-tagcos"), ("report", "report")]
)
def test_what_is_damaged_is_built_again(
    label: str, line: str, first: Refs, inputs: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Store(root).open(first[label])
    for path in sorted(folder.iterdir())[:1]:
        path.write_bytes(b"damaged" + path.read_bytes()[7:])
    assert digests(pipeline(params_of(inputs), store=str(root))) == digests(first)
    assert said(capsys.readouterr().err, "+") == {line}
    assert Store(root).open(first[label]).is_dir()


def test_parts(first: Refs, inputs: Path, root: Path, tmp_path: Path) -> None:
    parts = {
        until: list(pipeline(params_of(inputs, until_stage=until, trace=until != "trace"), store=str(root)))
        for until in STAGES[:4]
    }
    assert parts == {
        "corpus": ["corpus"],
        "index": ["corpus", "tokenizer", "index"],
        "model": ["corpus", "tokenizer", "index", "model"],
        "trace": ["corpus", "tokenizer", "index", "model"],  # left out
    }
    traced = pipeline(params_of(inputs, from_stage="trace", until_stage="trace"), store=str(root))
    assert digests(traced) == {label: first[label].digest for label in (*parts["model"], *list(first)[4:6])}
    assert pipeline(params_of(inputs, from_stage="report"), store=str(root)) == first
    other = tmp_path / "store"
    until = pipeline(params_of(inputs, until_stage="index"), store=str(other))
    assert digests(until) == {label: first[label].digest for label in ("corpus", "tokenizer", "index")}
    with pytest.raises(ValueError, match=r"^completions: not in the store .*; start from this stage or an earlier one"):
        pipeline(params_of(inputs, from_stage="coreset"), store=str(other))
    from_model = pipeline(params_of(inputs, from_stage="model", until_stage="model"), store=str(other))
    assert from_model["model"].digest == first["model"].digest


def test_a_model_of_an_earlier_run(run: Run, first: Refs, inputs: Path) -> None:
    evaluate = (
        "evaluate",
        "--suite",
        "records",
        "--data",
        str(inputs / "records"),
        "--limit",
        "1",
        "--json",
        "--model",
    )
    code, out, _ = run(*evaluate, "run:latest:finetune/tagcos")
    assert code == 0
    found = json.loads(out)
    assert found["evaluations"]["full"] == first["evaluation/tagcos/records/full"].model_dump()
    assert [(row["task"], row["samples"]) for row in found["scores"]] == [("copy", 1)]
    code, out, err = run(*evaluate, "run:latest:finetune/nope")
    assert (code, out) == (2, "")
    assert "no such model, expected run:latest:LABEL; the labels there: model, finetune/tagcos, finetune/random" in err
    code, out, err = run(*evaluate, "run:1999:model")
    assert (code, out) == (2, "")
    assert "run '1999': 0 match" in err


def test_report_and_comparison(run: Run, first: Refs, inputs: Path, root: Path, tmp_path: Path) -> None:
    store = Store(root)
    one = next(run.id for run in list_runs(store) if run.stages == first)
    pipeline(params_of(inputs, finetune={"epochs": 2, "batch": 4}), store=str(root))
    other = list_runs(store)[0].id
    assert f'href="{first["report"].uri}/index.html"' in (root / "index.html").read_text()
    code, out, _ = run("compare", one, other, "--json")
    assert code == 0
    assert json.loads(out)
    assert run("index", str(inputs / "corpus"))[0] == 0  # a run without scores, which `latest` passes over
    code, out, _ = run("compare", one)
    assert code == 0
    assert "epochs" in out
    page = tmp_path / "page.html"
    code, out, _ = run("report", one, "--out", str(page), "--json")
    assert code == 0
    assert json.loads(out)["report"]["digest"] == first["report"].digest
    assert page.read_text().lstrip().startswith("<!")
    for command in (("report", "nope"), ("compare", one, "nope")):
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert err.startswith("longloom: run 'nope': 0 match")


def test_evaluations_compare_without_a_pipeline(run: Run, inputs: Path, root: Path, tmp_path: Path) -> None:
    """Their reports are made on the way; the samples of other records are not paired with these."""
    other = tmp_path / "records"
    shutil.copytree(inputs / "records", other)
    file = other / "copy.jsonl"
    file.write_text(file.read_text().replace("word:", "another word:"))
    for data in (inputs / "records", other):
        evaluate = ("evaluate", "--suite", "records", "--model", str(inputs / "model"), "--data", str(data))
        assert run(*evaluate, "--limit", "2").code == 0
    second, first = (found.id for found in list_runs(Store(root))[:2])
    for one, paired in ((first, True), (second, False)):
        code, out, _ = run("compare", first, one, "--json")
        assert code == 0
        found = json.loads(out)
        assert found["rows"]
        assert all((row["paired"] is not None) == paired for row in found["rows"])
        changed = [change["parameter"] for change in found["changes"]]
        assert changed == ([] if paired else ["input data"])


def test_errors_inside_of_tasks(run: Run, inputs: Path, root: Path, tmp_path: Path) -> None:
    before = sorted(root.glob("artifacts/*/*"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "1", "text": "good"}\n{"id": "2", "txt": "bad"}\n')
    (tmp_path / "empty").mkdir()
    model, data = str(inputs / "model"), str(inputs / "records")
    evaluate = ("evaluate", "--model", model, "--data", data, "--suite")
    for command, expected in [
        (("index", str(bad)), "bad.jsonl, line 2: found no field 'text' (fields: id, txt), expected text"),
        (("index", str(tmp_path / "empty")), "empty: the folder holds no files"),
        (("index", "nowhere"), "nowhere: no such file or folder"),
        (("evaluate", "--model", str(tmp_path)), "holds no config.json and no tokenizer.json"),
        (("evaluate", "--model", "scratch"), "model scratch: there is no corpus to train it on here"),
        ((*evaluate, "nope"), "unknown suite 'nope'; known: chatrag, infinitebench, leval, "),
        (
            (*evaluate, "records", "--policies", "nope"),
            f"unknown KV policy 'nope'; known: {', '.join(names())}",
        ),
        ((*evaluate, "records", "--policies", "streaming:a=1"), "KV policy 'streaming' has no option 'a'"),
        ((*evaluate, "records", "--tasks", "nope"), "suite 'records' has no task 'nope'; known: copy"),
        (("coreset", "--methods", "nope"), "unknown selection method 'nope'; known: k-center, less"),
        (("pipeline", "--coreset.methods", "nope"), "unknown selection method 'nope'; known: k-center, less"),
        (
            ("pipeline", "--evaluate.policies", "nope"),
            f"unknown KV policy 'nope'; known: {', '.join(names())}",
        ),
    ]:
        code, out, err = run(*command)
        assert (code, out) == (2, ""), (command, err)
        assert err.startswith("longloom: "), err
        assert expected in err
    assert {path for path in sorted(root.glob("artifacts/*/*")) if path not in before} == set()


def test_bad_records_are_skipped_and_counted(run: Run, root: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "1", "text": "good"}\nno JSON\n{"id": "2", "txt": "bad"}\n')
    code, out, _ = run("index", str(bad), "--on-bad-record", "skip", "--tokenizer", "bytes", "--json")
    assert code == 0
    assert json.loads(out)["index"]["counts"]["documents"] == 1
    corpus = list_runs(Store(root))[0].stages["corpus"]
    assert corpus.counts == {"documents": 1, "characters": 4, "skipped": 2}
