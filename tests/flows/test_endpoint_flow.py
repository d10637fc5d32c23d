"""`longloom evaluate` of a model behind an OpenAI-compatible server: scores, failures counted, taken up again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from longloom.evals.ledger import Ledger
from longloom.storage.refs import ArtifactRef
from longloom.storage.runs import list_runs
from longloom.storage.store import Store

from ..chat_server import Asked, ChatServer
from .command import Done, Run

#: Of the records in conftest.py: the task `copy`, whose contexts end in the word that is the answer.
WORDS = ("alpha", "beta", "gamma", "delta")


def right(asked: Asked) -> str:
    """The right answer."""
    return asked.prompt.split()[1]


@pytest.fixture
def server(server: ChatServer) -> ChatServer:
    """The stub: it answers rightly, unless told otherwise, and counts tokens."""
    server.answer = right
    server.usage = {"prompt_tokens": 11, "completion_tokens": 2}
    return server


@pytest.fixture
def evaluate(run: Run, inputs: Path) -> Run:
    """Runs `longloom evaluate` on the records of conftest.py, with one try a request unless told otherwise."""

    def call(url: str, *arguments: str, retries: int = 0) -> Done:
        data = ("--suite", "records", "--data", str(inputs / "records"))
        endpoint = ("--endpoint.url", url, "--endpoint.retries", str(retries), "--model", "org/theirs")
        return run("evaluate", *data, *endpoint, *arguments)

    return call


def samples(store: Store, done: Done) -> list[dict[str, Any]]:
    ref = ArtifactRef.model_validate(json.loads(done.out)["evaluations"]["endpoint"])
    found: list[dict[str, Any]] = pq.read_table(store.open(ref) / "samples.parquet").to_pylist()
    return found


def one_line(done: Done) -> str:
    assert (done.code, done.out) == (2, ""), done
    return done.err.splitlines()[-1].removeprefix("longloom: ")


def test_scores_with_failures_in_the_denominator(evaluate: Run, server: ChatServer, store: Store) -> None:
    """One question is refused at once, one is put off for ever; two get an answer, one of them right."""

    others = {"beta": "nothing", "gamma": (400, "too long"), "delta": (429, "slow\ndown")}
    server.answer = lambda asked: others.get(right(asked), right(asked))
    done = evaluate(server.url, "--json", retries=1)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (row,) = found["scores"]
    assert {name: row[name] for name in ("label", "task", "policy", "samples", "failed", "score")} == {
        "label": "endpoint",
        "task": "copy",
        "policy": "endpoint",
        "samples": 4,
        "failed": 2,
        "score": 25.0,
    }
    rows = samples(store, done)
    assert [row["score"] for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert [row["error"] for row in rows] == [None, None, "HTTP 400: too long", "HTTP 429: slow down"]
    assert [row["prompt_tokens"] for row in rows[:2]] == [11, 11]  # as the server counts
    times = Counter(map(right, server.asked))
    assert times == {"alpha": 1, "beta": 1, "gamma": 1, "delta": 2}  # 400 is not tried again, 429 is
    record = list_runs(store)[0]
    assert list(record.stages) == ["evaluation/theirs/records/endpoint"]

    # What failed is asked again by the next run, and nothing else; then nothing is.
    server.asked.clear()
    server.answer = right
    done = evaluate(server.url, retries=3)  # how patiently it is asked is no part of what is asked
    assert done.code == 0
    assert sorted(map(right, server.asked)) == ["delta", "gamma"]
    assert done.out.splitlines()[1].split() == ["records", "copy", "qa_f1", "75.00"]
    server.asked.clear()
    assert evaluate(server.url).code == 0
    assert server.asked == []


def test_a_server_that_puts_off_everything(evaluate: Run, server: ChatServer, store: Store) -> None:
    server.answer = lambda asked: (429, "slow down")
    done = evaluate(server.url)
    assert (done.code, done.out) == (2, "")
    assert "all 4 samples failed, the first with: HTTP 429: slow down" in done.err.splitlines()[-1]
    assert len(server.asked) == 4
    assert not list(store.root.glob("artifacts/evaluation/*"))

    server.answer = right
    done = evaluate(server.url, "--json")
    assert [row["score"] for row in samples(store, done)] == [1.0] * 4


def test_a_run_that_was_cut_off_asks_no_answered_question_again(
    evaluate: Run, server: ChatServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Ledger.add
    kept: list[str] = []

    def add(ledger: Ledger, rows: Any) -> None:
        real(ledger, rows)
        kept.extend(row["text"] for row in rows)
        if len(kept) == 2:
            raise OSError("cut off")

    monkeypatch.setattr(Ledger, "add", add)
    assert evaluate(server.url, "--endpoint.at-once", "1").code != 0
    monkeypatch.setattr(Ledger, "add", real)
    assert len(kept) == 2
    assert len(list(store.root.glob("work/*/generations.jsonl"))) == 1

    done = evaluate(server.url, "--json")
    assert [row["prediction"] for row in samples(store, done)] == list(WORDS)
    times = Counter(map(right, server.asked))
    assert set(times) == set(WORDS)
    assert [times[word] for word in kept] == [1, 1]
    assert not list(store.root.glob("work/*"))


def test_what_cannot_be_asked_is_one_line(evaluate: Run, server: ChatServer, store: Store) -> None:
    for url, arguments, expected in [
        ("http://127.0.0.1:9/v1", (), "cannot reach the endpoint http://127.0.0.1:9/v1 (no connection: "),
        ("localhost", (), "endpoint.url: found 'localhost', expected a URL such as http://127.0.0.1:8000/v1"),
        (server.url, ("--policies", "full", "recent:budget=9"), "policies are full, recent:budget=9 with an endpoint"),
        (server.url, ("--max-length", "50"), "max_length is 50, and there is no tokenizer to measure it: name one"),
    ]:
        line = one_line(evaluate(url, *arguments))
        assert line.startswith(expected), line
    assert server.asked == []
    assert not list(store.root.glob("artifacts/*/*"))
