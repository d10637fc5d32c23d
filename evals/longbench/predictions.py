"""Official prediction files of LongBench: one {"pred", "answers", "all_classes", "length"} a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from longloom.evals.jsonl import STRINGS, STRINGS_OR_NULL, TEXT, check_fields
from longloom.evals.longbench.metrics import METRICS, first_line
from longloom.evals.longbench.tasks import TASKS
from longloom.evals.matching import dataset_score
from longloom.evals.suite import unknown_task

# `length` is only read for LongBench-E, officially too.
FIELDS = {"pred": TEXT, "answers": STRINGS, "all_classes": STRINGS_OR_NULL}


def recognises(record: Mapping[str, Any]) -> bool:
    """Whether a record looks like a prediction of this suite."""
    return "pred" in record and "answers" in record


def score(task: str, records: Iterable[tuple[int, dict[str, Any]]], path: str) -> dict[str, Any]:
    """Scores the records of a prediction file.

    Args:
        task: the task's official name.
        records: line numbers and records.
        path: the file's name, for errors.

    Returns:
        metric, score (0-100), samples, empty (predictions without any text).

    Raises:
        ValueError: an unknown task; a missing or wrong field (file, line, field).
    """
    if task not in TASKS:
        raise unknown_task("longbench", task, list(TASKS))
    protocol = TASKS[task]
    rated = []
    for number, record in records:
        check_fields(record, FIELDS, f"{path}:{number}")
        if protocol.metric == "classification" and record["all_classes"] is None:
            raise ValueError(f"{path}:{number}: field 'all_classes' is null, expected the classes of {task}")
        rated.append(record)
    # The official script rates every record by the classes of the last one.
    classes = rated[-1]["all_classes"] if rated else None
    metric = METRICS[protocol.metric]
    predictions = [first_line(record["pred"]) if protocol.first_line_only else record["pred"] for record in rated]
    scores = [
        metric(prediction, record["answers"], classes) for prediction, record in zip(predictions, rated, strict=True)
    ]
    return {
        "metric": protocol.metric,
        "score": dataset_score(scores),
        "samples": len(scores),
        "empty": sum(not record["pred"].strip() for record in rated),
    }
