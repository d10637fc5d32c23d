"""Context extension on tiny inputs, under one server: a dry run, what a run makes, again, and bad wishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from longloom.flows.params_extend import ExtendParams
from longloom.storage.runs import list_runs
from longloom.storage.store import Store

from .command import Run

pytestmark = pytest.mark.usefixtures("harness")
#: The model's window is 512.
SMALL = {"--pack.length": "640", "--steps": "3", "--batch": "2", "--learning-rate": "1e-3", "--texts": "1"}


def call(run: Run, inputs: Path, *more: str) -> Any:
    small = [part for name, value in SMALL.items() if name not in more for part in (name, value)]
    return run("extend", str(inputs / "corpus"), "--model.source", str(inputs / "model"), *small, *more)


def test_a_dry_run_accounts_and_trains_nothing(run: Run, inputs: Path, store: Store) -> None:
    done = call(run, inputs, "--dry-run", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    rows, plan = told["accounting"]["rows"], told["plan"]
    assert told["accounting"]["pool"]["tokens"] + rows["separators"] == rows["tokens"] + rows["truncated"]
    assert (plan["steps"], plan["rows"], plan["tokens"]) == (3, 6, 6 * 640)
    assert set(told) == {"packed", "accounting", "plan", "perplexity"}
    made = [manifest.stage for manifest in store.manifests()]
    assert "extend" not in made
    done = call(run, inputs, "--dry-run")
    assert f"packed into {rows['rows']:,} rows of 640 tokens = {rows['tokens']:,}" in done.out
    assert "training: 3 steps of 2 rows = 3,840 tokens" in done.out
    assert "dry run: nothing was trained" in done.out
    assert [manifest.stage for manifest in store.manifests()] == made


def test_a_run_measures_trains_and_reports_and_its_model_can_be_used(run: Run, inputs: Path, store: Store) -> None:
    text = ("--held-out.sources", str(inputs / "corpus"))
    done = call(run, inputs, *text, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    before, after = told["perplexity"]["before"], told["perplexity"]["after"]
    assert [row["last"] for row in before] == [row["last"] for row in after]
    assert before[-1]["last"] == 639
    assert after[3]["perplexity"] < before[3]["perplexity"]
    config = json.loads((store.root / told["model"]["uri"] / "config.json").read_text())
    assert config["max_position_embeddings"] == 640
    page = (store.root / told["report"]["uri"] / "index.html").read_text()
    assert "Context extension" in page
    assert "Perplexity of held-out text" in page
    assert "From a window of <strong>512</strong> to <strong>640</strong> tokens" in page
    (one,) = list_runs(store)
    labels = {"corpus", "model", "packed", "held-out", "positions/before", "extended", "positions/after", "report"}
    assert set(one.stages) == labels

    again = call(run, inputs, *text)
    assert again.code == 0, again.err
    assert "perplexity at" in again.out
    assert list_runs(store)[0].stages == one.stages
    assert len(list(store.manifests())) == len(labels) - 1  # corpus and held-out are one artifact here

    more = run(
        *("extend", str(inputs / "corpus"), "--model.source", "run:latest:extended"),
        *("--pack.length", "900", "--steps", "1", "--batch", "1", "--rope", "yarn", "--export", str(inputs / "longer")),
    )
    assert more.code == 0, more.err
    config = json.loads((inputs / "longer" / "config.json").read_text())
    assert config["rope_parameters"]["original_max_position_embeddings"] == 640
    assert not [label for label in list_runs(store)[0].stages if label.startswith("positions")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pack.length", "512"), "length is 512, expected more than the 512 tokens of the model's window"),
        (("--pack.length", "1"), "length: Input should be greater than or equal to 2"),
        (("--base", "5"), "base is 5, expected at least the model's 10,000"),
        (("--pack.length", "1000000"), "expected at least one row of 1,000,000"),
        (("--rope", "dynamic"), "rope: Input should be 'base', 'linear', 'yarn' or 'llama3'"),
        (("--offload", "--no-recompute"), "offload without recompute"),
        (("--dry-run", "--export", "there"), "--export there with --dry-run"),
        (("--held-out.sources", "nowhere"), "nowhere"),
    ],
)
def test_bad_wishes_are_one_line(run: Run, inputs: Path, store: Store, options: tuple[str, ...], said: str) -> None:
    done = call(run, inputs, *options)
    assert done.code == 2
    assert said in done.err.splitlines()[-1]
    assert not [manifest for manifest in store.manifests() if manifest.stage == "extend"]


def test_parameters_that_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="offload without recompute"):
        ExtendParams(offload=True, recompute=False)
