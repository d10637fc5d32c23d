"""Reward models by command: trained, again, after a kill, scored with; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from longloom.flows.params import ModelParams
from longloom.flows.params_preference import ComparisonsParams, RewardParams
from longloom.flows.preference import preference
from longloom.storage.runs import list_runs
from longloom.storage.store import Store
from longloom.tasks.corpus.standard_library import modules
from longloom.tasks.preference import reward_trainer

from .command import Run

pytestmark = pytest.mark.usefixtures("harness")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 reversal pairs."""
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    with path.open("w") as file:
        for i in range(40):
            pair = {"response_a": f"alpha {i % 3}", "response_b": "beta gamma delta"}
            criteria = {"criteria_x": "short", "criteria_y": "long"}
            file.write(json.dumps({"id": i, "prompt": f"say {i}"} | pair | criteria) + "\n")
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A standard library of 8 modules, 4 of them held out, of small functions."""
    folder = tmp_path_factory.mktemp("library")
    left = {True: 4, False: 4}
    for number in range(400):
        name = f"m{number}.py"
        if left[modules.held_out(name)]:
            left[modules.held_out(name)] -= 1
            functions = (
                f"def weave_{number}_{i}(warp, weft):\n    reed = [warp * {i}, weft]\n    return reed[{number}]\n"
                for i in range(6)
            )
            (folder / name).write_text("\n\n".join(functions))
    return folder


def train(run: Run, inputs: Path, pool: Path, *more: str) -> Any:
    where = ("--model.source", str(inputs / "model"), "--comparisons.sources", str(pool))
    return run("prefer", "train", *where, "--batch", "16", "--learning-rate", "1e-2", *more)


def test_train_and_score(run: Run, inputs: Path, pool: Path, store: Store, tmp_path: Path) -> None:
    done = train(run, inputs, pool, "--comparisons.held-out", "0.25", "--export", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert "of the pairs in their order" in done.out
    stages = list_runs(store)[0].stages
    assert set(stages) == {"comparisons", "comparisons/train", "comparisons/held-out", "model", "reward-model"}
    assert [stages[f"comparisons{part}"].counts["comparisons"] for part in ("", "/train", "/held-out")] == [80, 60, 20]
    assert stages["reward-model"].counts["comparisons"] == 60
    assert {"model.safetensors", "reward.json", "manifest.json"} <= {path.name for path in (tmp_path / "out").iterdir()}

    again = train(run, inputs, pool, "--comparisons.held-out", "0.25", "--json")
    assert again.code == 0, again.err
    assert "\n+ " not in f"\n{again.err}"
    told = json.loads(again.out)
    assert told["steps"] == 4
    assert 0 <= told["final_accuracy"] <= 1

    data = tmp_path / "asked.jsonl"
    data.write_text(json.dumps({"id": "r", "prompt": "say", "context": "short", "responses": ["a", "b c", "d"]}) + "\n")
    scored = run("prefer", "score", "--data", str(data), "--json")
    assert scored.code == 0, scored.err
    rows = json.loads(scored.out)["scores"]
    assert [row["text"] for row in rows] == ["a", "b c", "d"]
    assert sum(row["best"] for row in rows) == 1
    shown = run("prefer", "score", "--data", str(data))
    assert "best" in shown.out
    elsewhere = run("prefer", "score", "--data", str(data), "--model", str(tmp_path / "out"), "--json")
    assert json.loads(elsewhere.out)["scores"] == rows


def test_adapters(run: Run, inputs: Path, pool: Path, store: Store) -> None:
    done = train(run, inputs, pool, "--tuning", "lora", "--rank", "2", "--margin", "0.5")
    assert done.code == 0, done.err
    ref = list_runs(store)[0].stages["reward-model"]
    manifest = store.manifest(ref)
    assert (manifest.parameters["tuning"], manifest.parameters["margin"]) == ("lora", 0.5)
    assert (manifest.parameters["epochs"], manifest.parameters["learning_rate"]) == (1, 1e-2)


def test_the_standard_library_holds_out_modules_wordings_and_criteria(
    run: Run, inputs: Path, library: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "library_root", lambda: library)
    small = ("--comparisons.rows", "20", "--comparisons.held-out-rows", "10", "--model.source", str(inputs / "model"))
    done = run("prefer", "train", *small)
    assert done.code == 0, done.err
    stages = list_runs(store)[0].stages
    assert stages["comparisons"].counts["comparisons"] == 40
    for side in ("modules", "wordings", "criteria"):
        held = stages[f"comparisons/{side}"]
        assert held.counts["comparisons"] == 20
        assert store.manifest(held).values["context_free"] == {"best": 10, "of": 20, "balanced": True}


def test_a_killed_training_goes_on(
    inputs: Path, pool: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (
        ComparisonsParams(sources=[str(pool)]),
        ModelParams(source=str(inputs / "model")),
        RewardParams(batch=4, learning_rate=1e-2),
    )
    whole = preference(*asked, store=str(tmp_path / "other"))
    steps: list[int] = []
    ended = reward_trainer.Watch.on_step_end

    def dies(self: Any, args: Any, state: Any, control: Any, **options: Any) -> None:
        ended(self, args, state, control, **options)
        steps.append(state.global_step)
        if len(steps) == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(reward_trainer.Watch, "on_step_end", dies)
    with pytest.raises(KeyboardInterrupt):
        preference(*asked, store=str(store.root))
    resumed = preference(*asked, store=str(store.root))
    assert steps[:12] == list(range(1, 13))
    assert 1 < steps[12] <= 12
    assert resumed["reward-model"].digest == whole["reward-model"].digest
    tables = [pq.read_table(Store(root).open(refs["reward-model"]) / "training.parquet")
              for root, refs in ((store.root, resumed), (tmp_path / "other", whole))]  # fmt: skip
    assert tables[0].equals(tables[1])


def test_a_recipe_for_each_kind_of_model() -> None:
    def recipe(small: bool, **given: Any) -> tuple[object, object]:
        found = RewardParams(**given).of(small)
        return found["epochs"], found["learning_rate"]

    assert recipe(False) == (1, 6e-6)
    assert recipe(False, tuning="lora") == recipe(True, tuning="lora") == (1, 1e-4)
    assert recipe(True)[1] == pytest.approx(1e-3, rel=0.9)  # a model of 1 million parameters needs more
    assert recipe(True, epochs=2, learning_rate=5e-5) == (2, 5e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--template", "{prompt}"), "found {context} 0 times, expected it once"),
        (("--max-length", "8"), "tokens with its prompt, expected at most 8"),
        (("--tuning", "prefix"), "lora"),
        (("--comparisons.held-out", "1.0"), "held"),
    ],
)
def test_bad_wishes_are_one_line(
    run: Run, inputs: Path, pool: Path, store: Store, options: tuple[str, ...], said: str
) -> None:
    done = train(run, inputs, pool, *options)
    assert done.code == 2
    assert said in done.err
    assert not (store.root / "artifacts" / "reward-model").exists()


def test_scoring_needs_a_reward_model(run: Run, inputs: Path, pool: Path) -> None:
    done = run("prefer", "score", "--data", str(pool))
    assert done.code == 2
    assert "reward-model 'run:latest:reward-model': no such reward-model" in done.err
    done = run("prefer", "score", "--data", str(pool), "--model", str(inputs / "model"))
    assert done.code == 2
    assert "has no reward head (score.weight), expected a trained reward model" in done.err
