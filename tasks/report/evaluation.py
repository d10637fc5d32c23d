"""The numbers of the evaluations: scores with intervals, needle grids, and (for the page alone) answers and costs."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longloom.tasks.report.intervals import mean_interval
from longloom.tasks.report.read import read_table

SCORES = {
    **dict.fromkeys(("suite", "task", "metric", "policy"), pa.string()),
    "score": pa.float64(),
    **dict.fromkeys(("samples", "failed", "truncated"), pa.int64()),
}
SAMPLES = {
    **dict.fromkeys(("suite", "task", "metric", "policy", "prediction"), pa.string()),
    "sample": pa.int64(),
    "references": pa.list_(pa.string()),
    "score": pa.float64(),
}
PLACES = {"length": pa.int64(), "depth": pa.float64()}
COST = {
    **dict.fromkeys(("suite", "task", "policy"), pa.string()),
    "seconds": pa.float64(),
    **dict.fromkeys(("prompt_tokens", "new_tokens", "peak_kv_bytes"), pa.int64()),
}

#: Samples of a task whose answers are shown.
SHOWN_SAMPLES = 3

Numbers = dict[str, Any]


@dataclass
class Evaluations:
    """All evaluation sections together.

    Attributes:
        scores: one dict per model, policy, suite, task and metric; goes into report.json.
        grids: needle results by length and depth; goes into report.json.
        answers: (suite, task) -> sample -> {"references": [...], "answers": [{model, policy, prediction, score}]}.
        costs: rows of cost.parquet with their model; volatile, so for the page alone.
    """

    scores: list[Numbers] = field(default_factory=list)
    grids: list[Numbers] = field(default_factory=list)
    answers: dict[tuple[str, str], dict[str, Numbers]] = field(default_factory=dict)
    costs: list[Numbers] = field(default_factory=list)


def read_evaluations(folders: Mapping[str, Path]) -> Evaluations:
    """Reads every evaluation section.

    Args:
        folders: label such as "evaluation/tagcos/longbench/streaming:sink=4,window=28" -> folder; the second part names
            the model, the fourth the policy (without it the tables do, but without its settings).

    Raises:
        ValueError: an unreadable file, or two sections that hold the same score.
    """
    found = Evaluations()
    owner: dict[tuple[str, ...], str] = {}
    for label, folder in folders.items():
        parts = label.split("/", 3)
        model = [*parts, "model"][1]
        scores = read_table(folder / "scores.parquet", SCORES).to_pylist()
        samples = read_table(folder / "samples.parquet", SAMPLES, optional=PLACES).to_pylist()
        costs = []
        if (folder / "cost.parquet").exists():
            costs = read_table(folder / "cost.parquet", COST).to_pylist()
        for row in (*scores, *samples, *costs):
            row["policy"] = parts[3] if len(parts) > 3 else row["policy"]
        for score in scores:
            key = (model, *(score[name] for name in ("policy", "suite", "task", "metric")))
            if owner.setdefault(key, label) != label:
                raise ValueError(f"report: sections {owner[key]} and {label} both hold the score {'/'.join(key)}")
        _add_samples(found, model, scores, samples)
        found.costs += [{"model": model, **row} for row in costs]
    return found


def _add_samples(found: Evaluations, model: str, scores: list[Numbers], samples: list[Numbers]) -> None:
    groups: dict[tuple[str, ...], list[Numbers]] = defaultdict(list)
    for sample in samples:
        groups[tuple(sample[name] for name in ("policy", "suite", "task", "metric"))].append(sample)
    for score in scores:
        policy, suite, task = (score[name] for name in ("policy", "suite", "task"))
        group = groups[policy, suite, task, score["metric"]]
        rated = [sample for sample in group if sample["score"] is not None]
        values = np.array([sample["score"] for sample in rated], dtype=np.float64)
        factor = _factor(score["score"], values)
        row: Numbers = {"model": model, **score, "score": _finite(score["score"]), "low": None, "high": None}
        row["sample_scores"] = {}
        if factor is not None:
            row["low"], row["high"] = mean_interval(values * factor) or (None, None)
            row["sample_scores"] = {_name(sample): sample["score"] * factor for sample in rated}
        found.scores.append(row)
        placed = [sample for sample in rated if sample.get("length") is not None and sample.get("depth") is not None]
        if placed:
            name = {"model": model, "policy": policy, "suite": suite, "task": task}
            found.grids.append({**name, **_grid(placed, factor or 1.0)})
        _add_answers(found.answers.setdefault((suite, task), {}), model, policy, group)


def _add_answers(shown: dict[str, Numbers], model: str, policy: str, samples: list[Numbers]) -> None:
    """Adds this model's answers to the first samples of a task, which all models share."""
    for sample in samples:
        name = _name(sample)
        if name in shown or len(shown) < SHOWN_SAMPLES:
            entry = shown.setdefault(
                name, {"sample": sample["sample"], "references": sample["references"], "answers": []}
            )
            answer = {"prediction": sample["prediction"], "score": sample["score"]}
            entry["answers"].append({"model": model, "policy": policy, **answer})


def _name(sample: Numbers) -> str:
    """A sample's name, equal in two runs if both asked the same: its number and a hash of the references."""
    return f"{sample['sample']}-{hashlib.sha256(repr(sample['references']).encode()).hexdigest()[:8]}"


def _factor(score: float | None, values: np.ndarray) -> float | None:
    """What takes the samples' scores to the scale of their task's score: 1, or 100 where it is in per cent.

    None where the score is not the mean of its samples, as for a metric over a whole corpus: then no interval of the
    mean would be an interval of the score.
    """
    if score is None or not len(values) or not np.isfinite(values).all():
        return None
    mean = float(values.mean())
    for factor, rounding in ((1.0, 5e-4), (100.0, 0.0051)):
        if math.isclose(score, factor * mean, abs_tol=rounding):
            return factor
    return None


def _grid(samples: list[Numbers], factor: float) -> Numbers:
    """Mean score per depth (rows) and length (columns) on the task's scale; None where nothing was asked."""
    cells: dict[tuple[float, int], list[float]] = defaultdict(list)
    for sample in samples:
        cells[sample["depth"], sample["length"]].append(sample["score"] * factor)
    depths, lengths = (sorted({sample[name] for sample in samples}) for name in ("depth", "length"))
    means = [
        [float(np.mean(cells[depth, length])) if (depth, length) in cells else None for length in lengths]
        for depth in depths
    ]
    return {"depths": depths, "lengths": lengths, "scores": means}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
