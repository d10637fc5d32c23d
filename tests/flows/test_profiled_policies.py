"""Evaluations under KV policies that need the model's head profile: made once, in their keys alone, checked at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import longloom.evals.lm as lm_module
from longloom.flows.evaluate import evaluate
from longloom.flows.params import ModelParams
from longloom.flows.params_evaluate import EvaluateParams
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import list_runs
from longloom.storage.store import Store

from .command import Done, Run

pytestmark = pytest.mark.usefixtures("harness")

#: The model has one KV head: these compress it, `razor` alone protects it.
RAZOR, COARSE = (f"razor:induction=0,echo=0,window={window},compression=8" for window in (100, 16))
TEXTS = ["full", RAZOR, COARSE, "recent:budget=40"]
Refs = dict[str, ArtifactRef]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task `numbers` in LongBench's format: contexts of several times the windows."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "config").mkdir()
    fixed = {"length": 40, "dataset": "numbers", "language": "en", "all_classes": None, "input": "?"}
    with (folder / "numbers.jsonl").open("w") as file:
        for number in range(4):
            context = " ".join(f"{number + other} is {other}." for other in range(20 + number))
            file.write(json.dumps(fixed | {"context": context, "answers": [str(number)], "_id": str(number)}) + "\n")
    for name, value in {"prompt": "{context}", "maxlen": 8, "metric": "qa_f1", "chat": False}.items():
        (folder / "config" / f"dataset2{name}.json").write_text(json.dumps({"numbers": value}))
    return folder


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


def go(inputs: Path, records: Path, store: Store, policies: list[str], **change: Any) -> Refs:
    given = {"suite": "records", "data": str(records), "batch": 2, "policies": policies, **change}
    return evaluate(ModelParams(source=str(inputs / "model")), EvaluateParams.model_validate(given), str(store.root))


def rows(store: Store, ref: ArtifactRef, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(store.open(ref) / f"{table}.parquet").to_pylist()
    return found


def test_a_profile_is_made_once_and_is_in_no_other_key(
    inputs: Path, records: Path, tmp_path: Path, generated: list[list[str]]
) -> None:
    alone, store, reverse = (Store(tmp_path / name) for name in ("alone", "together", "reverse"))
    (full,) = go(inputs, records, alone, ["full"]).values()
    assert list(list_runs(alone)[0].stages) == ["model", "evaluation/model/records/full"]  # and no profile

    generated.clear()
    found = go(inputs, records, store, [*TEXTS, "streaming:sink=2,window=30"])
    assert list(found) == ["full", RAZOR, COARSE, "recent", "streaming"]
    assert generated == [["full", "razor", "razor", "recent"]] * 2 + [["streaming"]] * 2
    stages = list_runs(store)[0].stages
    assert list(stages) == ["model", "heads/model", *(f"evaluation/model/records/{shown}" for shown in found)]
    parents = {shown: store.verify(store.open(ref)).parents for shown, ref in found.items()}
    digest = stages["heads/model"].digest
    assert [names.get("heads") for names in parents.values()] == [None, digest, digest, None, None]

    # Razor alone, and razor before full, give the same bytes; full has the key that it had without razor.
    assert (full.uri, full.digest) == (found["full"].uri, found["full"].digest)
    generated.clear()
    other = go(inputs, records, reverse, [COARSE, "recent:budget=40", RAZOR, "full"])
    assert generated == [["razor", "recent", "razor", "full"]] * 2
    assert {shown: ref for shown, ref in found.items() if shown != "streaming"} == other
    (razor,) = go(inputs, records, alone, [RAZOR]).values()
    assert (razor.uri, razor.digest) == (found[RAZOR].uri, found[RAZOR].digest)
    assert list(list_runs(alone)[0].stages) == ["model", "heads/model", "evaluation/model/records/razor"]

    generated.clear()
    assert go(inputs, records, store, TEXTS) == other
    assert generated == []


def test_results_name_the_setting_and_tell_the_cost(inputs: Path, records: Path, store: Store) -> None:
    # In other words than the results': equal settings are equal, and the flow shows what tells them apart.
    texts = ["razor:window=100,compression=8.0,echo=0,induction=0e0,compensate=1", COARSE, "razor", "full"]
    found = go(inputs, records, store, texts)
    assert list(found) == [RAZOR, COARSE, "razor", "full"]
    cost = {}
    for shown, ref in found.items():
        for table in ("samples", "scores", "cost"):
            assert {row["policy"] for row in rows(store, ref, table)} == {shown}
        (cost[shown],) = rows(store, ref, "cost")
    held = [cost[shown]["kv_bytes_mean"] for shown in (COARSE, RAZOR, "razor")]
    assert held == sorted(set(held))
    assert held[-1] > 2 * held[0]  # the only head is protected
    for row in cost.values():
        assert row["decode_steps"] > 0
        assert 0 < row["decode_seconds"] + row["compress_seconds"] < row["seconds"]
    with pytest.raises(ValueError, match="KV policy 'razor' is listed twice with the same options"):
        go(inputs, records, store, ["razor:compression=5", "razor:window=4000"])


def test_a_profile_that_is_given(
    inputs: Path, records: Path, store: Store, tmp_path: Path, generated: list[list[str]]
) -> None:
    (made,) = go(inputs, records, store, [RAZOR]).values()
    profile = store.open(list_runs(store)[0].stages["heads/model"])
    generated.clear()
    for place in ("run:latest:heads/model", str(profile), str(profile / "heads.json")):
        assert go(inputs, records, store, [RAZOR], heads=place) == {"razor": made}
        assert ("heads/model" in list_runs(store)[0].stages) == place.startswith("run:")
    assert generated == []
    # With other scores it is another profile.
    content = json.loads((profile / "heads.json").read_text())
    (tmp_path / "heads.json").write_text(json.dumps(content | {"induction": [[0.5]]}))
    (other,) = go(inputs, records, store, [RAZOR], heads=str(tmp_path)).values()
    assert other.uri != made.uri
    assert generated == [["razor"]] * 2


def one_line(done: Done) -> str:
    assert (done.code, done.out) == (2, ""), done
    return done.err.splitlines()[-1].removeprefix("longloom: ")


def test_what_is_wrong_is_said_before_anything_is_generated(
    run: Run, inputs: Path, records: Path, store: Store, tmp_path: Path, generated: list[list[str]]
) -> None:
    model = inputs / "model"
    command = ("evaluate", "--suite", "records", "--data", str(records), "--model", str(model), "--policies")
    assert one_line(run(*command, "full", "recent:budget=9", "--heads", "a")) == (
        "heads is a, a head profile that full, recent:budget=9 does not use; omit it"
    )
    endpoint = ("--endpoint.url", "http://127.0.0.1:9/v1")
    assert "policies are razor with an endpoint, which has a cache of its own" in one_line(
        run(*command, "razor", *endpoint)
    )
    assert one_line(run(*command, "razor:compression=0.5")) == (
        "KV policy 'razor': compression must be a number >= 1, found 0.5"
    )
    assert one_line(run(*command, "razor:compensate=0.5")) == (
        "KV policy 'razor': compensate must be 0 or 1, found 0.5"
    )
    assert not list(store.root.glob("artifacts/*/*"))

    heads = ("streaming:sink=2,window=30", "full", "razor", "--heads")
    assert "no such heads, expected run:latest:LABEL" in one_line(run(*command, *heads, "run:latest:heads"))
    assert "none: no such file or folder" in one_line(run(*command, *heads, str(tmp_path / "none")))
    assert "expected one that `longloom heads` wrote" in one_line(run(*command, *heads, str(model / "config.json")))
    go(inputs, records, store, ["razor"])
    profile = store.open(list_runs(store)[0].stages["heads/model"]) / "heads.json"
    weights = json.loads(profile.read_text())["weights"]
    wrong = tmp_path / "wrong.json"
    wrong.write_text(profile.read_text().replace(weights, "0123456789abcdef"))
    generated.clear()
    expected = f"the head profile was made of weights 0123456789ab, this model has {weights[:12]}; `longloom heads`"
    for policies in (heads, ("razor:sink=2", "--heads")):  # said by the first one, which does not need it itself
        assert one_line(run(*command, *policies, str(wrong))).startswith(expected)
    assert generated == []
    assert len(list(store.root.glob("artifacts/evaluation/*"))) == 1
