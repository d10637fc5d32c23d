"""`longloom trace` on models, an index and JSON Lines: what is printed, what a further model costs, bad input."""

from __future__ import annotations

import json
from pathlib import Path

from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import list_runs
from longloom.storage.store import Store

from .command import Run

OPTIONS = ("--n", "2", "--gamma", "-0.9", "--new-tokens", "4", "--influence", "1", "--documents", "2")


def stages(err: str) -> dict[str, str]:
    """Stage -> + for built or = for unchanged, of what is told while a command runs."""
    lines = [line.split() for line in err.splitlines() if line.startswith(("+ ", "= "))]
    return {line[1]: line[0] for line in lines}


def test_trace(run: Run, store: Store, inputs: Path, tmp_path: Path) -> None:
    done = run("index", str(inputs / "corpus"), "--tokenizer", str(inputs / "model"))
    assert done.code == 0, done.err
    names = ("alpha", "beta", "gamma", "delta")
    rows = [{"input": f"def {name}_{j}(x): what", "output": f"return x + {j}"} for j, name in enumerate(names)]
    data = tmp_path / "code.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = str(inputs / "model")
    done = run("trace", "--data", str(data), "--models", models, *OPTIONS, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    folder = Path(found["folder"])
    assert folder == store.open(ArtifactRef.model_validate(found["trace"]))
    assert found["dropped"][0]["pairs"] > 0
    assert {(row["set"], row["model"]) for row in found["memorization"]} == {("code", "model")}
    assert (folder / "memorization.parquet").exists()
    log = list_runs(store)[0]
    assert (log.flow, log.state) == ("trace", "completed")
    assert {"index", "model/model", "records/code", "pairs/code/2/input-embeddings", "trace"} <= log.stages.keys()

    # A further model adds its own and the study, nothing else.
    done = run("trace", "--data", str(data), "--models", models, "base", *OPTIONS)
    assert done.code == 0, done.err
    said = stages(done.err)
    assert {name for name, mark in said.items() if mark == "+"} == {
        *("import-base", "trace-scores-code-base", "trace-novelty-code-base-2", "trace-influence-code-base-2"),
        "trace-paper",
    }
    assert done.out.split("\n")[0].split()[:4] == ["set", "task", "n", "model"]
    assert "input-embeddings" in str(list_runs(store)[0].stages)
    assert f"tables and figures in {store.root}" in done.out

    other = run(
        "trace", "--data", str(data), "--models", models, "--n", "2", "--gamma", "0", "--mode", "released", "--json"
    )
    assert other.code == 0, other.err
    released = json.loads(other.out)
    assert released["mode"] == "released"
    assert released["dropped"] != found["dropped"]


def test_an_evaluation_is_traced(run: Run, store: Store, inputs: Path) -> None:
    done = run("index", str(inputs / "corpus"), "--tokenizer", "bytes")
    assert done.code == 0, done.err
    evaluated = str(inputs / "records")
    model = str(inputs / "model")
    done = run("evaluate", "--model", model, "--suite", "records", "--data", evaluated)
    assert done.code == 0, done.err
    label = next(name for run_ in list_runs(store) for name in run_.stages if name.startswith("evaluation/"))
    arguments = (
        "trace",
        "--data",
        f"run:latest:{label}",
        "--models",
        model,
        "--n",
        "1",
        "--gamma",
        "-1",
        "--new-tokens",
        "0",
    )
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "its records are not in the store, expected them as `evaluated`" in done.err
    done = run(*arguments, "--evaluated", evaluated, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["dropped"][0]["task"] == "copy"
    assert found["novelty"] == []
    assert found["performance"] == []
    done = run(*arguments, "--evaluated", str(inputs / "corpus"))
    assert "is not what evaluation:" in done.err


def test_bad_input_is_one_line(run: Run, inputs: Path, tmp_path: Path) -> None:
    data = tmp_path / "set.jsonl"
    data.write_text(json.dumps({"input": "a b c", "output": "d e f"}) + "\n")
    one = ("--data", str(data), "--models", str(inputs / "model"))
    for arguments, expected in [
        (one, "store "),
        ((*one, "--n", "2"), "n is 2, for which the paper gives knowledge no gamma"),
        ((*one, "--n", "3", "3"), "n: 3 is listed twice, expected each once"),
        ((*one, "--gamma", "0.5"), "found 1 gammas for 2 values of n, expected one for each"),
        ((*one, "--index", str(tmp_path / "gone")), f"{tmp_path / 'gone'}: no such folder, expected one of an index"),
        ((*one, "--mode", "released", "--influence", "3"), "influence is 3 in mode released"),
        ((*one, "--mode", "mine"), "mode: Input should be 'paper' or 'released', found 'mine'"),
        ((), 'Command "trace" parameter --data requires an argument.'),
    ]:
        done = run("trace", *arguments)
        assert (done.code, done.out) == (2, ""), (arguments, done)
        assert done.err.splitlines()[-1].startswith(f"longloom: {expected}"), done.err
