"""What stands for a suite's records in a stage's key: all that its results depend on, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longloom.storage.fingerprint import fingerprint_folder
from longloom.storage.store import Store
from longloom.tasks.suite_data import HARNESS, suite_data


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """One task in the format of the suite `records`, with its tables beside it."""
    tables = {"prompt": "{context} {input}", "maxlen": 8, "metric": "qa_f1", "chat": False}
    (tmp_path / "data" / "config").mkdir(parents=True)
    for name, value in tables.items():
        (tmp_path / "data" / "config" / f"dataset2{name}.json").write_text(json.dumps({"keys": value}))
    (tmp_path / "data" / "keys.jsonl").write_text('{"input": "Who?"}\n')
    return tmp_path / "data" / "keys.jsonl"


@pytest.mark.parametrize("table", ["prompt", "maxlen", "metric", "chat"])
def test_a_file_of_records_counts_with_the_tables_beside_it(tmp_path: Path, task: Path, table: str) -> None:
    store = Store(tmp_path / "store")
    before = suite_data(store, "records", str(task)).identity
    (task.parent / "other.jsonl").write_text("{}\n")
    assert suite_data(store, "records", str(task)).identity == before, "of another task"
    (task.parent / "config" / f"dataset2{table}.json").write_text(json.dumps({"keys": "other"}))
    assert suite_data(store, "records", str(task)).identity != before


def test_the_place_does_not_count(tmp_path: Path, task: Path) -> None:
    store = Store(tmp_path / "store")
    before = suite_data(store, "records", str(task)).identity
    moved = task.parent.rename(tmp_path / "elsewhere") / task.name
    assert suite_data(store, "records", str(moved)).identity == before


@pytest.mark.parametrize("suite", ["longbench", "infinitebench", HARNESS])
def test_other_suites_read_nothing_beside_a_file(tmp_path: Path, task: Path, suite: str) -> None:
    store = Store(tmp_path / "store")
    found = suite_data(store, suite, str(task))
    assert found.identity == {"data": fingerprint_folder(store, task)}
    assert found.place == str(task)
