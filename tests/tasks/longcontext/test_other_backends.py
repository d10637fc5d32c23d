"""Evaluations beyond a model of ours on a suite of ours: the harness's tasks, retrieval, an endpoint, a judge."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.evals.protocol import Request
from longloom.evals.registry import open_suite
from longloom.evals.suite import Source
from longloom.kernels.kvcache.registry import get_policy, policy_text
from longloom.storage.store import Store
from longloom.tasks.longcontext import harness_data
from longloom.tasks.longcontext.backends import LEDGER, EndpointBackend, PolicyBackend
from longloom.tasks.longcontext.evaluate import build
from longloom.tasks.longcontext.harness import build as build_harness
from longloom.tasks.longcontext.judge import LEDGER as JUDGEMENTS
from longloom.tasks.longcontext.judge import build as build_judge
from longloom.tasks.longcontext.retrieved import Retrieval
from longloom.tasks.longcontext.task import _with_data
from longloom.tasks.retrieval.index import build as build_index
from longloom.tasks.retrieval.passages import build as build_passages
from longloom.tasks.suite_data import HARNESS

from ...chat_server import Asked, ChatServer

SETTINGS: dict[str, Any] = {
    "tasks": None,
    "suite_options": {},
    "limit": None,
    "max_length": None,
    "batch_size": 2,
    "seed": 0,
}


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / f"{table}.parquet").to_pylist()
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def write_harness_tasks(folder: Path) -> None:
    folder.mkdir()
    lines = [{"q": f"the key {n}", "good": " value", "bad": " zzz", "gold": n % 2} for n in range(4)]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    head = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}\ntest_split: test\n"
    (folder / "choice.yaml").write_text(
        f"task: tiny_choice\n{head}output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\n"
        "doc_to_choice: ['value', 'zzz']\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}, {metric: brier_score}]\n"
    )
    (folder / "write.yaml").write_text(
        f"task: tiny_write\n{head}output_type: generate_until\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{good}}'\n"
        "generation_kwargs: {max_gen_toks: 4, until: []}\nmetric_list: [{metric: exact_match}]\n"
    )


@pytest.mark.parametrize(("policy", "options"), [("full", {}), ("snapkv", {"budget": 9, "window": 3})])
def test_tasks_of_the_harness(
    model_folder: Path, tmp_path: Path, out: Path, policy: str, options: dict[str, Any]
) -> None:
    write_harness_tasks(tmp_path / "tasks")
    backend = PolicyBackend(model_folder, policy, options, device="cpu")
    settings = {"limit": 3, "max_length": None, "batch_size": 2, "seed": 0}
    stats = build_harness(backend, tmp_path / "tasks", out, tasks=["tiny_choice", "tiny_write"], **settings)
    assert stats.counts == {"tasks": 2, "samples": 6, "failed": 0, "truncated": 0}
    scores = {(row["task"], row["metric"]): row for row in rows(out, "scores")}
    higher = {("tiny_choice", "acc"): True, ("tiny_choice", "acc_norm"): True, ("tiny_choice", "brier_score"): False}
    higher["tiny_write", "exact_match"] = True
    assert {name: row["higher_is_better"] for name, row in scores.items()} == higher
    assert all((row["samples"], row["suite"], row["full_score"]) == (3, "lm-eval", None) for row in scores.values())
    samples = rows(out, "samples")
    assert len(samples) == 12
    right = [row["prediction"] == row["references"][0] for row in samples if row["metric"] == "acc"]
    assert scores["tiny_choice", "acc"]["score"] == pytest.approx(sum(right) / 3)
    assert {row["policy"] for row in samples} == {policy_text(get_policy(policy, **options))}
    costs = {row["task"]: row for row in rows(out, "cost")}
    assert list(costs) == ["tiny_choice", "tiny_write"]
    assert all(row["seconds"] > 0 and row["prompt_tokens"] > 0 for row in costs.values())
    assert costs["tiny_choice"]["new_tokens"] == 0
    assert not (out / LEDGER).exists()


def test_unknown_tasks_of_the_harness(model_folder: Path, tmp_path: Path, out: Path) -> None:
    write_harness_tasks(tmp_path / "tasks")
    backend = PolicyBackend(model_folder, "full", {}, device="cpu")
    settings: dict[str, Any] = {"max_length": None, "batch_size": 2, "seed": 0}
    with pytest.raises(ValueError, match="limit is 0, expected at least 1"):
        build_harness(backend, tmp_path / "tasks", out, tasks=["tiny_choice"], limit=0, **settings)


def test_a_task_that_asks_for_code_of_the_hub_while_it_runs(model_folder: Path, tmp_path: Path, out: Path) -> None:
    write_harness_tasks(tmp_path / "tasks")
    choice = (tmp_path / "tasks" / "choice.yaml").read_text()
    own = "process_results: !function own.rate\n"
    (tmp_path / "tasks" / "asking.yaml").write_text(choice.replace("tiny_choice", "asking") + own)
    (tmp_path / "tasks" / "own.py").write_text("import evaluate\ndef rate(*_):\n    evaluate.load('bleu')\n")
    backend = PolicyBackend(model_folder, "full", {}, device="cpu")
    settings = {"limit": 1, "max_length": None, "batch_size": 4, "seed": 0}
    with pytest.raises(ValueError, match=r"^the metric 'bleu' is code of the hub, which is not run"):
        build_harness(backend, tmp_path / "tasks", out, tasks=["asking"], **settings)


def test_the_harness_has_a_version_of_its_own_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness_data, "_own_index", dict)  # of 14,000 files
    asked: list[dict[str, str]] = []

    def stage(store: Store, inputs: Any, *, identity: dict[str, str], **options: Any) -> None:
        asked.append(identity)

    for suite in (HARNESS, "needle"):
        _with_data(stage, Store(tmp_path), {}, None, suite, "label", None, None, {"tasks": ["own"]}, {})
    assert [identity.keys() for identity in asked] == [{"harness"}, set()]


def passages_of(tmp_path: Path, data: Path) -> Path:
    index, ranked = tmp_path / "index", tmp_path / "ranked"
    index.mkdir()
    ranked.mkdir()
    build_index(
        data,
        index,
        model=None,
        encoder=None,
        suite="records",
        tasks=["keys"],
        suite_options={},
        limit=None,
        seed=0,
        chunker="words",
        size=3,
        query_prefix=None,
        device=None,
    )
    build_passages(index, ranked, ranker="bm25", most=None)
    return ranked


def test_retrieved_passages_stand_in_for_the_context(
    model_folder: Path, records_folder: Path, tmp_path: Path, out: Path
) -> None:
    ranked = passages_of(tmp_path, records_folder)
    backend = PolicyBackend(model_folder, "full", {}, device="cpu")
    retrieval = Retrieval(ranked, k=2, budget=None, order="rank", label="bm25:words=3,k=2,order=rank")
    settings = {**SETTINGS, "tasks": ["keys"]}
    stats = build(backend, records_folder, out, suite="records", retrieval=retrieval, **settings)
    assert stats.counts["truncated"] == 0  # whole contexts do not fit
    samples = rows(out, "samples")
    assert {row["retrieval"] for row in samples} == {"bm25:words=3,k=2,order=rank"}
    whole = tmp_path / "whole"
    whole.mkdir()
    build(backend, records_folder, whole, suite="records", **settings)
    assert samples[4]["prompt_tokens"] < 100 < rows(whole, "samples")[4]["prompt_tokens"]


def test_all_passages_in_document_order_are_the_context(
    model_folder: Path, records_folder: Path, tmp_path: Path, out: Path
) -> None:
    ranked = passages_of(tmp_path, records_folder)
    backend = PolicyBackend(model_folder, "full", {}, device="cpu")
    retrieval = Retrieval(ranked, k=10_000, budget=None, order="document", label="all")
    whole = tmp_path / "whole"
    whole.mkdir()
    settings = {**SETTINGS, "tasks": ["keys"]}
    build(backend, records_folder, out, suite="records", retrieval=retrieval, **settings)
    build(backend, records_folder, whole, suite="records", **settings)
    ours, theirs = rows(out, "samples"), rows(whole, "samples")
    assert [{**row, "retrieval": None} for row in ours] == theirs


def test_a_best_passage_beyond_the_budget_fails_its_sample_alone(
    model_folder: Path, records_folder: Path, tmp_path: Path, out: Path
) -> None:
    ranked = passages_of(tmp_path, records_folder)
    passages = pq.read_table(ranked / "passages.parquet").to_pylist()
    for row in passages:
        if row["sample"] == 2 and row["rank"] == min(one["rank"] for one in passages):
            row["text"] = "word " * 500
    schema = pq.read_schema(ranked / "passages.parquet")
    pq.write_table(pa.Table.from_pylist(passages, schema), ranked / "passages.parquet")
    backend = PolicyBackend(model_folder, "full", {}, device="cpu")
    retrieval = Retrieval(ranked, k=None, budget=60, order="rank", label="x")
    stats = build(backend, records_folder, out, suite="records", retrieval=retrieval, **{**SETTINGS, "tasks": ["keys"]})
    assert (stats.counts["samples"], stats.counts["failed"]) == (5, 1)
    samples = rows(out, "samples")
    assert [row["failed"] for row in samples] == [False, False, True, False, False]
    assert (samples[2]["prediction"], samples[2]["score"], samples[2]["prompt_tokens"]) == ("", 0.0, 0)
    assert re.fullmatch(
        r"passages: the best chunk has \d+ tokens, expected no more than the budget of 60", samples[2]["error"]
    )
    assert all(row["prompt_tokens"] > 0 for row in samples if not row["failed"])


def test_what_retrieval_refuses(model_folder: Path, records_folder: Path, tmp_path: Path, out: Path) -> None:
    ranked = passages_of(tmp_path, records_folder)
    backend = PolicyBackend(model_folder, "full", {}, device="cpu")
    retrieval = Retrieval(ranked, k=None, budget=3, order="rank", label="x")
    settings = {**SETTINGS, "tasks": ["keys"]}
    with pytest.raises(ValueError, match="all 5 samples failed, the first with: passages: the best chunk has"):
        build(backend, records_folder, out, suite="records", retrieval=retrieval, **settings)
    retrieval = Retrieval(ranked, k=2, budget=None, order="rank", label="x")
    with pytest.raises(ValueError, match="the passages hold none of task 'records/lines', only of records/keys"):
        build(backend, records_folder, out, suite="records", retrieval=retrieval, **{**settings, "tasks": ["lines"]})


REFUSAL = (400, "too long")


def endpoint(server: ChatServer, **change: Any) -> EndpointBackend:
    settings: dict[str, Any] = {
        "url": server.url,
        "model": "theirs",
        "api": "chat",
        "tokenizer": None,
        "timeout": 20.0,
        "retries": 0,
        "at_once": 2,
        "per_minute": None,
    }
    return EndpointBackend(**{**settings, **change})


def test_a_model_behind_an_endpoint(server: ChatServer, records_folder: Path, out: Path) -> None:
    server.answer = lambda asked: REFUSAL if "number 3" in asked.prompt else "it is key1 or key2"
    stats = build(endpoint(server), records_folder, out, suite="records", **{**SETTINGS, "tasks": ["keys"]})
    assert stats.counts == {"tasks": 1, "samples": 5, "failed": 1, "truncated": 0}
    samples = rows(out, "samples")
    assert [row["score"] for row in samples] == [0, 1, 1, 0, 0]
    assert samples[3]["error"] == "HTTP 400: too long"
    assert {row["policy"] for row in samples} == {"endpoint"}
    assert rows(out, "scores")[0]["score"] == 40.0
    # The failed one, and no other, is asked again by the next run, from the ledger that stays with the results.
    assert stats.volatile == ("cost.parquet", LEDGER)
    before = len(server.asked)
    server.answer = lambda asked: "key3"
    stats = build(endpoint(server), records_folder, out, suite="records", **{**SETTINGS, "tasks": ["keys"]})
    assert len(server.asked) - before == 1
    assert (stats.counts["failed"], stats.volatile) == (0, ("cost.parquet",))
    assert rows(out, "scores")[0]["score"] == 60.0
    assert {asked.model for asked in server.asked} == {"theirs"}
    assert not (out / LEDGER).exists()


def test_an_endpoint_with_a_tokenizer_cuts(
    server: ChatServer, model_folder: Path, records_folder: Path, tmp_path: Path, out: Path
) -> None:
    backend = endpoint(server, tokenizer=str(model_folder))
    settings = {**SETTINGS, "tasks": ["keys"], "max_length": 60}
    stats = build(backend, records_folder, out, suite="records", **settings)
    assert stats.counts["truncated"] == 4
    assert all(len(asked.prompt) < 400 for asked in server.asked)


def test_a_judge(server: ChatServer, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [{"query": f"q{n}", "gt": f"g{n}", "our_pred": f"ours {n}", "evaluation": "f1"} for n in range(3)]
    theirs = [{"query": f"q{n}", "gt": f"g{n}", "their_pred": f"theirs {n}", "evaluation": "f1"} for n in range(1, 4)]
    for name, lines in (("ours", ours), ("theirs", theirs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def verdict(asked: Asked) -> str:
        first = asked.prompt.index("ours") < asked.prompt.index("theirs")
        return ("[[A]]" if first else "[[B]]") if "q1" in asked.prompt else "no idea"

    server.answer = verdict
    files = (tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl", None, out)
    stats = build_judge(*files, task="multidoc_qa", client=endpoint(server).client())
    assert stats.counts == {
        "pairs": 2,
        "unmatched": 1,
        "wins": 2,
        "ties": 0,
        "losses": 0,
        "unread": 2,
        "failed": 0,
    }
    assert (stats.values["win_rate"], stats.values["disagreements"]) == (1.0, 0)
    assert [row["as_a"] for row in rows(out, "verdicts")] == ["win", "unread"]
    assert len(server.asked) == 4
    assert not (out / JUDGEMENTS).exists()

    server.answer = lambda asked: REFUSAL
    with pytest.raises(ValueError, match="none of 4 judgements succeeded, the first with: HTTP 400: too long"):
        build_judge(*files, task="multidoc_qa", client=endpoint(server).client())


def test_judgements_are_kept_over_a_kill(server: ChatServer, tmp_path: Path, out: Path) -> None:
    lines = [{"query": f"q{n}", "gt": "g", "a_pred": "x", "evaluation": "f1"} for n in range(2)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    server.answer = lambda asked: "[[C]]" if "q0" in asked.prompt else REFUSAL
    stats = build_judge(path, path, None, out, task="t", client=endpoint(server).client())
    assert stats.counts["failed"] == 2
    assert stats.volatile == (JUDGEMENTS,)  # what was answered stays, and only the rest is asked again
    before = len(server.asked)
    server.answer = lambda asked: "[[C]]"
    stats = build_judge(path, path, None, out, task="t", client=endpoint(server).client())
    assert len(server.asked) - before == 2
    assert (stats.counts["failed"], stats.counts["ties"], stats.volatile) == (0, 4, ())


def test_suites_mark_contexts_that_retrieval_replaces(records_folder: Path) -> None:
    suite = open_suite("records", Source(data=records_folder))
    for record in suite.records("keys"):
        request = Request.from_dict(record["requests"][0])
        assert request.context is not None
        begin, end = request.context
        assert request.document[begin:end].startswith("key")
        assert request.with_context("Z").prompt == f"Z\n\n{request.query}"
