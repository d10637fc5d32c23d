"""Evaluates a backend on a suite, with lm-eval as the harness; a killed run is continued.

Notable choices: the harness's core loop (`evaluator.evaluate`) is called, not `simple_evaluate`, which spends four
seconds on a description of the machine and sets the global random state; every prompt is prepared before the first
generation, so that bad data costs nothing; a failed sample counts as 0.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.api.task
from lm_eval import evaluator

from longloom.evals.harness import SuiteTask, harness_name, task_of
from longloom.evals.registry import open_suite
from longloom.evals.suite import Source, Suite
from longloom.evals.suite_lm import Outcome, SuiteLM
from longloom.storage.stats import Stats
from longloom.tasks.longcontext.backends import LEDGER, Backend
from longloom.tasks.longcontext.excluded import clean_samples
from longloom.tasks.longcontext.retrieved import Retrieval, RetrievedSuite
from longloom.tasks.longcontext.tables import Row, write
from longloom.tasks.progress import Progress, silent

#: What a score depends on beside the model.
LIBRARIES = (
    *("jieba", "lm_eval", "numpy", "rouge", "rouge_score", "tokenizers", "torch", "transformers", "wonderwords"),
)

#: Of a task's costs.
_SUMMED = ("seconds", "compress_seconds", "decode_seconds", "decode_steps", "prompt_tokens", "new_tokens")


def build(
    backend: Backend,
    data: Path | None,
    out: Path,
    *,
    suite: str,
    tasks: Sequence[str] | None,
    suite_options: Mapping[str, Any],
    limit: int | None,
    max_length: int | None,
    batch_size: int,
    seed: int,
    retrieval: Retrieval | None = None,
    contamination: Path | None = None,
    progress: Progress = silent,
) -> Stats:
    """Evaluates and writes `samples.parquet`, `scores.parquet` and `cost.parquet`.

    Args:
        backend: what answers.
        data: the suite's records (a folder, or one task's file) or documents; None: the hub, for suites that are there.
        out: empty, or with what a killed run left: finished generations are not repeated.
        suite: one of `registry.suite_names()`.
        tasks: its tasks to run; None or none: all that the data has.
        suite_options: the suite's own options (needle: lengths, depths, ...).
        limit: at most so many samples a task, the first ones.
        max_length: limit on a prompt's tokens before the chat template, which may exceed the model's window: what a KV
            policy makes of that is what is measured. None: the suite's own, if it has one, and what the window leaves.
        batch_size: prompts a batch.
        seed: of what a suite draws at random.
        retrieval: passages that stand in for the contexts; None: the model gets the whole context.
        contamination: folder of the contamination stage; its flagged records are left out. None: all are asked.
        progress: called with requests done and in all.

    Returns:
        Counts of tasks, samples, failed and truncated ones, and with `contamination` of those left out; the scores and
        the libraries' versions; cost.parquet is volatile.

    Raises:
        ValueError: an unknown suite, task, policy or option, a bad record, a prompt that cannot be made to fit, or
            nothing but failed samples.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected at least 1 sample a task")
    opened = backend.open()
    source = Source(data=data, tokenizer=opened.tokenizer, seed=seed, options=suite_options)
    asked = whole = open_suite(suite, source)
    if retrieval is not None:
        asked = RetrievedSuite(asked, retrieval, opened.tokenizer)
    own = None if opened.tokenizer is None else asked.max_length  # without one nothing can be measured
    lm = opened.lm(out, batch_size=batch_size, max_length=max_length, suite_length=own, progress=progress)
    names = list(dict.fromkeys(tasks or asked.tasks()))
    clean = None if contamination is None else clean_samples(contamination, whole, names, limit)
    kept = None if clean is None else {harness_name(suite, name): numbers for name, (numbers, _) in clean.items()}
    with quiet_harness():
        harness_tasks = {harness_name(suite, name): task_of(asked, name) for name in names}
        results = evaluator.evaluate(
            lm,
            {"tasks": harness_tasks, "groups": {}},
            limit=limit if kept is None else None,  # of the two it takes one
            samples=kept,
            bootstrap_iters=0,
        )
    assert results is not None  # None comes back on other ranks of a distributed run alone

    samples: list[Row] = []
    scores: list[Row] = []
    costs: list[Row] = []
    for name in names:
        label = harness_name(suite, name)
        outcomes = outcomes_of(lm, label)
        if kept is not None:  # the harness counts what it asks
            outcomes = {kept[label][place]: took for place, took in outcomes.items()}
        head = {
            "suite": suite,
            "task": name,
            "metric": asked.metric(name),
            "policy": backend.name,
            "retrieval": None if retrieval is None else retrieval.label,
        }
        rated = [
            _rated(asked, name, harness_tasks[label], example, outcomes[example["doc_id"]])
            for example in results["samples"][label]
        ]
        rows = [{**head, **row} for row, _ in rated]
        samples += rows
        mended = [parts for _, parts in rated if parts is not None]
        fixed = asked.score(name, mended) if mended else None
        score = results["results"][label]["score,none"]
        row = {**head, "score": score, "fixed": fixed, "full_score": asked.full_score, **counts(rows, lm.window)}
        scores.append(row if clean is None else {**row, "contaminated": clean[name][1]})
        costs.append({**head, **cost(outcomes.values())})
    failed = sum(row["failed"] for row in samples)
    if failed == len(samples):
        raise ValueError(f"all {failed} samples failed, the first with: {samples[0]['error']}")
    write(out, samples, scores, costs)
    lm.complete(failed=failed)
    return Stats(
        counts={
            "tasks": len(names),
            "samples": len(samples),
            "failed": failed,
            "truncated": sum(row["truncated"] for row in samples),
            **({} if clean is None else {"contaminated": sum(flagged for _, flagged in clean.values())}),
        },
        values={
            "scores": {row["task"]: row["score"] for row in scores},
            "libraries": libraries(),
            "backend": opened.environment,
        },
        volatile=volatile(failed),
    )


def volatile(failed: int) -> tuple[str, ...]:
    """Files that are no part of the digest; with failed samples the ledger stays, for the next run tries them again."""
    return ("cost.parquet", LEDGER) if failed else ("cost.parquet",)


def libraries() -> dict[str, str]:
    """The versions that scores depend on, for the manifest."""
    return {**{library: version(library) for library in LIBRARIES}, "python": platform.python_version()}


def outcomes_of(lm: SuiteLM, label: str) -> dict[int, list[Outcome]]:
    """Sample -> what its requests took, in order."""
    outcomes: dict[int, list[Outcome]] = {}
    for task, sample, index in sorted(lm.outcomes):
        if task == label:
            outcomes.setdefault(sample, []).append(lm.outcomes[task, sample, index])
    return outcomes


def counts(rows: Sequence[Row], window: int | None) -> Row:
    """What a task's row says of its samples, under a model of this window."""
    return {
        "samples": len(rows),
        "failed": sum(row["failed"] for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
        "beyond": None if window is None else sum((row["prompt_tokens"] or 0) > window for row in rows),
        "window": window,
    }


def cost(outcomes: Iterable[Sequence[Outcome]]) -> Row:
    """What a task took: sums, the largest cache, and the mean one of what was answered."""
    flat = [outcome for sample in outcomes for outcome in sample]
    held = [outcome.kv_bytes for outcome in flat if not outcome.error]
    return {
        **{name: sum(getattr(outcome, name) for outcome in flat) for name in _SUMMED},
        "kv_bytes": max(outcome.kv_bytes for outcome in flat),
        "kv_bytes_mean": sum(held) / len(held) if held else 0.0,
        "peak_kv_bytes": max(outcome.peak_kv_bytes for outcome in flat),
    }


def _rated(
    suite: Suite, name: str, task: SuiteTask, example: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> tuple[Row, dict[str, float] | None]:
    """A sample's row, and the parts of its mended score, if the task has one."""
    record = example["doc"]
    prediction = task.prediction(example["filtered_resps"])
    errors = [outcome.error for outcome in outcomes if outcome.error]
    mended = suite.rate_fixed(name, prediction, record)
    if mended is not None and errors:
        mended = dict.fromkeys(mended, 0.0)
    row = {
        "sample": example["doc_id"],
        "prompt_tokens": outcomes[0].prompt_tokens,
        "truncated": any(outcome.truncated for outcome in outcomes),
        "prediction": prediction,
        "references": record["references"],
        "score": _mean(example["score"]),
        "fixed": None if mended is None else _mean(mended),
        "failed": bool(errors),
        "error": errors[0] if errors else None,
        **{column: record.get(column) for column in ("length", "depth", "group", "gold_recall")},
    }
    return row, mended


def _mean(parts: Mapping[str, float]) -> float:
    return sum(parts.values()) / len(parts)


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keeps the harness's progress bars and remarks off the terminal; its warnings stay."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, lm_eval.api.task.tqdm
    logger.setLevel(logging.WARNING)
    lm_eval.api.task.tqdm = lambda items, **options: items
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bars
