"""Scores without the flagged samples, and evaluations that are refused since they are of other records."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longloom.tasks.sources.rescored import rescored

ANSWERS = ["red", "green", "blue"]
FLAGGED = {"colours": {0: False, 1: True, 2: False}}


def suite(answers: list[str]) -> Any:
    """Rates an answer by whether it is the reference."""
    return SimpleNamespace(
        name="s",
        records=lambda task: [{"references": [answer]} for answer in answers],
        rate=lambda task, prediction, record: {"score": float([prediction] == record["references"])},
        score=lambda task, ratings: 100 * sum(parts["score"] for parts in ratings) / len(ratings),
    )


def evaluated(folder: Path, predictions: list[str]) -> Path:
    names = {"suite": "s", "task": "colours", "metric": "m", "policy": "full", "retrieval": None}
    rows = [
        {**names, "sample": number, "prediction": text, "references": [answer], "failed": False}
        for number, (text, answer) in enumerate(zip(predictions, ANSWERS, strict=True))
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    scored = {**names, "score": 0.0, "samples": len(rows)}
    pq.write_table(pa.Table.from_pylist([scored]), folder / "scores.parquet")
    return folder


def test_the_clean_score_is_of_the_samples_that_are_not_flagged(tmp_path: Path) -> None:
    [row] = rescored(suite(ANSWERS), evaluated(tmp_path / "e", ["red", "green", "pink"]), FLAGGED)
    assert (row["samples"], row["contaminated"], row["clean_score"]) == (3, 1, 50)


@pytest.mark.parametrize("changed", [0, 1])
def test_an_evaluation_of_other_records_is_refused(tmp_path: Path, changed: int) -> None:
    """Though their numbers are the same; also where only a flagged sample is another one."""
    answers = [*ANSWERS]
    answers[changed] = "pink"
    message = rf"sample {changed} of task 'colours' has references \['{ANSWERS[changed]}'\], the records looked up have"
    with pytest.raises(ValueError, match=message + r" \['pink'\]; expected an evaluation of the same data$"):
        rescored(suite(answers), evaluated(tmp_path / "e", ANSWERS), FLAGGED)
