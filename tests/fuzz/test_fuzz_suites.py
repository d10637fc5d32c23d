"""Damaged records of every suite, in each of their official formats; and damaged haystacks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from transformers import AutoTokenizer

from longloom.evals.needle.haystack import documents
from longloom.evals.registry import open_suite
from longloom.evals.ruler.essays import OFFICIAL, has_essays
from longloom.evals.suite import Source

from ..tasks.longcontext.official import SHORT, cases
from .damage import SHARED, damaged, damaged_json, damaged_lines, examples, survives

BASE = Path(__file__).resolve().parents[2] / "tasks/training/base"

#: suite -> tasks with a format, a metric or options of their own.
TASKS = {
    "longbench": ["qasper", "trec", "passage_count", "lcc"],
    "longbench-e": ["lcc"],
    "longbench-v2": ["all"],
    "records": ["mills"],
    "leval": ["coursera", "gsm100", "narrative_qa", "gov_report_summ"],
    "infinitebench": [
        "passkey",
        "kv_retrieval",
        "code_debug",
        "code_run",
        "math_find",
        "math_calc",
        "longbook_sum_eng",
    ],
    "chatrag": ["coqa", "convfinqa", "inscit"],
    "chatrag-native": ["inscit"],
    "ruler": ["qa_1", "qa_2"],
}
PLACES = [pytest.param(suite, task, id=f"{suite}-{task}") for suite, tasks in TASKS.items() for task in tasks]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def file_of(data: Path, task: str) -> Path:
    """The file that a task's records are in, by its name or its folder's."""
    named = {"qa_1": "squad", "qa_2": "hotpotqa", "all": "data"}.get(task, task)
    files = files_of(data) if data.is_dir() else [data]
    return next((path for path in files if named in (path.stem.removesuffix("_e"), path.parent.name)), files[0])


@pytest.mark.parametrize(("name", "task"), PLACES)
def test_damaged_records_are_read_or_refused(tmp_path: Path, name: str, task: str) -> None:
    case = cases(tmp_path)[name]
    path = file_of(case.data, task)
    tokenizer = AutoTokenizer.from_pretrained(BASE) if name == "ruler" else None

    def load() -> list[dict[str, Any]]:
        suite = open_suite(case.suite, Source(data=case.data, tokenizer=tokenizer, options=case.options))
        assert task in suite.tasks()
        found = suite.records(task)
        assert 0 <= suite.score(task, [suite.rate(task, "the mill", record) for record in found]) <= 100
        json.dumps(found, ensure_ascii=False, default=str).encode()  # as it goes into a table
        return list(found)

    assert load()
    whole = path.read_bytes()
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in whole.splitlines()]
        strategy = damaged_lines(lines)
    else:
        strategy = damaged_json(json.loads(whole))

    @examples(6 if name == "ruler" else 20)  # RULER fits prompts to a length
    @given(strategy)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = survives(load, names=(str(path), str(case.data)))
        assert found is None or found

    check()


@pytest.mark.parametrize("table", ["prompt", "maxlen", "metric", "chat"])
def test_damaged_tables_of_tasks(tmp_path: Path, table: str) -> None:
    case = cases(tmp_path)["records"]
    path = case.data / "config" / f"dataset2{table}.json"

    def load() -> None:
        suite = open_suite(case.suite, Source(data=case.data, options=case.options))
        for task in suite.tasks():
            suite.metric(task), suite.max_new_tokens(task), suite.records(task)

    @examples(40)
    @given(damaged_json(json.loads(path.read_bytes())))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        survives(load, names=(str(path), path.name, "the prompt of task"))

    load()
    check()


def test_damaged_haystacks(tmp_path: Path) -> None:
    text, table = tmp_path / "text", tmp_path / "table"
    for folder in (text, table):
        folder.mkdir()
    pq.write_table(pa.table({"text": [SHORT] * 50, "id": list("a" * 50)}), table / "documents.parquet")
    whole = (table / "documents.parquet").read_bytes()

    @examples(60)
    @given(damaged(SHORT.encode()))
    def of_text(content: bytes) -> None:
        (text / "a.txt").write_bytes(content)
        survives(lambda: list(documents(text)), names=str(text))

    @examples(80)
    @given(damaged(whole))
    def of_table(content: bytes) -> None:
        (table / "documents.parquet").write_bytes(content)
        survives(lambda: list(documents(table)), names=str(table))

    of_text()
    of_table()
    assert has_essays(text)
    assert not has_essays(tmp_path)
    assert OFFICIAL not in [path.name for path in files_of(tmp_path)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the checkout")
@pytest.mark.parametrize(
    ("suite", "source", "task"),
    [
        ("longbench", "longbench/multifieldqa_zh.jsonl", "multifieldqa_zh"),
        ("leval", "leval/Closed-ended-tasks/gsm100.jsonl", "gsm100"),
        ("leval", "leval/Open-ended-tasks/natural_question.jsonl", "natural_question"),
    ],
)
def test_damaged_official_files(tmp_path: Path, suite: str, source: str, task: str) -> None:
    path = tmp_path / f"{task}.jsonl"
    with (SHARED / source).open(encoding="utf-8") as file:
        records = [json.loads(line) for line in itertools.islice(file, 2)]
    for record in records:  # whole contexts are megabytes
        record.update({name: record[name][:2000] for name in ("context", "input") if name in record})

    @examples(25)
    @given(damaged_lines(records))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        survives(lambda: open_suite(suite, Source(data=tmp_path)).records(task), names=str(path))

    check()
