"""`longloom heads`: a profile of the repository's model, published scores in its place, one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from longloom.flows.sources import of_run
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import list_runs
from longloom.storage.store import Store

from .command import Run

#: A probe of a second.
SHORT = ("--length", "24", "--repeats", "3")


def test_the_repositorys_model(run: Run, store: Store) -> None:
    done = run("heads", *SHORT, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    ref = ArtifactRef.model_validate(found["heads"])
    profile = HeadProfile.read(Path(found["profile"]))
    assert Path(found["profile"]) == store.open(ref) / "heads.json"
    assert Path(found["map"]).read_bytes().startswith(b"\x89PNG")
    layers, kv_heads = profile.shape
    assert (found["layers"], found["kv_heads"]) == (layers, layers * kv_heads)
    assert dict(profile.settings)["tokens"] == 73
    assert any(name.startswith("head_probe:") for name in found["kernels"])
    protected = {(row["layer"], row["kv_head"]) for row in found["strongest"] if row["protected"]}
    assert protected == profile.chosen(induction=0.14, echo=0.01)
    (log,) = list_runs(store)
    assert (log.flow, log.state, list(log.stages)) == ("heads", "completed", ["model", "heads/base"])
    assert of_run(store, "run:latest:heads/base", "heads") == ref

    done = run("heads", *SHORT, "--model", "run:latest:model")
    assert done.code == 0, done.err
    said = [line.split()[:3] for line in done.err.splitlines() if line.startswith(("+ ", "= "))]
    assert said == [["=", "heads-model", "unchanged"]]
    head, *rows = [line.split() for line in done.out.splitlines()]
    assert head == ["layer", "KV", "head", "induction", "echo", "protected", "by"]
    for row, expected in zip(rows, found["strongest"], strict=False):
        assert [int(row[0]), int(row[1])] == [expected["layer"], expected["kv_head"]]
        assert [float(row[2]), float(row[3])] == pytest.approx([expected["induction"], expected["echo"]], abs=1e-4)
    assert f"{len(protected)} of {layers * kv_heads} KV heads are protected by the paper's shares" in done.out
    assert f"map in {found['map']}" in done.out

    other = run("heads", *SHORT, "--seed", "1", "--json")
    assert json.loads(other.out)["heads"]["digest"] != ref.digest


def test_published_scores(run: Run, inputs: Path, tmp_path: Path) -> None:
    """The model has one layer of one KV head and two query heads."""
    np.savetxt(tmp_path / "full_attention_heads.tsv", [[0.25]], delimiter="\t")
    (tmp_path / "scores.json").write_text(json.dumps({"0-0": [0, 1], "0-1": [0.75]}))
    heads = ("heads", "--model", str(inputs / "model"), "--scores")
    for file, layout, expected in (
        ("full_attention_heads.tsv", "duoattention", 0.25),
        ("scores.json", "retrieval-head", 0.75),
    ):
        done = run(*heads, str(tmp_path / file), "--layout", layout, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["source"] == layout
        assert found["strongest"] == [
            {"layer": 0, "kv_head": 0, "induction": expected, "echo": None, "protected": "induction"}
        ]
        assert HeadProfile.read(Path(found["profile"])).induction == ((expected,),)
    done = run(*heads, str(tmp_path / "scores.json"), "--layout", "retrieval-head")
    assert "unchanged" in done.err
    assert done.out.splitlines()[1].split() == ["0", "0", "0.7500", "induction"]
    (tmp_path / "scores.json").write_text(json.dumps({"0-0": [0, 1], "0-1": [0.5]}))
    done = run(*heads, str(tmp_path / "scores.json"), "--layout", "retrieval-head", "--json")
    assert json.loads(done.out)["strongest"][0]["induction"] == 0.5  # what the file says counts, not its name


def test_bad_input_is_one_line(run: Run, inputs: Path, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "wide.tsv", [[0.25, 0.5]], delimiter="\t")
    np.savetxt(tmp_path / "nan.tsv", [[float("nan")]], delimiter="\t")
    for arguments, expected in [
        (("--scores", "a.tsv"), "scores is 'a.tsv' without a layout, expected duoattention, retrieval-head or kvzip"),
        (("--layout", "kvzip"), "layout is 'kvzip' without scores, expected the file that has it"),
        (
            ("--scores", "a", "--layout", "kvzip", "--length", "8"),
            "length is 8 with scores, which are not probed; expected the one or the other",
        ),
        (
            ("--scores", "a", "--layout", "duo"),
            "layout: Input should be 'duoattention', 'retrieval-head' or 'kvzip', found 'duo'",
        ),
        (("--repeats", "1"), "repeats: Input should be greater than or equal to 2, found '1'"),
        (
            ("--length", "128"),
            "head profile: length 128 x repeats 4 and a begin token are 513 tokens, expected both at",
        ),
        (
            ("--scores", str(tmp_path / "wide.tsv"), "--layout", "duoattention"),
            f"head scores {tmp_path / 'wide.tsv'}: has the shape 1 x 2, expected the model's 1 layers x 1 KV heads",
        ),
        (
            ("--scores", str(tmp_path / "nan.tsv"), "--layout", "duoattention"),
            f"head scores {tmp_path / 'nan.tsv'}: KV head 0 of layer 0 has nan, expected finite scores",
        ),
        (("--scores", str(tmp_path / "no"), "--layout", "kvzip"), f"{tmp_path / 'no'}: no such file or folder"),
        (("--model", "scratch"), "model scratch: there is no corpus to train it on here"),
    ]:
        done = run("heads", *(() if "--model" in arguments else ("--model", str(inputs / "model"))), *arguments)
        assert (done.code, done.out) == (2, ""), arguments
        assert done.err.splitlines()[-1].startswith(f"longloom: {expected}"), done.err
