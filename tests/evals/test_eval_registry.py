"""The registry of suites, and the YAML files by which plain lm_eval finds the same tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from longloom.evals.leval.tasks import CLOSED
from longloom.evals.longbench.prompts import packaged_prompt
from longloom.evals.longbench.tasks import TASKS
from longloom.evals.registry import open_suite, scorable_names, suite_names
from longloom.evals.suite import Source

EVALS = Path(__file__).resolve().parents[2] / "evals"


def test_names() -> None:
    assert suite_names() == ["leval", "longbench", "needle", "records"]
    assert scorable_names() == ["leval", "longbench"]
    with pytest.raises(ValueError, match=r"unknown suite 'glue'; known: leval, longbench, needle, records"):
        open_suite("glue", Source())
    with pytest.raises(ValueError, match=r"suite 'longbench' has no option 'x'; its options: none"):
        open_suite("longbench", Source(options={"x": 1}))


@pytest.mark.parametrize("name", ["leval", "needle", "records"])
def test_suites_without_a_hub_source_need_data(name: str) -> None:
    with pytest.raises(ValueError, match=f"suite '{name}' needs data"):
        open_suite(name, Source())


def test_listing_the_names_imports_nothing_heavy() -> None:
    code = (
        "import sys, longloom.evals.registry as r; r.suite_names(); "
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'jieba', 'datasets') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_task_has_its_yaml_file() -> None:
    manager = TaskManager(include_path=str(EVALS), include_defaults=False)
    expected = {f"longloom_longbench_{task}" for task in TASKS} | {f"longloom_leval_{task}" for task in CLOSED}
    assert set(manager.all_subtasks) == expected | {"longloom_needle_single"}
    assert manager.all_tags == ["longloom_leval", "longloom_longbench", "longloom_needle"]


def test_plain_lm_eval_loads_and_rates_a_task(tmp_path: Path) -> None:
    record = {
        "input": "Next?",
        "context": "x = 1\n",
        "answers": ["y = 2", "z = 3"],
        "length": 2,
        "dataset": "lcc",
        "language": "python",
        "all_classes": None,
        "_id": "0",
    }
    (tmp_path / "lcc.jsonl").write_text(json.dumps(record) + "\n")
    metadata = {"data": str(tmp_path), "pretrained": "some/model"}
    manager = TaskManager(include_path=str(EVALS / "longbench"), include_defaults=False, metadata=metadata)
    task = manager.load(["longloom_longbench_lcc"])["tasks"]["longloom_longbench_lcc"]
    task.build_all_requests()
    (instance,) = task.instances
    prompt, options = instance.args
    assert prompt == packaged_prompt("lcc").format(context="x = 1\n")
    assert (options["max_gen_toks"], options["until"], options["do_sample"]) == (64, [], False)
    parts = task.process_results(instance.doc, ["z = 3\n"])
    assert parts == {"score": {"score": 1.0}}
    assert task.aggregation()["score"]([{"score": 1.0}, {"score": 0.0}]) == 50.0
    assert task.dump_config()["task"] == "longloom_longbench_lcc"
