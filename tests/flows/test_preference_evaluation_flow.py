"""`longloom prefer evaluate`: what a run held out, files, a judge behind a stub server, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longloom.storage.runs import list_runs
from longloom.storage.store import Store

from ..chat_server import Asked, ChatServer
from .command import Done, Run

pytestmark = pytest.mark.usefixtures("harness")

CRITERIA = ("Prefer the one with a docstring.", "Prefer the one without a docstring.")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 reversal pairs in two contexts."""
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    with path.open("w") as file:
        for i in range(60):
            pair = {"response_a": f"alpha {i % 3}", "response_b": "beta gamma delta"}
            criteria = {"criteria_x": CRITERIA[0], "criteria_y": CRITERIA[1], "category_x": "has", "category_y": "not"}
            file.write(json.dumps({"id": i, "prompt": f"say {i}"} | pair | criteria) + "\n")
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One of the module's own, so that its model is trained once."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def trained(run: Run, inputs: Path, pool: Path) -> None:
    done = run(
        *("prefer", "train", "--model.source", str(inputs / "model"), "--comparisons.sources", str(pool)),
        *("--comparisons.held-out", "0.25", "--batch", "16", "--epochs", "1", "--learning-rate", "1e-2"),
    )
    assert done.code == 0, done.err


@pytest.mark.usefixtures("trained")
def test_what_the_run_held_out(run: Run, store: Store) -> None:
    done = run("prefer", "evaluate", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    numbers = found["sets"]["held-out"]
    assert numbers["judged"] == 30
    assert numbers["conditions"]["nc"] == {"value": 0.5, "low": 0.5, "high": 0.5, "comparisons": 30, "equal": 0}
    assert numbers["negations"] == {"listed": 0, "by_rule": 30}
    assert numbers["two_step"]["decomposition"]["violations"] == 0
    assert numbers["two_step"]["candidates"] == 2
    assert [point["k"] for point in numbers["profiles"]["points"]] == [0, 1, 2, 4, 8]
    stages = list_runs(store)[0].stages
    assert {
        "reward-model",
        "comparisons/held-out",
        "train",
        "contexts/held-out",
        "preference/held-out",
        "report",
    } == set(stages)
    assert store.manifest(stages["contexts/held-out"]).values["selector"] == "trained"

    again = run("prefer", "evaluate")
    assert again.code == 0, again.err
    assert "\n+ " not in f"\n{again.err}"
    assert "On held-out the better response is found in 50.0% without a context" in again.out
    assert str(store.open(stages["report"]) / "index.html") in again.out


@pytest.mark.usefixtures("trained")
def test_files_and_best_of(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"p {i}", "chosen": "alpha", "rejected": "beta", "context": "Be brief."}) + "\n"
            for i in range(6)
        )
    )
    (tmp_path / "negations.json").write_text(json.dumps({"Be brief.": "Be long."}))
    (tmp_path / "bench.jsonl").write_text(
        json.dumps({"id": "0", "prompt": "p", "chosen": ["alpha"], "rejected": ["b", "c", "d"], "subset": "Math"})
        + "\n"
    )
    done = run(
        *("prefer", "evaluate", "--on", str(tmp_path / "plain.jsonl"), "--selector", "prior", "--json"),
        *("--negations", str(tmp_path / "negations.json"), "--best-of", str(tmp_path / "bench.jsonl")),
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert list(found["sets"]) == ["plain"]
    assert found["sets"]["plain"]["negations"] == {"listed": 6, "by_rule": 0}
    assert found["sets"]["plain"]["two_step"]["candidates"] == 2  # of the training comparisons
    assert found["best_of"]["subsets"][0]["prompts"] == 1


@pytest.mark.usefixtures("trained")
def test_sets_without_contexts_are_judged_without_one(run: Run, server: ChatServer, tmp_path: Path) -> None:
    """They end no run: not their own, and not the ones of the sets beside them."""
    for name, more in (("plain", {}), ("told", {"context": "Be brief."})):
        records = [{"prompt": f"p {i}", "chosen": "alpha", "rejected": "beta", **more} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plain, told = (str(tmp_path / f"{name}.jsonl") for name in ("plain", "told"))
    server.answer = lambda asked: "[[A]]"
    asked = ("--endpoint.url", server.url, "--language-model", "big", "--judge")
    done = run("prefer", "evaluate", "--on", plain, "--on", told, "--train", plain, *asked, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["sets"]["plain"]["two_step"] is None
    assert list(found["sets"]["plain"]["conditions"]) == ["nc"]
    assert found["sets"]["told"]["two_step"]["candidates"] == 1  # its own: those to train on tell none
    assert list(found["judges"]) == ["told"]


@pytest.mark.usefixtures("trained")
def test_a_language_model_judges_and_selects(run: Run, server: ChatServer, store: Store) -> None:
    def answer(asked: Asked) -> str:
        if "numbered list of criteria" in asked.prompt:
            return "1"
        return "[[A]]" if "without" in asked.prompt else "[[B]]"

    server.answer = answer
    asked = ("--endpoint.url", server.url, "--language-model", "big", "--judge", "--selector", "endpoint")
    done = run("prefer", "evaluate", *asked, "--sampled", "10", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    judged = found["judges"]["held-out"]["conditions"]
    assert judged["nc"]["value"] == judged["ctx"]["value"] == 0.5  # it goes by position
    assert judged["ctx"]["disagreements"] == judged["ctx"]["judged_twice"] == 10
    assert len(server.asked) == 5 + 2 * 2 * 10  # a prompt is asked about once
    before = len(server.asked)
    assert run("prefer", "evaluate", *asked, "--sampled", "10", "--endpoint.at-once", "1").code == 0
    assert len(server.asked) == before


@pytest.mark.usefixtures("run")
def test_what_is_refused(longloom: Run, inputs: Path, pool: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> Done:
        done = longloom("prefer", "evaluate", *arguments, "--store", str(tmp_path / "empty"))
        assert done.code == 2, done.out
        return done

    assert "no such reward-model" in refused().err
    assert "has no reward head" in refused("--model", str(inputs / "model"), "--on", str(pool)).err
    assert "endpoint.url is missing" in refused("--judge").err
    assert "language_model is missing" in refused("--judge", "--endpoint.url", "http://127.0.0.1:9/v1").err
    assert "no such folder" in refused("--model", str(tmp_path / "none"), "--on", str(pool)).err
