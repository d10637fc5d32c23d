"""Where L-Eval's documents come from: official files in a folder, or the same on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longloom.evals.hub import fetch
from longloom.evals.jsonl import FILLED_TEXT, STRINGS, TEXT, check_fields, read_records, task_files
from longloom.evals.leval.metrics import check_answer
from longloom.evals.leval.tasks import CLOSED, JUDGED, TASK_METRICS

FIELDS = {"instructions": STRINGS, "outputs": STRINGS, "input": TEXT, "evaluation": FILLED_TEXT}

HUB_REPOSITORY = "L4NLP/LEval"

#: Below the official repository's LEval-data.
_FOLDERS = ("Closed-ended-tasks", "Open-ended-tasks")


def files_of(data: Path | None) -> dict[str, Path] | None:
    """Task -> its file: of the `<task>.jsonl` in a folder or in the official two below it, or one file; None: the hub.

    Raises:
        ValueError: there is no such file, or none of a task of L-Eval.
    """
    if data is None:
        return None
    folders = [data / name for name in _FOLDERS if (data / name).is_dir()] or [data]
    files = {task: path for folder in folders for task, path in task_files(folder).items()}
    if not any(task in files for task in TASK_METRICS):
        raise ValueError(f"{data}: has records of {', '.join(files)}, expected {', '.join(TASK_METRICS)}")
    return files


def read_task(data: Path | None, task: str) -> Iterator[dict[str, Any]]:
    """The documents of a task, checked, without those that repeat others for a judge.

    Args:
        data: as for `files_of`; None: the hub (HF_HUB_OFFLINE=1: its local cache).
        task: the task's name.

    Raises:
        ValueError: no such file, a bad record (file, line, field), none that the task's metric rates.
    """
    files = files_of(data)
    if files is None:
        path = fetch(HUB_REPOSITORY, f"LEval/{'Exam' if task in CLOSED else 'Generation'}/{task}.jsonl")
    elif task in files:
        path = files[task]
    else:
        raise ValueError(f"{data}: has no {task}.jsonl, only records of {', '.join(files)}")
    metric = TASK_METRICS[task]
    found = False
    for number, document in read_records(path):
        where = f"{path}:{number}"
        check_fields(document, FIELDS, where)
        asked, answers = len(document["instructions"]), len(document["outputs"])
        if asked != answers:
            raise ValueError(f"{where}: field 'outputs' has {answers} entries, expected {asked} as 'instructions'")
        if document["evaluation"] in JUDGED:
            continue
        if document["evaluation"] != metric:
            tag = document["evaluation"]
            raise ValueError(f"{where}: field 'evaluation' is {tag!r}, expected {metric!r} (or {' or '.join(JUDGED)})")
        if task in CLOSED:
            for place, answer in enumerate(document["outputs"], start=1):
                check_answer(task, answer, f"{where}: field 'outputs', entry {place},")
        found = True
        yield document
    if not found:
        raise ValueError(f"{path}: has no records with evaluation {metric!r}, expected at least one")
