"""Scores a file of predictions in a suite's official format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longloom.evals.jsonl import read_records
from longloom.evals.registry import predictions_of, scorable_names


def score_file(suite: str, task: str, path: Path) -> dict[str, Any]:
    """The official score of a file of predictions.

    Args:
        suite: one of `registry.scorable_names()`.
        task: the task's official name.
        path: the file, one JSON object a line.

    Returns:
        suite, task, metric, score (on the official scale), samples, and the suite's own counts. JSON only.

    Raises:
        ValueError: an unknown suite or task (with the known ones), an unreadable or empty file, the file of another
            suite, a missing or wrong field (with file, line and field).
    """
    module = predictions_of(suite)
    records = list(read_records(path))
    if not records:
        raise ValueError(f"{path}: has no predictions, expected at least one line")
    number, first = records[0]
    if not module.recognises(first):
        for other in scorable_names():
            if other != suite and predictions_of(other).recognises(first):
                raise ValueError(
                    f"{path}:{number}: looks like a prediction file of the suite {other!r} (fields "
                    f"{', '.join(first)}), expected one of {suite!r}"
                )
    return {"suite": suite, "task": task, **module.score(task, records, str(path))}
