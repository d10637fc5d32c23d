"""`longloom judge`: prediction files and evaluations of earlier runs, compared by a judge behind a stub server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from longloom.flows.sources import of_run
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import RunLog, list_runs
from longloom.storage.store import Store

from ..chat_server import Asked, ChatServer
from .command import Run

QUESTIONS = ("Who?", "Where?", "When?")
ANSWERS = ("Ann", "in Rome", "today")


@pytest.fixture
def server(server: ChatServer) -> ChatServer:
    """The stub: as `judge` it prefers the answer with an exclamation mark, else it says "Ann!"."""

    def answer(asked: Asked) -> str:
        if asked.model != "judge":
            return "Ann!"
        if "When?" in asked.prompt:
            return "Both are good."
        first = asked.prompt.split("[The Start of Assistant A's Answer]\n")[1].split("\n[The End")[0]
        return "[[A]]" if first.endswith("!") else "[[B]]"

    server.answer = answer
    return server


def judged(server: ChatServer) -> list[Asked]:
    """What the judge was asked."""
    return [asked for asked in server.asked if asked.model == "judge"]


def predictions(path: Path, name: str, texts: Sequence[str], questions: Sequence[str] = QUESTIONS) -> str:
    """An official prediction file."""
    gold = dict(zip(QUESTIONS, ANSWERS, strict=True))
    lines = [
        {"query": question, "gt": gold.get(question, "?"), f"{name}_pred": text, "evaluation": "f1"}
        for question, text in zip(questions, texts, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_two_prediction_files(run: Run, server: ChatServer, store: Store, tmp_path: Path) -> None:
    """It wins the first pair in both orders and loses the second; of the third the judge says nothing."""
    ours = predictions(tmp_path / "ours.jsonl", "ours", ["Ann!", "Rome", "now!"])
    theirs = predictions(
        tmp_path / "theirs.jsonl", "theirs", ["Bob", "there!", "then", "x"], [*QUESTIONS, "What else?"]
    )
    judge = ("judge", "--task", "multidoc_qa", "--answers", ours, "--against", theirs, "--model", "judge")
    done = run(*judge, "--endpoint.url", server.url, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    counts = {"pairs": 3, "unmatched": 0, "wins": 2, "ties": 0, "losses": 2, "unread": 2, "failed": 0}
    assert {name: found[name] for name in counts} == counts
    assert (found["win_rate"], found["judged_twice"], found["disagreements"]) == (0.5, 2, 0)
    assert found["as_a"] == {"wins": 1, "ties": 0, "losses": 1, "unread": 1, "failed": 0, "win_rate": 0.5}
    assert len(judged(server)) == 6
    ref = ArtifactRef.model_validate(found["judge"])
    verdicts = pq.read_table(store.open(ref) / "verdicts.parquet").to_pylist()
    assert [(row["question"], row["answer"], row["as_a"], row["as_b"]) for row in verdicts] == [
        ("Who?", "Ann!", "win", "win"),
        ("Where?", "Rome", "loss", "loss"),
        ("When?", "now!", "unread", "unread"),
    ]
    record = list_runs(store)[0]
    assert (record.flow, record.stages) == ("judge", {"judge/multidoc_qa": ref})

    done = run(*judge, "--endpoint.url", server.url, "--endpoint.at-once", "1")
    assert done.code == 0
    assert len(judged(server)) == 6  # how it is asked is no part of what is asked
    assert ["win_rate", "0.5"] in [line.split() for line in done.out.splitlines()]
    assert f"verdicts in {store.open(ref) / 'verdicts.parquet'}" in done.out


def test_an_evaluation_of_an_earlier_run(run: Run, server: ChatServer, store: Store, tmp_path: Path) -> None:
    document = {"input": "Ann came to Rome.", "instructions": list(QUESTIONS), "outputs": list(ANSWERS)}
    data = tmp_path / "leval"
    data.mkdir()
    (data / "multidoc_qa.jsonl").write_text(json.dumps({**document, "evaluation": "f1", "source": "test"}) + "\n")
    endpoint = ("--endpoint.url", server.url)
    assert run("evaluate", "--suite", "leval", "--data", str(data), "--model", "org/theirs", *endpoint).code == 0
    opponent = predictions(tmp_path / "opponent.jsonl", "opponent", ["Bob", "there!"], QUESTIONS[:2])
    judge = ("judge", "--task", "multidoc_qa", "--against", opponent, "--model", "judge", *endpoint, "--answers")
    answers = "run:latest:evaluation/theirs/leval/endpoint"

    done = run(*judge, answers, "--data", str(data), "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    # "Ann!" against "Bob" wins twice. Against "there!" whoever stands first does.
    assert {name: found[name] for name in ("pairs", "unmatched", "wins", "losses", "disagreements")} == {
        "pairs": 2,
        "unmatched": 1,
        "wins": 3,
        "losses": 1,
        "disagreements": 1,
    }
    assert found["win_rate"] == 0.75
    assert {asked.messages[0]["role"] for asked in judged(server)} == {"system"}

    # The other way round: what was won is lost.
    swapped = ("judge", "--task", "multidoc_qa", "--answers", opponent, "--against", answers, "--model", "judge")
    done = run(*swapped, *endpoint, "--data", str(data), "--json")
    assert json.loads(done.out)["win_rate"] == 0.25

    before = len(judged(server))
    for arguments, expected in [
        (
            ("run:latest:evaluation/theirs/leval/full", "--data", str(data)),
            "evaluation 'run:latest:evaluation/theirs/leval/full': no such evaluation, expected run:latest:LABEL; the"
            " labels there: evaluation/theirs/leval/endpoint",
        ),
        (
            (answers, "--data", str(tmp_path / "no")),
            f"{tmp_path / 'no'}: no such file or folder",
        ),
        ((str(tmp_path / "no.jsonl"),), f"{tmp_path / 'no.jsonl'}: no such file or folder"),
    ]:
        done = run(*judge, *arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines()[-1] == f"longloom: {expected}"
    assert len(judged(server)) == before


def test_what_is_no_judge_is_one_line_before_any_work(run: Run, store: Store, tmp_path: Path) -> None:
    path = predictions(tmp_path / "a.jsonl", "a", ANSWERS)
    judge = ("judge", "--answers", path, "--against", path, "--model", "judge")
    url = ("--endpoint.url", "http://127.0.0.1:9/v1")
    for arguments, expected in [
        ((), "endpoint.url is missing, expected the judge's server, such as http://127.0.0.1:8000/v1"),
        ((*url, "--endpoint.api", "completions"), "Unknown option: --endpoint.api"),
        (
            (*url, "--task", "quality"),
            "task 'quality' has no answers to judge; L-Eval's open-ended tasks: financial_qa",
        ),
        (("--endpoint.url", "http://me:secret@host/v1"), "endpoint.url: the URL holds a user, a password or a query"),
    ]:
        done = run(*judge, *(() if "--task" in arguments else ("--task", "multidoc_qa")), *arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines()[-1].startswith(f"longloom: {expected}")
        assert "secret" not in done.err
        assert list_runs(store) == []
    done = run(*judge, "--task", "multidoc_qa", *url)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("longloom: cannot reach the endpoint http://127.0.0.1:9/v1 (no connect")
    assert [run.state for run in list_runs(store)] == ["failed"]
    assert not list(store.root.glob("artifacts/*/*"))


def test_labels_of_earlier_runs(store: Store) -> None:
    """The newest run that has the label; labels of a retrieval hold colons; an error lists some of a sweep's."""

    def artifact(kind: str, digest: str) -> ArtifactRef:
        return ArtifactRef(kind=kind, uri=f"artifacts/{kind}/{digest}", digest=digest, schema_version=1)

    swept = [f"evaluation/m/leval/full/bm25:words=3,k={k},order=rank" for k in range(1, 16)]
    ids: list[str] = []
    for number, label in enumerate(["evaluation/m/leval/full", *swept, "evaluation/m/leval/full"]):
        with RunLog(store, "evaluate", {}) as log:
            log.add(label, artifact("evaluation", f"{number:064}"))
            log.add("model", artifact("model", "a" * 64))
            ids.append(log.run.id)
    assert of_run(store, "run:latest:evaluation/m/leval/full", "evaluation").digest == f"{16:064}"
    assert of_run(store, f"run:latest:{swept[4]}", "evaluation").digest == f"{5:064}"
    assert of_run(store, f"run:{ids[0]}:evaluation/m/leval/full", "evaluation").digest == f"{0:064}"
    with pytest.raises(ValueError, match=rf"expected run:{ids[0]}:LABEL; the labels there: evaluation/m/leval/full$"):
        of_run(store, f"run:{ids[0]}:{swept[0]}", "evaluation")
    with pytest.raises(ValueError, match=r"^evaluation 'run:latest:model': no such evaluation, .* and 4 more$"):
        of_run(store, "run:latest:model", "evaluation")
