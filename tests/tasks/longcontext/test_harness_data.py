"""What lm-eval's tasks depend on, told from their YAML files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from longloom.storage.store import Store
from longloom.tasks.longcontext import harness_data as module
from longloom.tasks.longcontext import task as stage
from longloom.tasks.longcontext.harness_data import harness_identity
from longloom.tasks.suite_data import HARNESS

Written = Callable[..., None]


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The commits that the hub tells; of other data sets it knows nothing."""
    known = {"weaver/warp": "c0ffee"}

    def revision(repository: str) -> str:
        if repository not in known:
            raise ValueError(f"the hub's data set {repository} is not in its local cache")
        return known[repository]

    monkeypatch.setattr("longloom.evals.hub.revision", revision)
    return known


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    return tmp_path / "tasks"


@pytest.fixture
def write(folder: Path) -> Written:
    def written(name: str, **config: Any) -> None:
        (folder / name).write_text(yaml.safe_dump(config))

    return written


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Records that lie elsewhere."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": 1}) + "\n")
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("way", ["absolute", "relative", "pattern", "list", "folder", "place"])
def test_records_elsewhere_count(
    way: str, write: Written, folder: Path, rows: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    given: dict[str, dict[str, Any]] = {
        "absolute": {"data_files": {"test": str(rows)}},
        "relative": {"data_files": "rows.jsonl"},
        "pattern": {"data_files": {"test": ["r*.jsonl"]}},
        "list": {"data_files": ["https://example.org/rows.jsonl", str(rows), "missing.jsonl"]},
        "folder": {"data_dir": str(rows.parent), "data_files": "rows.jsonl"},
        "place": {},
    }
    path = str(rows) if way == "place" else "json"
    write("own.yaml", task="own", dataset_path=path, dataset_kwargs=given[way])
    before = harness_identity(store, ["own"], folder)
    assert before.keys() == {"harness", "records"}
    assert harness_identity(store, ["own"], folder) == before
    rows.write_text(json.dumps({"q": 22}) + "\n")
    assert harness_identity(store, ["own"], folder)["records"] != before["records"]


def test_only_what_is_asked_for_counts(write: Written, folder: Path, rows: Path, store: Store) -> None:
    """Through groups, tags, patterns, includes and functions; a name that nobody knows is lm-eval's to refuse."""
    write("_base", dataset_path="json", dataset_kwargs={"data_files": str(rows)})
    (folder / "told.yaml").write_text("include: _base\ntask: told\ntag: mine\ndoc_to_text: !function utils.text\n")
    write("hub.yaml", task="hubbed", dataset_path="weaver/warp")
    write("lost.yaml", task="lost", dataset_path="weaver/lost")
    write("group.yaml", group="all", task=["hubbed", {"task": "lost", "dataset_path": "weaver/warp"}])
    (folder / "broken.yaml").write_text("task: [")
    (folder / "loop.yaml").write_text("include: loop.yaml\ntask: loop\n")
    assert harness_identity(store, ["told"], folder).keys() == {"harness", "records"}
    assert harness_identity(store, ["hubbed"], folder).keys() == {"harness", "datasets"}
    assert harness_identity(store, ["hubbed"], folder)["datasets"] == "hub:weaver/warp@c0ffee"
    assert harness_identity(store, ["lost"], folder).keys() == {"harness"}
    assert harness_identity(store, ["mine", "hubbed"], folder).keys() == {"harness", "records", "datasets"}


def test_lm_evals_own_tasks(
    write: Written, folder: Path, store: Store, hub: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups may name them, and a task of one's own comes before that of the same name."""
    write("a.yaml", task="a", dataset_path="weaver/warp")
    write("b.yaml", task="b", dataset_path="weaver/weft", dataset_kwargs={"revision": "abc"})
    write("both.yaml", group="both", task=["a", "b", "mine"])
    theirs = module._index(folder)
    monkeypatch.setattr(module, "_own_index", lambda: theirs)
    own = folder.parent / "own"
    own.mkdir()
    (own / "a.yaml").write_text("task: a\ndataset_path: weaver/loom\n")
    (own / "mine.yaml").write_text("task: mine\ndataset_path: weaver/reed\n")
    hub |= {"weaver/loom": "1", "weaver/reed": "2"}
    assert harness_identity(store, ["a"], None)["datasets"] == "hub:weaver/warp@c0ffee"
    assert "datasets" not in harness_identity(store, ["b"], None)  # it names the commit itself
    assert harness_identity(store, ["both"], own)["datasets"] == "hub:weaver/loom@1 hub:weaver/reed@2"
    assert harness_identity(store, ["?"], own)["datasets"] == "hub:weaver/loom@1"
    hub["weaver/loom"] = "3"
    assert harness_identity(store, ["a"], own)["datasets"] == "hub:weaver/loom@3"


def test_a_task_that_is_installed_is_found_without_lm_eval() -> None:
    code = (
        "import sys; from longloom.tasks.longcontext import harness_data as h\n"
        "assert [found['dataset_path'] for found in h._configs(['hellaswag'], None)] == ['Rowan/hellaswag']\n"
        "assert not {'lm_eval', 'datasets', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_stage_s_key_has_it(
    write: Written, folder: Path, rows: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[dict[str, str]] = []
    monkeypatch.setattr(stage, "_ask", lambda *_, identity, **__: keys.append(identity))
    write("own.yaml", task="own", dataset_path="json", dataset_kwargs={"data_files": str(rows)})

    def ask() -> dict[str, str]:
        options = {"tokenizer": None, "tasks": ["own"]}
        stage.ask(store, str(folder), suite=HARNESS, label="", passages=None, **options)
        return keys[-1]

    before = ask()
    assert before.keys() == {"data", "harness", "records"}
    rows.write_text("{}\n")
    assert {name for name, value in ask().items() if value != before[name]} == {"records"}
    monkeypatch.setattr(module, "version", lambda _: "99.0")
    assert ask()["harness"] == f"{stage._HARNESS_TABLES} lm_eval 99.0"
