"""Evaluations of one model side by side: whole contexts and retrieved ones, KV policies that share their prefill."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import longloom.evals.lm as lm_module
from longloom.flows.evaluate import evaluate
from longloom.flows.params import ModelParams
from longloom.flows.params_evaluate import EvaluateParams, RetrievalParams
from longloom.flows.rag import rag
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import get_run, list_runs
from longloom.storage.store import Store

from .command import Run

pytestmark = pytest.mark.usefixtures("harness")

Refs = dict[str, ArtifactRef]
COLOURS = ("red", "green", "blue", "white", "black", "brown", "pink", "grey", "yellow")
POLICIES = ("full", "snapkv:budget=40,window=8", "recent:budget=40")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task `colours` in LongBench's format: a context of lines of three words, one of which holds the answer."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "config").mkdir()
    lines = [f"{colour} is {number}." for number, colour in enumerate(COLOURS)]
    fixed = {"length": 27, "dataset": "colours", "language": "en", "all_classes": None, "context": " ".join(lines)}
    with (folder / "colours.jsonl").open("w") as file:
        for number, line in enumerate(lines[:4]):
            question = f"Which number is {COLOURS[number]}?"
            record = {"input": question, "answers": [str(number)], "gold": [line], "_id": str(number)}
            file.write(json.dumps(fixed | record) + "\n")
    tables = {"prompt": "{context}\n{input}", "maxlen": 4, "metric": "qa_f1", "chat": False}
    for name, value in tables.items():
        (folder / "config" / f"dataset2{name}.json").write_text(json.dumps({"colours": value}))
    return folder


def asked(records: Path, **changes: Any) -> EvaluateParams:
    given = {"suite": "records", "data": str(records), "batch": 2}
    return EvaluateParams.model_validate(given | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rag") / "store"


@pytest.fixture(scope="module")
def first(inputs: Path, records: Path, root: Path) -> Refs:
    retrieval = RetrievalParams(sizes=[3], k=[1, 2], orders=["rank", "document"])
    return rag(ModelParams(source=str(inputs / "model")), asked(records), retrieval, store=str(root))


@pytest.fixture
def store(root: Path) -> Store:
    """The store of the first run."""
    return Store(root)


def rows(store: Store, ref: ArtifactRef, table: str = "samples") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(store.open(ref) / f"{table}.parquet").to_pylist()
    return found


# ---- retrieval against whole contexts

RETRIEVED = [f"bm25:words=3,k={k},order={order}" for k, order in ((1, "rank"), (2, "rank"), (2, "document"))]


def test_every_combination_is_evaluated_beside_the_whole_context(first: Refs, root: Path) -> None:
    assert list(first) == ["full", *(f"full/{label}" for label in RETRIEVED)]  # one chunk has no order
    record = list_runs(Store(root))[0]
    assert (record.flow, record.state) == ("rag", "completed")
    assert list(record.stages) == [
        "model",
        "retrieval/records/words=3",
        "passages/records/bm25:words=3",
        "evaluation/model/records/full",
        *(f"evaluation/model/records/full/{label}" for label in RETRIEVED),
    ]
    assert [ref for label, ref in record.stages.items() if label.startswith("evaluation/")] == list(first.values())


def test_what_the_model_reads_is_what_was_retrieved(first: Refs, root: Path) -> None:
    store = Store(root)
    whole, one, two, in_order = (rows(store, ref) for ref in first.values())
    for label, found in zip((None, *RETRIEVED), (whole, one, two, in_order), strict=True):
        assert {row["retrieval"] for row in found} == {label}
        assert [row["references"] for row in found] == [[str(number)] for number in range(4)]
    assert {row["gold_recall"] for row in whole} == {None}
    assert {row["gold_recall"] for row in (*one, *two, *in_order)} == {1.0}  # a chunk is a line, and names the colour
    for number in range(4):
        tokens = [found[number]["prompt_tokens"] for found in (one, two, whole)]
        assert tokens == sorted(set(tokens))


def test_again_nothing_changes_and_the_report_compares(
    run: Run, first: Refs, inputs: Path, records: Path, root: Path
) -> None:
    command = ("rag", "--suite", "records", "--data", str(records), "--model", str(inputs / "model"), "--sizes", "3")
    sweep = ("--k", "1", "2", "--orders", "rank", "document", "--rankers", "bm25", "--batch", "2")
    done = run(*command, *sweep, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["evaluations"] == {label: ref.model_dump() for label, ref in first.items()}
    assert [(row["label"], row["retrieval"], row["samples"]) for row in found["scores"]] == [
        ("full", None, 4),
        *((f"full/{label}", label, 4) for label in RETRIEVED),
    ]
    stages = [line for line in done.err.splitlines() if line[:2] in ("+ ", "= ")]
    assert len(stages) == 1 + 2 + 4
    assert all(line.startswith("= ") for line in stages), stages

    done = run(*command, *sweep)
    assert done.code == 0
    assert [line.split()[:1] for line in done.out.splitlines()[2:6]] == [
        ["context"],
        *([f"full/{label}"] for label in RETRIEVED),
    ]

    assert run("report").code == 0
    assert get_run(Store(root), "latest").flow == "rag"  # a report is no run of its own
    (report,) = (path for path in root.glob("artifacts/report/*/report.json"))
    ((comparison,), numbers) = (json.loads(report.read_text())[name] for name in ("retrieval", "evaluation"))
    assert [row["retrieval"] for row in comparison["rows"]] == [None, *sorted(RETRIEVED)]
    assert len(numbers["scores"]) == 4
    assert "Retrieval against long context" in report.with_name("report.md").read_text()
    assert "Retrieval against long context" in report.with_name("index.html").read_text()


SERVER = {"url": "http://127.0.0.1:9/v1"}


@pytest.mark.parametrize(
    ("evaluation", "retrieval", "message"),
    [
        ({}, {"rankers": ["nope"]}, "unknown ranker 'nope'; known: bm25, dense, hybrid"),
        ({}, {"chunkers": ["lines"]}, "unknown chunker 'lines'"),
        ({"policies": ["nope"]}, {}, "unknown KV policy 'nope'"),
        ({"suite": "nope"}, {}, "unknown suite 'nope'"),
        ({"suite": "lm-eval"}, {}, "suite 'lm-eval' tells no context from its prompts, so nothing can be retrieved"),
        ({"suite": "lm-eval", "tasks": ["x"]}, {}, "suite 'lm-eval' tells no context from its prompts"),
        ({"endpoint": SERVER}, {"chunkers": ["tokens"]}, "chunker 'tokens' with an endpoint, which gives no tokenizer"),
        ({"endpoint": SERVER}, {"budgets": [9]}, "budgets are counted in tokens, expected endpoint.tokenizer"),
        ({"endpoint": SERVER, "suite": "needle"}, {}, "suite 'needle' makes its contexts by a model's tokenizer"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(
    records: Path, tmp_path: Path, evaluation: dict[str, Any], retrieval: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        rag.fn(ModelParams(), asked(records, **evaluation), RetrievalParams(**retrieval), store=str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_dense_ranker_without_an_encoder_is_one_line(run: Run, records: Path, root: Path) -> None:
    before = [*root.glob("runs/*"), *root.glob("artifacts/*/*")]
    done = run("rag", "--suite", "records", "--data", str(records), "--rankers", "bm25", "dense")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == (
        "longloom: ranker 'dense' needs an encoder, a sentence-transformers folder or hub name"
    )
    assert [*root.glob("runs/*"), *root.glob("artifacts/*/*")] == before


# ---- KV policies that share their prefill


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The policies of every generation of a batch, as they are asked for."""
    calls: list[list[str]] = []
    real = lm_module.generate

    def note(*args: Any, policies: Any, **options: Any) -> Any:
        calls.append([policy.name for policy in policies])
        return real(*args, policies=policies, **options)

    monkeypatch.setattr(lm_module, "generate", note)
    return calls


def test_policies_share_the_prefill_and_answer_as_alone(
    inputs: Path, records: Path, tmp_path: Path, generated: list[list[str]]
) -> None:
    model = ModelParams(source=str(inputs / "model"))
    together, apart = Store(tmp_path / "together"), Store(tmp_path / "apart")
    found = evaluate(model, asked(records, policies=POLICIES), store=str(together.root))
    assert list(found) == ["full", "snapkv", "recent"]
    assert generated == [["full", "snapkv", "recent"]] * 2  # two batches; the other evaluations generate nothing
    assert not list(together.root.glob("work/*"))
    for name, policy in zip(found, POLICIES, strict=True):
        generated.clear()
        (alone,) = evaluate(model, asked(records, policies=[policy]), store=str(apart.root)).values()
        assert generated == [[name]] * 2
        assert alone.digest == found[name].digest
        for table in ("samples", "scores"):
            one, other = (
                store.open(ref) / f"{table}.parquet" for store, ref in ((together, found[name]), (apart, alone))
            )
            assert one.read_bytes() == other.read_bytes()
    kept = {name: rows(together, ref, "cost")[0]["peak_kv_bytes"] for name, ref in found.items()}
    assert kept["recent"] < kept["full"]  # contexts are longer than the budget

    generated.clear()
    more = evaluate(
        model,
        asked(records, policies=[POLICIES[0], "knorm:budget=40", *POLICIES[1:], "streaming:sink=2,window=30"]),
        store=str(together.root),
    )
    assert generated == [["knorm"]] * 2 + [["streaming"]] * 2  # the last one changes the prefill
    assert {name: more[name] for name in found} == found
    assert list(more) == ["full", "knorm", "snapkv", "recent", "streaming"]
