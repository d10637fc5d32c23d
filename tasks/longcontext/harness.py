"""Evaluates a backend on any tasks of lm-eval; the harness keeps its own protocol, so prompts are cut on the left."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from lm_eval import evaluator

from longloom.evals.harness_suite import harness_tasks, no_hub_metrics, samples_of, scores_of
from longloom.evals.suite_lm import Outcome
from longloom.storage.stats import Stats
from longloom.tasks.longcontext.backends import Backend
from longloom.tasks.longcontext.evaluate import cost, counts, libraries, outcomes_of, quiet_harness, volatile
from longloom.tasks.longcontext.tables import Row, write
from longloom.tasks.progress import Progress, silent
from longloom.tasks.suite_data import HARNESS

#: With which the harness seeds NumPy and its draw of few-shot examples, unless it is told another.
_SEED = 1234


def build(
    backend: Backend,
    data: Path | None,
    out: Path,
    *,
    tasks: Sequence[str],
    limit: int | None,
    max_length: int | None,
    batch_size: int,
    seed: int,
    progress: Progress = silent,
) -> Stats:
    """Evaluates and writes `samples.parquet`, `scores.parquet` and `cost.parquet`; a task may have several metrics.

    Args:
        backend: what answers.
        data: a folder with task files of one's own; None: the harness's tasks alone.
        out: empty, or with what a killed run left.
        tasks: names of tasks, groups or tags.
        limit: at most so many samples a task, the first ones.
        max_length: as of `tasks.longcontext.evaluate.build`.
        batch_size: prompts a batch.
        seed: added to the harness's own of the draw of few-shot examples.
        progress: called with requests done and in all, of each kind of request.

    Returns:
        Counts of tasks, samples, failed and truncated ones; the scores and the libraries' versions; cost.parquet is
        volatile.

    Raises:
        ValueError: an unknown task, or one that cannot be loaded or that the backend cannot answer, or that asks for a
            metric of the hub; nothing but failed samples.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected at least 1 sample a task")
    opened = backend.open()
    lm = opened.lm(out, batch_size=batch_size, max_length=max_length, suite_length=None, progress=progress)
    with quiet_harness(), _seeded(), no_hub_metrics():
        loaded = harness_tasks(tasks, include_path=data)
        for task in loaded.values():
            task.set_fewshot_seed(_SEED + seed)
        results = evaluator.evaluate(lm, {"tasks": loaded, "groups": {}}, limit=limit, bootstrap_iters=0)
    assert results is not None  # None comes back on other ranks of a distributed run alone

    samples: list[Row] = []
    scores: list[Row] = []
    costs: list[Row] = []
    numbered: set[tuple[str, int]] = set()
    failed: set[tuple[str, int]] = set()
    truncated: set[tuple[str, int]] = set()
    for name in loaded:
        outcomes = outcomes_of(lm, name)
        head = {"suite": HARNESS, "task": name, "policy": backend.name, "retrieval": None}
        rows: list[Row] = []
        for sample in samples_of(results, name):
            took = outcomes.get(sample.sample, [])
            rows.append(
                {
                    **head,
                    "metric": _metric(sample.metric, sample.filter),
                    "sample": sample.sample,
                    "prediction": sample.prediction,
                    "references": sample.references,
                    "score": sample.value,
                    **_outcome(took),
                }
            )
        samples += rows
        directions = results["higher_is_better"].get(name, {})
        for score in scores_of(results, name):
            metric = _metric(score.metric, score.filter)
            own = [row for row in rows if row["metric"] == metric]
            direction = {"higher_is_better": directions.get(score.metric)}  # None: the harness does not know
            scores.append({**head, "metric": metric, "score": score.value, **direction, **counts(own, lm.window)})
        if outcomes:
            costs.append({**head, **cost(outcomes.values())})
        numbered |= {(name, row["sample"]) for row in rows}
        failed |= {(name, row["sample"]) for row in rows if row["failed"]}
        truncated |= {(name, row["sample"]) for row in rows if row["truncated"]}
    if failed and failed == numbered:
        error = next(row["error"] for row in samples if row["failed"])
        raise ValueError(f"all {len(failed)} samples failed, the first with: {error}")
    environment = {"libraries": libraries(), "backend": opened.environment}
    write(out, samples, scores, costs)
    lm.complete(failed=len(failed))
    return Stats(
        counts={
            "tasks": len(loaded),
            "samples": len(numbered),
            "failed": len(failed),
            "truncated": len(truncated),
        },
        values={
            "scores": {f"{row['task']},{row['metric']}": _finite(row["score"]) for row in scores},
            **environment,
        },
        volatile=volatile(len(failed)),
    )


@contextmanager
def _seeded() -> Iterator[None]:
    """The harness's own seeds, for tasks that shuffle their choices with the global generators; then the old state."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(_SEED)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _finite(value: float) -> float | None:
    """A number that JSON has: some metrics are not defined for some answers."""
    return value if math.isfinite(value) else None


def _metric(metric: str, filter_name: str) -> str:
    """One name for both, as the harness's own tables have it."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _outcome(took: Sequence[Outcome]) -> Row:
    """What is known of a sample's generations; of log-likelihoods nothing is."""
    errors = [outcome.error for outcome in took if outcome.error]
    return {
        "prompt_tokens": took[0].prompt_tokens if took else None,
        "truncated": any(outcome.truncated for outcome in took),
        "failed": bool(errors),
        "error": errors[0] if errors else None,
    }
