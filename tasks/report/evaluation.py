"""The numbers of the evaluations: scores with intervals, needle grids, and (for the page alone) answers and costs."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longloom.tasks.report.intervals import mean_interval, strata_interval
from longloom.tasks.report.read import Columns, read_table

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
# Columns that artifacts of earlier versions lack; they are then null.
LATER_SCORES = {
    **dict.fromkeys(("fixed", "full_score"), pa.float64()),
    **dict.fromkeys(("beyond", "window", "contaminated"), pa.int64()),
    "higher_is_better": pa.bool_(),
    "retrieval": pa.string(),
}
LATER_SAMPLES = {
    **dict.fromkeys(("length", "prompt_tokens"), pa.int64()),
    **dict.fromkeys(("depth", "gold_recall"), pa.float64()),
    **dict.fromkeys(("group", "retrieval"), pa.string()),
}
COST = {
    **dict.fromkeys(("suite", "task", "policy"), pa.string()),
    "seconds": pa.float64(),
    **dict.fromkeys(("prompt_tokens", "new_tokens", "peak_kv_bytes"), pa.int64()),
}
LATER_COST = {
    **dict.fromkeys(("kv_bytes", "decode_steps"), pa.int64()),
    **dict.fromkeys(("kv_bytes_mean", "decode_seconds"), pa.float64()),
}

#: Samples of a task whose answers are shown.
SHOWN_SAMPLES = 3

Numbers = dict[str, Any]
#: Name and metric.
Task = tuple[str, str]

#: What tells one score from all others.
IDENTITY = ("model", "policy", "retrieval", "suite", "task", "metric")


@dataclass(frozen=True)
class Measured:
    """A score with the samples that it rests on.

    Attributes:
        row: the score as report.json holds it.
        scale: what takes a sample's score to the task's scale; None: not known.
        samples: those that were rated: name, score (0 to 1), length, depth, prompt_tokens, group, gold_recall.
    """

    row: Numbers
    scale: float | None
    samples: list[Numbers]


@dataclass
class Evaluations:
    """All evaluation sections together.

    Attributes:
        scores: one dict per model, policy, retrieval (null: direct long context), suite, task and metric; `fixed` is
            the score by the mended metric, null where there is none; `higher_is_better` is what lm-eval says of its
            metrics, null for ours; `section` is the label of its artifact. Goes into report.json.
        grids: needle results by length and depth, with the model's window (null: not known); goes into report.json.
        answers: (suite, task) -> sample -> {"references": [...], "answers": [{model, policy, prediction, scores}]},
            scores by metric; of direct long context alone.
        costs: rows of cost.parquet with their model and retrieval; volatile, so for the page alone.
        measured: the scores with their samples, for what is made of samples.
    """

    scores: list[Numbers] = field(default_factory=list)
    grids: list[Numbers] = field(default_factory=list)
    answers: dict[tuple[str, str], dict[str, Numbers]] = field(default_factory=dict)
    costs: list[Numbers] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)


def read_evaluations(folders: Mapping[str, Path]) -> Evaluations:
    """Reads every evaluation section.

    Args:
        folders: label such as "evaluation/tagcos/longbench/streaming:sink=4,window=28/bm25:words=100,k=5" -> folder;
            the second part names the model, the fourth the policy (without it the tables do, but without its settings),
            the fifth the retrieval (without it the tables do).

    Raises:
        ValueError: an unreadable file, or two sections that hold the same score.
    """
    found = Evaluations()
    owner: dict[tuple[str, ...], str] = {}
    for label, folder in folders.items():
        parts = label.split("/", 4)
        model = [*parts, "model"][1]
        scores = _rows(folder / "scores.parquet", SCORES, LATER_SCORES)
        samples = _rows(folder / "samples.parquet", SAMPLES, LATER_SAMPLES)
        costs = []
        if (folder / "cost.parquet").exists():
            costs = _rows(folder / "cost.parquet", COST, LATER_COST)
        retrieval = scores[0]["retrieval"] if scores else None  # the same in the whole artifact
        for row in (*scores, *samples, *costs):
            row["policy"] = parts[3] if len(parts) > 3 else row["policy"]
            row["retrieval"] = parts[4] if len(parts) > 4 else retrieval
        for score in scores:
            score |= {"model": model, "section": label}
            key = tuple(score[name] for name in IDENTITY if score[name] is not None)
            if owner.setdefault(key, label) != label:
                raise ValueError(f"report: sections {owner[key]} and {label} both hold the score {'/'.join(key)}")
        _add_samples(found, scores, samples)
        found.costs += [{"model": model, **row} for row in costs]
    return found


def _rows(path: Path, columns: Columns, later: Columns) -> list[Numbers]:
    blank: Numbers = dict.fromkeys(later)
    return [{**blank, **row} for row in read_table(path, columns, optional=later).to_pylist()]


def _add_samples(found: Evaluations, scores: list[Numbers], samples: list[Numbers]) -> None:
    groups: dict[tuple[str, ...], list[Numbers]] = defaultdict(list)
    for sample in samples:
        groups[tuple(sample[name] for name in ("suite", "task", "metric"))].append(sample)
    for score in scores:
        suite, task = score["suite"], score["task"]
        group = groups[suite, task, score["metric"]]
        rated = [sample for sample in group if sample["score"] is not None]
        values = np.array([sample["score"] for sample in rated], dtype=np.float64)
        factor = _factor(score["score"], score["full_score"], values)
        row: Numbers = {**score, "low": None, "high": None}
        row |= {name: _finite(score[name]) for name in ("score", "fixed")}
        row["sample_scores"] = {}
        if factor is not None:
            row["low"], row["high"] = mean_interval(values * factor) or (None, None)
            row["sample_scores"] = {_name(sample): sample["score"] * factor for sample in rated}
        found.scores.append(row)
        kept = ("score", "length", "depth", "prompt_tokens", "group", "gold_recall")
        light = [{"name": _name(sample), **{name: sample[name] for name in kept}} for sample in rated]
        found.measured.append(Measured(row, factor or score["full_score"], light))
        placed = [sample for sample in rated if is_placed(sample)]
        if placed:
            name = {part: row[part] for part in ("model", "policy", "retrieval", "suite", "task", "window")}
            found.grids.append({**name, **grid(placed, factor or 1.0)})
        if row["retrieval"] is None:
            _add_answers(found.answers.setdefault((suite, task), {}), row, group)


def task_means(line: Mapping[Task, Measured], tasks: Sequence[Task]) -> Numbers:
    """What one way of answering scores over several tasks.

    Args:
        line: the tasks that were run in this way.
        tasks: those that count, at least one.

    Returns:
        scores (of the tasks, in their order; null where one was not run), score (their mean; null if one is missing)
        with low and high, the bootstrap interval that resamples each task by itself; null where there is none.
    """
    scores = [line[task].row["score"] if task in line else None for task in tasks]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return {"scores": scores, "score": None, "low": None, "high": None}
    strata = [np.array(list(line[task].row["sample_scores"].values())) for task in tasks]
    low, high = strata_interval(strata) or (None, None)
    return {"scores": scores, "score": float(np.mean(known)), "low": low, "high": high}


def is_placed(sample: Numbers) -> bool:
    """Whether a sample belongs to a needle grid."""
    return sample["length"] is not None and sample["depth"] is not None


def _add_answers(shown: dict[str, Numbers], row: Numbers, samples: list[Numbers]) -> None:
    """Adds this model's answers to the first samples of a task, which all models share; one by many metrics once."""
    for sample in samples:
        name = _name(sample)
        if name in shown or len(shown) < SHOWN_SAMPLES:
            entry = shown.setdefault(
                name, {"sample": sample["sample"], "references": sample["references"], "answers": []}
            )
            said = {"model": row["model"], "policy": row["policy"], "prediction": sample["prediction"]}
            known = next((answer for answer in entry["answers"] if said.items() <= answer.items()), None)
            if known is None:
                entry["answers"].append(known := {**said, "scores": {}})
            known["scores"][row["metric"]] = sample["score"]


def _name(sample: Numbers) -> str:
    """A sample's name, equal in two runs if both asked the same.

    It is the sample's number and a hash of all that its row tells of the question: the references alone are the same at
    every length and depth of a generated prompt.
    """
    told = [sample[name] for name in ("references", "length", "depth", "group")]
    return f"{sample['sample']}-{hashlib.sha256(repr(told).encode()).hexdigest()[:8]}"


def _factor(score: float | None, full_score: float | None, values: np.ndarray) -> float | None:
    """What takes the samples' scores to the scale of their task's score: 1, or 100 where it is in per cent.

    None where the score is not the mean of its samples, as for a metric over a whole corpus: then no interval of the
    mean would be an interval of the score.
    """
    if score is None or not len(values) or not np.isfinite(values).all():
        return None
    mean = float(values.mean())
    for factor in (1.0, 100.0) if full_score is None else (full_score,):
        if math.isclose(score, factor * mean, abs_tol=5e-4 if factor == 1 else 0.051):  # LongBench v2 has one decimal
            return factor
    return None


def grid(samples: Sequence[Numbers], factor: float) -> Numbers:
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
