"""Which samples an evaluation asks where those flagged as contaminated are left out; their numbers stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longloom.evals.suite import Suite
from longloom.storage.parquet import read_table
from longloom.tasks.sources.records import suite_records


def clean_samples(
    contamination: Path, suite: Suite, tasks: Sequence[str], limit: int | None
) -> dict[str, tuple[list[int], int]]:
    """The samples to ask.

    Args:
        contamination: folder of the contamination stage, on the same records.
        suite: of the evaluation, with its own contexts.
        tasks: of the suite.
        limit: at most so many samples a task, the first ones, counted before any is left out; None: all.

    Returns:
        Task -> the numbers of the samples that are not flagged, and how many are.

    Raises:
        FileNotFoundError: no such table there.
        ValueError: a sample that was not looked up, or was when it held other texts; a task without a clean sample.
    """
    rows = read_table(contamination, "contamination", ["suite", "task", "sample", "digest", "contaminated"]).to_pylist()
    known = {(row["suite"], row["task"], row["sample"]): row for row in rows}
    found: dict[str, tuple[list[int], int]] = {}
    for task in tasks:
        kept: list[int] = []
        flagged = 0
        for record in suite_records(suite, [task], limit):
            place = f"{contamination}: sample {record.sample} of suite {suite.name!r}, task {task!r}"
            row = known.get((suite.name, task, record.sample))
            if row is None:
                raise ValueError(f"{place} was not looked up, expected all that are evaluated")
            if row["digest"] != record.digest:
                raise ValueError(f"{place} held other texts when it was looked up, expected the same data")
            if row["contaminated"]:
                flagged += 1
            else:
                kept.append(record.sample)
        if not kept:
            raise ValueError(f"{contamination}: all {flagged} samples of task {task!r} are contaminated, none is left")
        found[task] = kept, flagged
    return found
