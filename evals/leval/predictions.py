"""Official prediction files of L-Eval: one {"query", "gt", "<model>_pred", "evaluation"} a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from longloom.evals.jsonl import FILLED_TEXT, TEXT, check_fields
from longloom.evals.leval.mended import rate_fixed
from longloom.evals.leval.metrics import check_answer, rate
from longloom.evals.leval.suite import official_score
from longloom.evals.leval.tasks import CLOSED, METRICS, TASK_METRICS
from longloom.evals.suite import Parts, unknown_task


def recognises(record: Mapping[str, Any]) -> bool:
    """Whether a record looks like a prediction of this suite."""
    return "gt" in record and prediction_field(record) is not None


def score(task: str, records: Iterable[tuple[int, dict[str, Any]]], path: str) -> dict[str, Any]:
    """Scores the records of a prediction file.

    Args:
        task: the task's official name.
        records: line numbers and records.
        path: the file's name, for errors.

    Returns:
        metric, score (0-100), samples, skipped (records for a judge), empty (predictions without any text), fixed (the
        score by the mended metric).

    Raises:
        ValueError: an unknown task; a missing or wrong field (file, line, field); records of several metrics, or none.
    """
    if task not in TASK_METRICS:
        raise unknown_task("leval", task, list(TASK_METRICS))
    field: str | None = None
    metric: str | None = None
    ratings: list[Parts] = []
    mended: list[Parts] = []
    skipped = empty = 0
    for position, (number, record) in enumerate(records):
        where = f"{path}:{number}"
        field = field or prediction_field(record)  # the first record's, officially
        if field is None:
            raise ValueError(f"{where}: field '<model>_pred' is missing, expected the model's answer")
        check_fields(record, {"gt": FILLED_TEXT, "evaluation": FILLED_TEXT, field: TEXT}, where)
        if record["evaluation"] not in METRICS:
            skipped += 1
            continue
        if (record["evaluation"] == "exam") != (task in CLOSED):
            kind = "closed" if task in CLOSED else "open"
            raise ValueError(f"{where}: field 'evaluation' is {record['evaluation']!r}, which no {kind}-ended task has")
        if metric not in (None, record["evaluation"]):
            raise ValueError(f"{where}: field 'evaluation' is {record['evaluation']!r}, expected {metric!r} as before")
        metric = record["evaluation"]
        if task in CLOSED:
            check_answer(task, record["gt"], f"{where}: field 'gt'")
        empty += not record[field].strip()
        ratings.append(rate(metric, task, record[field], record["gt"], position=position))
        mended.append(rate_fixed(metric, task, record[field], record["gt"], position=position))
    if metric is None:
        raise ValueError(f"{path}: has no record with an evaluation of {', '.join(METRICS)}")
    return {
        "metric": metric,
        "score": official_score(ratings),
        "samples": len(ratings),
        "skipped": skipped,
        "empty": empty,
        "fixed": {f"{metric}_fixed": official_score(mended)},
    }


def prediction_field(record: Mapping[str, Any]) -> str | None:
    """The field with the model's answer: officially the first whose name has `_pred` in it."""
    return next((name for name in record if "_pred" in name), None)
