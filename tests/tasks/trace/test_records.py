"""Evaluation sets from JSON Lines and from an evaluation's samples; one line for what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.tasks.trace.records import Record, build, load
from longloom.tasks.trace.task import gammas_of

SETTINGS: dict[str, Any] = {
    "evaluation": None,
    "evaluated": None,
    "tokenizer": None,
    "template": "Q: {input}\nA: ",
    "limit": None,
}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lines(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    written(folder / "qa.jsonl", {"input": "a?", "output": "b"}, {"input": "c?", "output": "d", "id": "x", "task": "t"})
    written(folder / "mt.jsonl", {"input": "e", "output": "f"}, {"input": "g", "output": "h"})
    stats = build(folder, tmp_path, **{**SETTINGS, "limit": 1})
    assert load(tmp_path) == [
        Record("mt", "1", "e", "Q: e\nA: ", "f"),
        Record("qa", "1", "a?", "Q: a?\nA: ", "b"),
        Record("t", "x", "c?", "Q: c?\nA: ", "d"),
    ]
    assert stats.counts == {"tasks": 3, "records": 3}


def test_an_evaluation(tmp_path: Path) -> None:
    """Samples of LongBench's format: the suite gives the prompts, the table the references."""
    data = tmp_path / "data"
    (data / "config").mkdir(parents=True)
    rows = [
        {"input": f"q{n}?", "context": f"c{n}", "answers": [f"a{n}", "other"], "length": 1, "dataset": "copy",
         "language": "en", "all_classes": None, "_id": str(n)}
        for n in range(3)
    ]  # fmt: skip
    written(data / "copy.jsonl", *rows)
    tables = {"prompt": "{context}\n{input}", "maxlen": 4, "metric": "string_match", "chat": False}
    for name, value in tables.items():
        (data / "config" / f"dataset2{name}.json").write_text(json.dumps({"copy": value}))
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    samples = [{"task": "copy", "sample": n, "references": [f"a{n}", "other"]} for n in (0, 2)]
    pq.write_table(pa.Table.from_pylist(samples), evaluation / "samples.parquet")
    given = {"evaluation": {"suite": "records", "suite_options": {}, "seed": 0}, "evaluated": data}
    build(evaluation, tmp_path, **(SETTINGS | given))
    assert load(tmp_path) == [Record("copy", str(n), f"c{n}\nq{n}?", f"c{n}\nq{n}? ", f"a{n}") for n in (0, 2)]
    samples[1]["references"] = ["changed"]
    pq.write_table(pa.Table.from_pylist(samples), evaluation / "samples.parquet")
    with pytest.raises(ValueError, match="sample 2 of task copy is not what the suite's records hold now"):
        build(evaluation, tmp_path, **(SETTINGS | given))


def test_bad_input(tmp_path: Path) -> None:
    for row, expected in (
        ({"input": "a"}, "field 'output' is missing"),
        ({"input": " ", "output": "b"}, "field 'input' is .*not blank"),
        ({"input": "a", "output": "b", "task": 3}, "field 'task' is 3, expected a string"),
    ):
        with pytest.raises(ValueError, match=expected):
            build(written(tmp_path / "bad.jsonl", row), tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="holds no records"):
        build(written(tmp_path / "bad.jsonl"), tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="prompt 'Q:': does not say where the input goes"):
        build(written(tmp_path / "bad.jsonl"), tmp_path, **{**SETTINGS, "template": "Q:"})
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        build(tmp_path / "gone", tmp_path, **SETTINGS)


def test_gammas() -> None:
    assert gammas_of([3, 5], [], "knowledge") == {3: 0.75, 5: 0.65}
    assert gammas_of([2, 3, 4, 5], [], "translation") == {2: 0.85, 3: 0.80, 4: 0.75, 5: 0.70}
    assert gammas_of([2], [0.5], "knowledge") == {2: 0.5}
    with pytest.raises(ValueError, match=r"n is 2, for which the paper gives knowledge no gamma \(it does for 3, 5\)"):
        gammas_of([3, 2], [], "knowledge")
    with pytest.raises(ValueError, match="found 1 gammas for 2 values of n"):
        gammas_of([3, 5], [0.5], "knowledge")
