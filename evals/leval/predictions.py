"""Official prediction files of L-Eval: one {"query", "gt", "<model>_pred", "evaluation"} a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from longloom.evals.jsonl import FILLED_TEXT, TEXT, check_fields
from longloom.evals.leval.metrics import exam, f1, rouge_l
from longloom.evals.leval.suite import official_score
from longloom.evals.leval.tasks import CLOSED, METRICS, OPEN
from longloom.evals.suite import Parts, unknown_task


def recognises(record: Mapping[str, Any]) -> bool:
    """Whether a record looks like a prediction of this suite."""
    return "gt" in record and _prediction_field(record) is not None


def score(task: str, records: Iterable[tuple[int, dict[str, Any]]], path: str) -> dict[str, Any]:
    """Scores the records of a prediction file.

    Args:
        task: the task's official name.
        records: line numbers and records.
        path: the file's name, for errors.

    Returns:
        metric, score (0-100), samples, skipped (records for a judge), empty (predictions without any text).

    Raises:
        ValueError: an unknown task; a missing or wrong field (file, line, field); records of several metrics, or none.
    """
    known = (*CLOSED, *OPEN)
    if task not in known:
        raise unknown_task("leval", task, known)
    field: str | None = None
    metric: str | None = None
    ratings: list[Parts] = []
    skipped = empty = 0
    for position, (number, record) in enumerate(records):
        where = f"{path}:{number}"
        field = field or _prediction_field(record)  # the first record's, officially
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
        empty += not record[field].strip()
        ratings.append(_rate(metric, task, record[field], record["gt"], position))
    if metric is None:
        raise ValueError(f"{path}: has no record with an evaluation of {', '.join(METRICS)}")
    return {
        "metric": metric,
        "score": official_score(ratings),
        "samples": len(ratings),
        "skipped": skipped,
        "empty": empty,
    }


def _prediction_field(record: Mapping[str, Any]) -> str | None:
    return next((name for name in record if "_pred" in name), None)


def _rate(metric: str, task: str, prediction: str, answer: str, position: int) -> Parts:
    if metric == "exam":
        return exam(task, prediction, answer, position=position)
    return {"score": f1(prediction, answer) if metric == "f1" else rouge_l(prediction, answer)}
