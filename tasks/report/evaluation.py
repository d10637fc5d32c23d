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
    **dict.fromkeys(("suite", "task", "policy", "prediction"), pa.string()),
    "references": None,
    "score": pa.float64(),
}
SAMPLES_OPTIONAL = {"id": pa.string(), "metric": pa.string(), "length": pa.int64(), "depth": pa.float64()}
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
        answers: (suite, task) -> sample id -> {"references": [...], "answers": [{model, policy, prediction, score}]}.
        costs: rows of cost.parquet with their model; volatile, so for the page alone.
    """

    scores: list[Numbers] = field(default_factory=list)
    grids: list[Numbers] = field(default_factory=list)
    answers: dict[tuple[str, str], dict[str, Numbers]] = field(default_factory=dict)
    costs: list[Numbers] = field(default_factory=list)


def read_evaluations(folders: Mapping[str, Path]) -> Evaluations:
    """Reads every evaluation section.

    Args:
        folders: label such as "evaluation/tagcos/streaming" -> folder; the label's second part names the model, the
            tables themselves name the policy.

    Raises:
        ValueError: an unreadable file, or two sections that hold the same score.
    """
    found = Evaluations()
    owner: dict[tuple[str, ...], str] = {}
    for label, folder in folders.items():
        model = [*label.split("/"), "model"][1]
        scores = read_table(folder / "scores.parquet", SCORES).to_pylist()
        samples = read_table(folder / "samples.parquet", SAMPLES, optional=SAMPLES_OPTIONAL).to_pylist()
        for score in scores:
            key = (model, *(score[name] for name in ("policy", "suite", "task", "metric")))
            if owner.setdefault(key, label) != label:
                raise ValueError(f"report: sections {owner[key]} and {label} both hold the score {'/'.join(key)}")
        _add_samples(found, model, scores, samples)
        if (folder / "cost.parquet").exists():
            rows = read_table(folder / "cost.parquet", COST).to_pylist()
            found.costs += [{"model": model, **row} for row in rows]
    return found


def _add_samples(found: Evaluations, model: str, scores: list[Numbers], samples: list[Numbers]) -> None:
    groups: dict[tuple[str, str, str], list[Numbers]] = defaultdict(list)
    for sample in samples:
        groups[sample["policy"], sample["suite"], sample["task"]].append(sample)
    for score in scores:
        group = groups.get((score["policy"], score["suite"], score["task"]), [])
        own = [sample for sample in group if sample.get("metric") in (None, score["metric"])]
        found.scores.append({"model": model, **_score(score, own)})
    for (policy, suite, task), group in groups.items():
        placed = [sample for sample in group if sample.get("length") is not None and sample.get("depth") is not None]
        if placed:
            found.grids.append({"model": model, "policy": policy, "suite": suite, "task": task, **_grid(placed)})
        shown = found.answers.setdefault((suite, task), {})
        for name, sample in zip(_names(group), group, strict=True):
            if name not in shown and len(shown) >= SHOWN_SAMPLES:
                continue
            references = sample["references"]
            entry = shown.setdefault(
                name, {"references": references if isinstance(references, list) else [references], "answers": []}
            )
            answer = {"model": model, "policy": policy, "prediction": sample["prediction"], "score": sample["score"]}
            entry["answers"].append(answer)


def _score(score: Numbers, samples: list[Numbers]) -> Numbers:
    """A row of scores.parquet with its interval and the samples' scores on the row's own scale.

    Samples and score must tell the same: where the score is not the mean of its samples (plainly, or in per cent as
    LongBench reports it), as for a metric over the whole corpus, there is no interval.
    """
    names = _names(samples)
    rated = [
        (name, sample["score"]) for name, sample in zip(names, samples, strict=True) if sample["score"] is not None
    ]
    values = np.array([value for _, value in rated], dtype=np.float64)
    row: Numbers = {**score, "score": _finite(score["score"]), "low": None, "high": None, "sample_scores": {}}
    factor = _factor(row["score"], values)
    if factor is None:
        return row
    interval = mean_interval(values * factor)
    if interval:
        row["low"], row["high"] = interval
    row["sample_scores"] = {name: float(value * factor) for name, value in rated}
    return row


def _factor(score: float | None, values: np.ndarray) -> float | None:
    if score is None or not len(values) or not np.isfinite(values).all():
        return None
    mean = float(values.mean())
    for factor in (1.0, 100.0):
        if math.isclose(score, factor * mean, abs_tol=0.0051 if factor > 1 else 5e-4):  # scores may be rounded
            return factor
    return None


def _names(samples: list[Numbers]) -> list[str]:
    """Names by which samples of two runs are matched: their id, or else their position and a hash of the references."""
    return [
        sample["id"]
        if sample.get("id") is not None
        else f"{position}-{hashlib.sha256(repr(sample['references']).encode()).hexdigest()[:8]}"
        for position, sample in enumerate(samples)
    ]


def _grid(samples: list[Numbers]) -> Numbers:
    """Mean score per depth (rows) and length (columns); None where nothing was asked."""
    cells: dict[tuple[float, int], list[float]] = defaultdict(list)
    for sample in samples:
        if sample["score"] is not None:
            cells[sample["depth"], sample["length"]].append(sample["score"])
    depths, lengths = (sorted({sample[name] for sample in samples}) for name in ("depth", "length"))
    means = [
        [float(np.mean(cells[depth, length])) if (depth, length) in cells else None for length in lengths]
        for depth in depths
    ]
    return {"depths": depths, "lengths": lengths, "scores": means}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
