"""The tables of an evaluation: samples, scores and cost, one Parquet file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from longloom.storage.parquet import FileWriter

Row = dict[str, Any]

#: `retrieval` is null where the model had the whole context, else what it got in its place.
_NAMES = (
    *(("suite", pa.string()), ("task", pa.string()), ("metric", pa.string())),
    *(("policy", pa.string()), ("retrieval", pa.string())),
)

#: One row a sample. `score` and `fixed` (by the mended metric, null where the task has none) are within 0 and 1.
SAMPLES = pa.schema(
    [
        *_NAMES,
        ("sample", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("truncated", pa.bool_()),
        ("prediction", pa.string()),
        ("references", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("fixed", pa.float64()),
        ("failed", pa.bool_()),
        ("error", pa.string()),
        ("length", pa.int64()),
        ("depth", pa.float64()),
        ("group", pa.string()),
        ("gold_recall", pa.float64()),
    ]
)

#: One row a task and metric, on the official scale, whose highest score is `full_score`. `beyond` counts the samples
#: whose prompt is longer than the model's `window`, both null where that is not known.
SCORES = pa.schema(
    [
        *_NAMES,
        ("score", pa.float64()),
        ("fixed", pa.float64()),
        ("full_score", pa.float64()),
        ("samples", pa.int64()),
        ("failed", pa.int64()),
        ("truncated", pa.int64()),
        ("beyond", pa.int64()),
        ("window", pa.int64()),
    ]
)

#: Columns of scores that only some evaluations have (in every table they would be other bytes): how many contaminated
#: records were left out, and what lm-eval says of a metric (null: nothing).
_SOMETIMES = (pa.field("contaminated", pa.int64()), pa.field("higher_is_better", pa.bool_()))

#: One row a task: sums over its samples. `kv_bytes` is the largest cache of a sample while it decodes, `kv_bytes_mean`
#: the mean of those that were answered, `peak_kv_bytes` the largest at any time. A decode step takes
#: `decode_seconds / decode_steps` a row.
COST = pa.schema(
    [
        *(field for field in _NAMES if field[0] != "metric"),
        ("seconds", pa.float64()),
        ("compress_seconds", pa.float64()),
        ("decode_seconds", pa.float64()),
        ("decode_steps", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("new_tokens", pa.int64()),
        ("kv_bytes", pa.int64()),
        ("kv_bytes_mean", pa.float64()),
        ("peak_kv_bytes", pa.int64()),
    ]
)


def write(out: Path, samples: Sequence[Row], scores: Sequence[Row], costs: Sequence[Row]) -> None:
    """Writes `samples.parquet`, `scores.parquet` and `cost.parquet`; keys that a row lacks become null."""
    scored = pa.schema([*SCORES, *(field for field in _SOMETIMES if any(field.name in row for row in scores))])
    for name, schema, rows in (("samples", SAMPLES, samples), ("scores", scored, scores), ("cost", COST, costs)):
        with FileWriter(out / f"{name}.parquet", schema) as writer:
            writer.write([{column: row.get(column) for column in schema.names} for row in rows])
