"""Evaluations with a limit on prompts of their own: names, keys, and what stands beside them in one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from longloom.flows.evaluate import evaluate
from longloom.flows.params import ModelParams
from longloom.flows.params_evaluate import EvaluateParams
from longloom.flows.params_pipeline import PipelineParams
from longloom.flows.report import report
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import list_runs
from longloom.storage.store import Store

pytestmark = pytest.mark.usefixtures("harness")

WINDOW = 512
NARROW, WIDE = "streaming:sink=4,window=60", "streaming:sink=4,window=200"
LONGCACHE = "longcache:sink=8,local=64,chunk=64,spans=3"
Refs = dict[str, ArtifactRef]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task `numbers` in LongBench's format: contexts of about twice the window."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "config").mkdir()
    fixed = {"length": 40, "dataset": "numbers", "language": "en", "all_classes": None, "input": "?"}
    with (folder / "numbers.jsonl").open("w") as file:
        for number in range(2):
            context = " ".join(f"{number + other} is {other}." for other in range(120 + number))
            file.write(json.dumps(fixed | {"context": context, "answers": [str(number)], "_id": str(number)}) + "\n")
    for name, value in {"prompt": "{context}", "maxlen": 8, "metric": "qa_f1", "chat": False}.items():
        (folder / "config" / f"dataset2{name}.json").write_text(json.dumps({"numbers": value}))
    return folder


def go(inputs: Path, data: Path, store: Store, policies: list[str], **change: Any) -> Refs:
    given = {"suite": "records", "data": str(data), "policies": policies, **change}
    return evaluate(ModelParams(source=str(inputs / "model")), EvaluateParams.model_validate(given), str(store.root))


def score(store: Store, ref: ArtifactRef) -> dict[str, Any]:
    (row,) = pq.read_table(store.open(ref) / "scores.parquet").to_pylist()
    found: dict[str, Any] = row
    return found


def test_whole_prompts_and_truncation_stand_in_one_report(
    inputs: Path, records: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = ["full", NARROW, WIDE, LONGCACHE]
    found = go(inputs, records, store, policies, max_length=4000, truncation=True)
    names = [
        "full@4000",
        "streaming@4000:sink=4,window=60",
        "streaming@4000:sink=4,window=200",
        "longcache@4000",
        "full",
    ]
    assert list(found) == names
    counted = {name: score(store, ref) for name, ref in found.items()}
    assert [(row["truncated"], row["beyond"]) for row in counted.values()] == [(0, 2)] * 4 + [(2, 0)]
    assert {row["window"] for row in counted.values()} == {WINDOW}
    assert list(list_runs(store)[0].stages) == ["model", *(f"evaluation/model/records/{name}" for name in names)]

    # Prompts that are cut are those of an evaluation without a limit, and each limit has its own artifact.
    assert go(inputs, records, store, ["full"]) == {"full": found["full"]}
    others = go(inputs, records, store, ["full", LONGCACHE], max_length=600)
    assert list(others) == ["full@600", "longcache@600"]
    assert len({ref.uri for ref in (*found.values(), *others.values())}) == 7
    assert all(score(store, ref)["truncated"] == score(store, ref)["beyond"] == 2 for ref in others.values())
    capsys.readouterr()
    assert go(inputs, records, store, policies, max_length=4000, truncation=True) == found
    assert not [line for line in capsys.readouterr().err.splitlines() if line.startswith("+ ")]

    numbers = json.loads((store.open(report("latest", str(store.root))) / "report.json").read_text())
    assert [row["policy"] for row in numbers["evaluation"]["scores"]] == [
        *("full", "full@4000", "longcache@4000"),
        *("streaming@4000:sink=4,window=200", "streaming@4000:sink=4,window=60"),
    ]


def test_lengths_that_are_named_may_exceed_the_window(inputs: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three. " * 300)
    given = {"suite": "needle", "tasks": ["single"], "depths": [50], "samples": 1}
    found = go(inputs, tmp_path, store, ["full", LONGCACHE], lengths=[300, 900], **given)
    assert list(found) == ["full", "longcache"]
    assert [score(store, ref)["beyond"] for ref in found.values()] == [1, 1]
    with pytest.raises(ValueError, match=r"must not be cut, and 480 are allowed \(window 512"):
        go(inputs, tmp_path, store, ["full"], **given)  # 256 to 1,000 by default, which nobody asked of this model
    page = (store.open(report(list_runs(store)[1].id, str(store.root))) / "index.html").read_text()
    assert "Beyond the window" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"truncation": True}, "truncation is what max_length is compared with, and that is not given"),
        (
            {"truncation": True, "max_length": 99, "endpoint": {"url": "http://127.0.0.1:1/v1"}},
            "truncation with an endpoint, whose model's window is not known; expected none",
        ),
        ({"policies": ["longcache:local"]}, "expected NAME=NUMBER"),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateParams.model_validate(given)


@pytest.mark.parametrize("suite", ["needle", "ruler"])
def test_truncation_of_prompts_that_are_never_cut_is_refused_before_any_work(suite: str, tmp_path: Path) -> None:
    asked = EvaluateParams(suite=suite, truncation=True, max_length=99)
    with pytest.raises(
        ValueError, match=f"^truncation with suite '{suite}', whose prompts are never cut; expected none$"
    ):
        evaluate.fn(ModelParams(source=str(tmp_path / "nowhere")), asked, str(tmp_path / "store"))
    assert list(tmp_path.iterdir()) == []


def test_the_pipelines_own_part_is_checked_too() -> None:
    with pytest.raises(ValidationError, match=r"long.policies.*\n.*expected NAME=NUMBER"):
        PipelineParams.model_validate({"long": {"policies": ["streaming:sink"]}})
    with pytest.raises(ValidationError, match=r"long.lengths"):
        PipelineParams.model_validate({"long": {"lengths": []}})
    assert PipelineParams.model_validate({"long": {"samples": 5}}).long.lengths == PipelineParams().long.lengths
