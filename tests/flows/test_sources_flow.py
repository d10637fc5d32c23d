"""explain, contamination, prompts and --exclude-contaminated as commands, on an index of a small store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from longloom.flows.index import build_index
from longloom.flows.params import CorpusParams, IndexParams
from longloom.storage.refs import ArtifactRef
from longloom.storage.store import Store

from .command import Run

pytestmark = pytest.mark.usefixtures("harness")

COLOURS = ("red", "green", "blue", "white")
STORY = "Once there were {0} stones on the shore, and whoever found the {0} ones kept them for many years in a box."


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The task `colours` in LongBench's format; the corpus holds the context of `green`."""
    folder = tmp_path / "records"
    (folder / "config").mkdir(parents=True)
    fixed = {"input": "Which?", "length": 20, "dataset": "colours", "language": "en", "all_classes": None}
    lines = [
        json.dumps(fixed | {"context": STORY.format(colour), "answers": [colour], "_id": str(number)})
        for number, colour in enumerate(COLOURS)
    ]
    (folder / "colours.jsonl").write_text("\n".join(lines) + "\n")
    tables = {"prompt": "{context}\n{input}", "maxlen": 4, "metric": "qa_f1", "chat": False}
    for name, value in tables.items():
        (folder / "config" / f"dataset2{name}.json").write_text(json.dumps({"colours": value}))
    return folder


@pytest.fixture
def index(harness: None, store: Store, tmp_path: Path) -> ArtifactRef:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "story.txt").write_text(f"A tale. {STORY.format('green')} The end.")
    (corpus / "other.txt").write_text("Nothing of that kind is told here, but something else altogether.")
    ref: ArtifactRef = build_index(
        CorpusParams(sources=[str(corpus)]), IndexParams(tokenizer="bytes", threads=1), store=str(store.root)
    )
    return ref


def rows(store: Store, fields: Any, table: str) -> list[dict[str, Any]]:
    folder = store.open(ArtifactRef.model_validate(fields))
    found: list[dict[str, Any]] = pq.read_table(folder / f"{table}.parquet").to_pylist()
    return found


def test_explain_prints_spans_and_copies_the_page(run: Run, index: ArtifactRef, tmp_path: Path) -> None:
    done = run("explain", "I kept them for many years in a drawer", "--out", str(tmp_path / "page.html"))
    assert done.code == 0, done.err
    assert "kept them for many years in a" in done.out
    assert "story.txt" in done.out
    assert "kept them for many years in a" in (tmp_path / "page.html").read_text()
    (tmp_path / "answer.txt").write_text("I kept them for many years in a drawer")
    done = run("explain", "--answers", str(tmp_path / "answer.txt"), "--json")
    [one] = json.loads(done.out)["texts"]
    assert one["spans"][0]["text"] == "kept them for many years in a"


def test_explain_reads_standard_input_and_refuses_nothing(
    run: Run, index: ArtifactRef, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("whoever found the box")
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        done = run("explain", "--json")
    assert json.loads(done.out)["texts"][0]["spans"][0]["text"] == "whoever found the"
    done = run("explain", " ")
    assert (done.code, done.out) == (2, "")
    assert "the text is blank" in done.err
    done = run("explain", "a", "--limit", "1")
    assert (done.code, "limit is 1 without answers" in done.err) == (2, True)


def test_contamination_flags_the_record_and_evaluate_leaves_it_out(
    run: Run, store: Store, index: ArtifactRef, records: Path, inputs: Path
) -> None:
    given = ("--suite", "records", "--data", str(records), "--json")
    done = run("contamination", *given)
    assert done.code == 0, done.err
    looked_up = json.loads(done.out)
    assert [row["contaminated"] for row in looked_up["records"]] == [False, True, False, False]
    assert looked_up["records"][1]["id"] == "corpus/story.txt"

    asked = ("evaluate", *given, "--model", str(inputs / "model"), "--limit", "3")
    whole = json.loads(run(*asked).out)
    assert "contaminated" not in rows(store, whole["evaluations"]["full"], "scores")[0]
    for place in ("run:latest:contamination/records", str(store.root / index.uri)):
        done = run(*asked, "--exclude-contaminated", place)
        assert done.code == 0, done.err
        clean = json.loads(done.out)["evaluations"]["full"]
        assert clean["counts"] == {"tasks": 1, "samples": 2, "failed": 0, "truncated": 0, "contaminated": 1}
        [score] = rows(store, clean, "scores")
        assert (score["samples"], score["contaminated"]) == (2, 1)
        theirs = {row["sample"]: row for row in rows(store, whole["evaluations"]["full"], "samples")}
        own = rows(store, clean, "samples")
        assert [row["sample"] for row in own] == [0, 2]
        for row in own:
            assert row == theirs[row["sample"]]


def test_an_evaluation_is_scored_again_without_what_is_flagged(
    run: Run, store: Store, index: ArtifactRef, records: Path, inputs: Path
) -> None:
    given = ("--suite", "records", "--data", str(records), "--json")
    whole = json.loads(run("evaluate", *given, "--model", str(inputs / "model")).out)
    place = str(store.root / whole["evaluations"]["full"]["uri"])
    [row] = json.loads(run("contamination", *given, "--evaluation", place).out)["scores"]
    samples = rows(store, whole["evaluations"]["full"], "samples")
    clean = [sample["score"] for sample in samples if sample["sample"] != 1]
    assert (row["samples"], row["contaminated"]) == (4, 1)
    assert row["clean_score"] == pytest.approx(100 * sum(clean) / 3)
    done = run("contamination", *given, "--limit", "2", "--evaluation", place)
    assert done.code == 2
    assert "sample 2 of task 'colours' was not looked up" in done.err


def test_other_records_and_other_places_are_refused(
    run: Run, store: Store, index: ArtifactRef, records: Path, inputs: Path
) -> None:
    given = ("--suite", "records", "--data", str(records), "--json")
    run("contamination", *given)
    lines = (records / "colours.jsonl").read_text()
    (records / "colours.jsonl").write_text(lines.replace("red", "pink"))
    asked = ("evaluate", *given, "--model", str(inputs / "model"))
    done = run(*asked, "--exclude-contaminated", "run:latest:contamination/records")
    assert done.code == 2
    assert "sample 0 of suite 'records', task 'colours' held other texts" in done.err
    done = run(*asked, "--exclude-contaminated", str(records))
    assert (done.code, "is neither a contamination artifact nor an n-gram index" in done.err) == (2, True)
    done = run("evaluate", "--suite", "needle", "--exclude-contaminated", str(store.root / index.uri))
    assert (done.code, "makes its prompts itself" in done.err) == (2, True)


def test_all_records_flagged_leave_nothing_to_ask(
    run: Run, store: Store, index: ArtifactRef, records: Path, inputs: Path
) -> None:
    [_, green, *_] = (records / "colours.jsonl").read_text().splitlines()
    (records / "colours.jsonl").write_text(green + "\n")
    given = ("--suite", "records", "--data", str(records), "--model", str(inputs / "model"))
    done = run("evaluate", *given, "--exclude-contaminated", str(store.root / index.uri))
    assert (done.code, "all 1 samples of task 'colours' are contaminated" in done.err) == (2, True)


def test_jsonl_and_prompts_are_looked_up(run: Run, index: ArtifactRef, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"q": STORY.format(colour)}) + "\n" for colour in ("green", "grey")))
    done = run("contamination", "--data", str(path))
    assert done.code == 0, done.err
    assert "questions" in done.out
    assert "story.txt" in done.out
    (tmp_path / "prompts.txt").write_text("on the shore again\nfor many years\n")
    done = run("prompts", "--candidates", str(tmp_path / "prompts.txt"), "--json")
    found = json.loads(done.out)
    assert (found["most_frequent"], found["rarest"]) == ("for many years", "on the shore again")
    done = run("prompts", "--prompt", "x", "--model", "m")
    assert (done.code, "expected both or neither" in done.err) == (2, True)
