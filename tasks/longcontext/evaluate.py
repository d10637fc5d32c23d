"""Evaluates a model under a KV policy on a suite, with lm-eval as the harness; a killed run is continued.

Notable choices: the harness's core loop (`evaluator.evaluate`) is called, not `simple_evaluate`, which spends four
seconds on a description of the machine and sets the global random state; every prompt is prepared before the first
generation, so that bad data costs nothing; a failed sample counts as 0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.api.task
import pyarrow as pa
from lm_eval import evaluator

from longloom.evals.harness import SuiteTask, harness_name, task_of
from longloom.evals.ledger import Ledger
from longloom.evals.lm import Outcome, PolicyLM
from longloom.evals.registry import open_suite
from longloom.evals.suite import Source
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.kvcache.registry import get_policy
from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent

#: What a score depends on beside the model.
LIBRARIES = ("jieba", "lm_eval", "rouge", "rouge_score", "tokenizers", "torch", "transformers")

LEDGER = "generations.jsonl"

_NAMES = (("suite", pa.string()), ("task", pa.string()))
SAMPLES = pa.schema(
    [
        *_NAMES,
        ("sample", pa.int64()),
        ("policy", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("truncated", pa.bool_()),
        ("prediction", pa.string()),
        ("references", pa.list_(pa.string())),
        ("metric", pa.string()),
        ("score", pa.float64()),
        ("failed", pa.bool_()),
        ("error", pa.string()),
        ("length", pa.int64()),
        ("depth", pa.float64()),
    ]
)
SCORES = pa.schema(
    [
        *_NAMES,
        ("metric", pa.string()),
        ("policy", pa.string()),
        ("score", pa.float64()),
        ("samples", pa.int64()),
        ("failed", pa.int64()),
        ("truncated", pa.int64()),
    ]
)
COST = pa.schema(
    [
        *_NAMES,
        ("policy", pa.string()),
        ("seconds", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("new_tokens", pa.int64()),
        ("peak_kv_bytes", pa.int64()),
    ]
)

Row = dict[str, Any]


def build(
    model: Path | str,
    data: Path | None,
    out: Path,
    *,
    suite: str,
    tasks: Sequence[str] | None,
    suite_options: Mapping[str, Any],
    policy: str,
    policy_options: Mapping[str, Any],
    limit: int | None,
    max_length: int | None,
    batch_size: int,
    seed: int,
    device: str | None,
    dtype: str | None,
    progress: Progress = silent,
) -> Stats:
    """Evaluates and writes `samples.parquet`, `scores.parquet` and `cost.parquet`.

    Args:
        model: a model folder, or a name on the hub.
        data: the suite's records (a folder, or one task's file) or documents; None: the hub, for suites that are there.
        out: empty, or with what a killed run left: finished generations are not repeated.
        suite: one of `registry.suite_names()`.
        tasks: its tasks to run; None or none: all that the data has.
        suite_options: the suite's own options (needle: lengths, depths, ...).
        policy: a KV policy's name.
        policy_options: its options.
        limit: at most so many samples a task, the first ones.
        max_length: limit on a prompt's tokens before the chat template; None: what the model's window leaves.
        batch_size: prompts a batch.
        seed: of what a suite draws at random.
        device, dtype: as `load_model` takes them.
        progress: called with requests done and in all.

    Returns:
        Counts of tasks, samples, failed and truncated ones; the scores and the libraries' versions; cost.parquet is
        volatile.

    Raises:
        ValueError: an unknown suite, task, policy or option, a bad record, a prompt that cannot be made to fit.
        RuntimeError: every sample failed.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected at least 1 sample a task")
    kv_policy = get_policy(policy, **policy_options)
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    source = Source(data=data, tokenizer=tokenizer, seed=seed, options=suite_options)
    opened = open_suite(suite, source)
    ledger = Ledger(
        out / LEDGER,
        {
            "model": _stamp(model),
            "policy": [policy, dict(policy_options)],
            "batch_size": batch_size,
            "device": str(loaded.device),
            "dtype": str(loaded.dtype),
        },
    )
    lm = PolicyLM(
        loaded,
        tokenizer,
        kv_policy,
        batch_size=batch_size,
        max_length=max_length,
        ledger=ledger,
        progress=progress,
    )
    names = list(dict.fromkeys(tasks or opened.tasks()))
    with _quiet_harness():
        harness_tasks = {harness_name(suite, name): task_of(opened, name) for name in names}
        results = evaluator.evaluate(lm, {"tasks": harness_tasks, "groups": {}}, limit=limit, bootstrap_iters=0)
    assert results is not None  # None comes back on other ranks of a distributed run alone

    samples: list[Row] = []
    scores: list[Row] = []
    costs: list[Row] = []
    for name in names:
        label = harness_name(suite, name)
        outcomes = _outcomes_of(lm, label)
        head = {"suite": suite, "task": name, "policy": policy}
        metric = opened.metric(name)
        rows = [
            {**head, "metric": metric, **_sample(harness_tasks[label], example, outcomes[example["doc_id"]])}
            for example in results["samples"][label]
        ]
        samples += rows
        scores.append({**head, "metric": metric, **_score(rows, results["results"][label]["score,none"])})
        costs.append({**head, **_cost(outcomes.values())})
    failed = sum(row["failed"] for row in samples)
    if failed == len(samples):
        raise RuntimeError(f"all {failed} samples failed, the first with: {samples[0]['error']}")
    for table, schema, rows in (("samples", SAMPLES, samples), ("scores", SCORES, scores), ("cost", COST, costs)):
        with FileWriter(out / f"{table}.parquet", schema) as writer:
            writer.write(rows)
    ledger.remove()
    return Stats(
        counts={
            "tasks": len(names),
            "samples": len(samples),
            "failed": failed,
            "truncated": sum(row["truncated"] for row in samples),
        },
        values={
            "scores": {row["task"]: row["score"] for row in scores},
            "libraries": {library: version(library) for library in LIBRARIES},
        },
        volatile=("cost.parquet",),
    )


def _outcomes_of(lm: PolicyLM, label: str) -> dict[int, list[Outcome]]:
    """Sample -> what its requests took, in order."""
    outcomes: dict[int, list[Outcome]] = {}
    for task, sample, index in sorted(lm.outcomes):
        if task == label:
            outcomes.setdefault(sample, []).append(lm.outcomes[task, sample, index])
    return outcomes


def _sample(task: SuiteTask, example: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Row:
    record = example["doc"]
    parts = example["score"]
    errors = [outcome.error for outcome in outcomes if outcome.error]
    return {
        "sample": example["doc_id"],
        "prompt_tokens": outcomes[0].prompt_tokens,
        "truncated": any(outcome.truncated for outcome in outcomes),
        "prediction": task.prediction(example["filtered_resps"]),
        "references": record["references"],
        "score": sum(parts.values()) / len(parts),
        "failed": bool(errors),
        "error": errors[0] if errors else None,
        "length": record.get("length"),
        "depth": record.get("depth"),
    }


def _score(rows: Sequence[Row], score: float) -> Row:
    return {
        "score": score,
        "samples": len(rows),
        "failed": sum(row["failed"] for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
    }


def _cost(outcomes: Iterable[Sequence[Outcome]]) -> Row:
    flat = [outcome for sample in outcomes for outcome in sample]
    return {
        "seconds": sum(outcome.seconds for outcome in flat),
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in flat),
        "new_tokens": sum(outcome.new_tokens for outcome in flat),
        "peak_kv_bytes": max(outcome.kv_bytes for outcome in flat),
    }


def _stamp(model: Path | str) -> list[Any]:
    """What tells one state of a model from another without reading it: its files' names, sizes and times."""
    if not Path(model).is_dir():
        return [str(model)]
    stats = ((path.name, path.stat()) for path in sorted(Path(model).iterdir()) if path.is_file())
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


@contextmanager
def _quiet_harness() -> Iterator[None]:
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
