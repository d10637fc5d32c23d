"""An evaluation's scores with and without the records that are flagged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from longloom.evals.suite import Suite
from longloom.storage.parquet import read_table

_NAMES = ("suite", "task", "metric", "policy", "retrieval")

#: One row a task, on the official scale. `contaminated` counts the samples that are flagged; `clean_score` is of the
#: others, null where there are none.
SCORES = pa.schema(
    [
        *((name, pa.string()) for name in _NAMES),
        ("score", pa.float64()),
        ("samples", pa.int64()),
        ("contaminated", pa.int64()),
        ("clean_score", pa.float64()),
    ]
)


def rescored(suite: Suite, evaluation: Path, flagged: Mapping[str, Mapping[int, bool]]) -> list[dict[str, Any]]:
    """The rows of SCORES.

    Args:
        suite: of the evaluation, on the same data.
        evaluation: its folder.
        flagged: task -> sample -> whether it is contaminated.

    Raises:
        FileNotFoundError: no evaluation there.
        ValueError: one of another suite, with samples that were not looked up, or of other records than the suite's.
    """
    scores = read_table(evaluation, "scores", [*_NAMES, "score", "samples"]).to_pylist()
    samples = read_table(evaluation, "samples", ["task", "sample", "prediction", "references", "failed"]).to_pylist()
    asked: dict[str, list[dict[str, Any]]] = {}
    found = []
    for row in scores:
        task = row["task"]
        if row["suite"] != suite.name:
            raise ValueError(f"{evaluation}: is of suite {row['suite']!r}, expected {suite.name!r}")
        own = {sample["sample"]: sample for sample in samples if sample["task"] == task}
        unknown = own.keys() - flagged.get(task, {}).keys()
        if unknown:
            raise ValueError(
                f"{evaluation}: sample {min(unknown)} of task {task!r} was not looked up; expected no smaller limit and"
                " the same tasks and data"
            )
        if task not in asked:
            asked[task] = suite.records(task)
        for number, sample in own.items():
            if sample["references"] != (held := asked[task][number]["references"]):
                raise ValueError(
                    f"{evaluation}: sample {number} of task {task!r} has references {sample['references']!r:.100}, the"
                    f" records looked up have {held!r:.100}; expected an evaluation of the same data"
                )
        clean = [number for number in own if not flagged[task][number]]
        score = _score(suite, task, asked[task], [own[number] for number in clean])
        found.append({**row, "contaminated": len(own) - len(clean), "clean_score": score})
    return found


def _score(suite: Suite, task: str, records: list[dict[str, Any]], samples: list[dict[str, Any]]) -> float | None:
    if not samples:
        return None
    ratings = []
    for sample in samples:
        parts = suite.rate(task, sample["prediction"], records[sample["sample"]])
        ratings.append(dict.fromkeys(parts, 0.0) if sample["failed"] else parts)
    return suite.score(task, ratings)
