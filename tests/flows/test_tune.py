"""Tuning in stages on tiny inputs: what each stage starts from, comparisons, a second run, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from longloom.flows.params_tune import TuneParams
from longloom.storage.runs import list_runs
from longloom.storage.store import Store

from .command import Run

pytestmark = pytest.mark.usefixtures("harness")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qa.jsonl in the format of ChatQA's training data."""
    folder = tmp_path_factory.mktemp("sets")
    with (folder / "qa.jsonl").open("w") as file:
        for i in range(12):
            messages = [{"role": "user", "content": f"key {i}?"}]
            row = {"document": f"The key {i} is {i * i}.", "messages": messages, "answers": [str(i * i)]}
            file.write(json.dumps(row) + "\n")
    return folder


def call(run: Run, inputs: Path, sets: Path, *more: str) -> Any:
    places = (f"sft={inputs / 'instructions.jsonl'}", f"qa={sets / 'qa.jsonl'}", "long_qa=synthesis:qa")
    small = [f"--{stage}.examples=8" for stage in ("instruct", "conversation", "long")]
    if "--long.max-length" not in more:
        small += [f"--{stage}.max-length=480" for stage in ("instruct", "conversation", "long")]
    made = ("--synthesis.examples", "6", "--synthesis.least", "60", "--synthesis.most", "100", "--batch", "4")
    where = ("--model.source", str(inputs / "model"), "--corpus.sources", str(inputs / "corpus"))
    return run("tune", "--sets", *places, *where, *small, *made, *more)


def test_three_stages_and_what_they_are_compared_with(run: Run, inputs: Path, sets: Path, store: Store) -> None:
    options = ("--compare", "no-long", "all-in-one", "--conversation.blend", "qa:4", "sft:1")
    done = call(run, inputs, sets, *options)
    assert done.code == 0, done.err
    stages = list_runs(store)[0].stages
    labels = {label.removeprefix("tune/") for label in stages if label.startswith("tune/")}
    assert labels == {"instruct", "conversation", "long", "no-long", "all-in-one"}
    models = {name: store.manifest(stages[f"tune/{name}"]) for name in labels}
    parents = {name: model.parents["model"] for name, model in models.items()}
    assert parents == {
        "instruct": stages["model"].digest,
        "conversation": models["instruct"].digest,
        "long": models["conversation"].digest,
        "no-long": models["conversation"].digest,
        "all-in-one": stages["model"].digest,
    }
    assert stages["tune/long"].kind == "model"
    tables = {
        name: {
            (row["stage"], row["set"]): row["examples"]
            for row in pq.read_table(store.open(stages[f"tune/{name}"]) / "blend.parquet").to_pylist()
        }
        for name in labels
    }
    assert tables["conversation"] == {("conversation", "qa"): 6, ("conversation", "sft"): 2}
    assert tables["no-long"] == {("long", "qa"): 6, ("long", "sft"): 2}
    assert tables["long"] == {("long", "qa"): 1, ("long", "sft"): 0, ("long", "long_qa"): 7}
    assert tables["all-in-one"] == tables["instruct"] | tables["conversation"] | tables["long"]
    rows = pq.read_table(store.open(stages["set/qa"]) / "conversations.parquet").to_pylist()
    assert {row["kind"] for row in rows} == {"full"}
    page = (store.open(stages["report"]) / "index.html").read_text()
    assert 'id="tuning"' in page
    assert "conversation: qa" in page  # of the all-in-one

    again = call(run, inputs, sets, *options)
    assert again.code == 0, again.err
    assert [run.stages for run in list_runs(store)[:2]] == [stages, stages]


def test_adapters_are_another_stage_and_their_options_are_of_no_other(
    run: Run, inputs: Path, sets: Path, store: Store
) -> None:
    assert [call(run, inputs, sets, *more).code for more in ((), ("--rank", "4"), ("--tuning", "lora"))] == [0, 0, 0]
    found = [one.stages["tune/long"] for one in list_runs(store)]
    assert found[1] == found[2]
    assert found[0].digest != found[1].digest
    assert store.manifest(found[0]).parameters["lora"] == {"rank": 16, "alpha": 32, "dropout": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--long.blend", "qa:1", "other:2"), "stage long: blend: no set 'other'; the sets that were given: sft, qa"),
        (
            ("--instruct.blend", "sft:0"),
            "stage instruct: blend: the weight of 'sft' is 0, expected a number above zero",
        ),
        (("--conversation.blend", "chatqa2-stage2"), "stage conversation: blend: no set 'drop', 'narrativeqa', "),
        (("--compare", "no-long", "--long.blend", "long_qa:1"), "no-long: the third stage's blend has no set of the"),
        (("--kinds", "qa=short"), "kind of answer is 'short', expected one of full, "),
        (("--kinds", "qo=span"), "kinds: no set 'qo', expected one of sft, qa, long_qa"),
        (("--accumulate", "3"), "batch is 4 and accumulate 3, expected a divisor of the batch"),
        (("--long.max-length", "600"), "stage long: max_length is 600, expected at most 512, the model's window"),
    ],
)
def test_what_is_refused_in_one_line(
    run: Run, inputs: Path, sets: Path, store: Store, options: tuple[str, ...], message: str
) -> None:
    """Before any stage is trained: the only model there is the one to start from."""
    done = call(run, inputs, sets, *options)
    assert done.code == 2
    assert message in done.err.strip().split("\n")[-1]
    assert not (store.root / "artifacts" / "model").exists() or len(list(store.root.glob("artifacts/model/*"))) == 1


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["a"], "found 'a', expected NAME=..."),
        (["a=x", "a=y"], "'a' is given twice"),
        (["a=synthesis:b"], "set a: found 'synthesis:b', expected the name of another set"),
        (["a=synthesis:b", "b=synthesis:a"], "which is not made so"),
    ],
)
def test_sets_that_cannot_be(sets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r"sets|set a") as caught:
        TuneParams(sets=sets)
    assert message in str(caught.value)
