"""Rows of scores of older and newer artifacts, and how a terminal shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.flows.show import lines_table, scores_table
from longloom.storage.catalog import Catalog
from longloom.storage.store import Store


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    return folder


def score(task: str = "qasper", **more: Any) -> dict[str, Any]:
    row = {"suite": "longbench", "task": task, "metric": "qa_f1", "policy": "full", "score": 31.25, "samples": 9}
    return row | {"failed": 0, "truncated": 0} | more


def test_older_artifacts_lack_the_later_columns(store: Store, tmp_path: Path) -> None:
    later = {"fixed": 33.5, "full_score": 100.0, "retrieval": "bm25:k=5"}
    folders = {"old": write(tmp_path / "old", [score()]), "new": write(tmp_path / "new", [score(**later)])}
    old, new = Catalog(store).scores(folders)
    assert (old["label"], old["fixed"], old["full_score"], old["retrieval"]) == ("old", None, None, None)
    assert {name: new[name] for name in later} == later
    assert old.keys() == new.keys()


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        ({}, ["31.25"]),
        ({"fixed": 33.5}, ["31.25", "fixed 33.50"]),
        ({"fixed": 31.2501}, ["31.25"]),  # rounding
        ({"failed": 2, "fixed": 33.5}, ["31.25 (2 failed)", "fixed 33.50"]),
        ({"score": 0.1236, "full_score": 1.0}, ["0.1236"]),
        ({"score": 0.1236, "full_score": 1.0, "fixed": 0.5}, ["0.1236", "fixed 0.5000"]),
    ],
)
def test_a_cell_has_the_mended_score_below(more: dict[str, Any], lines: list[str]) -> None:
    row = {"label": "full", "fixed": None, "full_score": 100.0, "retrieval": None, **score(), **more}
    table = scores_table([row])
    assert list(table.columns[3].cells) == ["\n".join(lines)]
    assert [column.header for column in table.columns] == ["suite", "task", "metric", "full"]


def test_retrieval_has_a_row_a_label() -> None:
    rows = [
        {"label": label, "fixed": None, "full_score": 100.0, "retrieval": label, **score(task, score=value)}
        for label, value in (("base full bm25:k=5", 20.0), ("base full bm25:k=20", 30.0))
        for task in ("qasper", "hotpotqa")
    ]
    table = lines_table(rows[:-1], "context")
    assert [column.header for column in table.columns] == ["context", "qasper", "hotpotqa"]
    assert [list(column.cells) for column in table.columns] == [
        ["base full bm25:k=5", "base full bm25:k=20"],
        ["20.00", "30.00"],
        ["20.00", ""],
    ]
    twice = [{**row, "metric": metric} for row in rows for metric in ("acc", "acc_norm")]
    assert [column.header for column in lines_table(twice, "context").columns][1:] == [
        *("qasper acc", "qasper acc_norm", "hotpotqa acc", "hotpotqa acc_norm")
    ]
    other = [{**rows[0], "suite": "leval"}]
    assert [column.header for column in lines_table(rows + other, "context").columns][1:] == [
        *("longbench qasper", "longbench hotpotqa", "leval qasper")
    ]
