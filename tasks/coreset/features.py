"""Gradient features of instruction examples, after TAGCOS (arXiv 2407.15235, sections 3.1 and 3.2).

    f_i = sum over checkpoints k of  w_k * normalise(project(adjust(gradient of example i at checkpoint k)))

The weights w are the checkpoints' mean learning rates, normalised to 1; f is not normalised again. Row i is example i;
an example without a gradient (nothing of the assistant's to predict) has a row of zeros.

Work is done in parts of a fixed number of rows, one file a part, so that a killed run goes on where it stopped. Parts,
chunks and sums have a fixed order and every gradient is computed by one thread: the bytes depend on no thread count.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from transformers import AutoConfig, AutoTokenizer

from longloom.storage.stats import Stats
from longloom.tasks.coreset.adam import BETA1, BETA2, EPSILON, adjust
from longloom.tasks.coreset.checkpoints import Checkpoint, count_parameters, read_checkpoints, read_moments
from longloom.tasks.coreset.gradients import example_gradient, has_target, load_adapted, trainable
from longloom.tasks.coreset.pool import fingerprint, read_pool
from longloom.tasks.coreset.projection import Projection
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.sft import encode

FORMAT = 1
#: Rows of a part file: what a kill can cost at most, per checkpoint.
PART_ROWS = 256
#: Rows that one thread projects at once. Where the projection has to be made again for every call, more pay off.
CHUNK_ROWS = 32
#: Bound on the gradients that one thread holds (512 MiB of float32).
CHUNK_FLOATS = 1 << 27

Example = tuple[torch.Tensor, torch.Tensor]


def build(
    model: Path,
    instructions: Path,
    warmup: Path,
    out: Path,
    *,
    dimension: int,
    seed: int,
    max_length: int,
    progress: Progress = silent,
) -> Stats:
    """Writes `features.npy`, float32 [examples, dimension], and `features.json`.

    Args:
        model: the base model with its tokenizer, a transformers folder.
        instructions: an instructions artifact.
        warmup: LoRA checkpoints with optimizer moments; see `checkpoints`.
        out: the artifact's folder; may hold the parts of a killed run.
        dimension: of the projection.
        seed: of the projection.
        max_length: tokens of an example; no more than the model has positions for.
        progress: gets gradients taken and in all (examples times checkpoints).

    Raises:
        ValueError: parameters out of range, an empty pool, a warm-up that does not fit the model, a gradient that is
            not finite.
    """
    if max_length < 2:
        raise ValueError(f"max_length: found {max_length}, expected 2 or more tokens")
    table = read_pool(instructions, ["id", "messages"])
    checkpoints = read_checkpoints(warmup)
    config = AutoConfig.from_pretrained(model)
    max_length = min(max_length, getattr(config, "max_position_embeddings", max_length))
    adapter = PeftConfig.from_pretrained(str(checkpoints[0].folder))
    plan: dict[str, Any] = {
        "format": FORMAT,
        "examples": table.num_rows,
        "pool": fingerprint(table.column("id").to_pylist()),
        "model": {
            "type": config.model_type,
            "lora_rank": adapter.r,
            "lora_alpha": adapter.lora_alpha,
            "parameters": count_parameters(checkpoints[0]),
        },
        "max_length": max_length,
        "loss": "mean over the assistant's tokens",
        "adam": {"beta1": BETA1, "beta2": BETA2, "epsilon": EPSILON, "bias_correction": False},
        "projection": {"kind": "rademacher-philox", "dimension": dimension, "seed": seed},
        "checkpoints": [
            {"name": one.name, "step": one.step, "mean_learning_rate": one.mean_learning_rate, "weight": one.weight}
            for one in checkpoints
        ],
    }
    parts = out / "parts"
    if _read_json(parts / "plan.json") != plan:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        _write_json(parts / "plan.json", plan)

    projection = Projection(plan["model"]["parameters"], dimension, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    examples = [
        _tensors(*encode(tokenizer, row, max_length=max_length)) for row in table.column("messages").to_pylist()
    ]
    total = len(examples) * len(checkpoints)
    for number, checkpoint in enumerate(checkpoints):
        _take_parts(model, checkpoint, examples, projection, parts, _shifted(progress, number * len(examples), total))
    zero = _fold(checkpoints, parts, out, len(examples), dimension)
    lengths = [len(input_ids) for input_ids, _ in examples]
    found = {
        "zero_gradient": zero,
        "without_target": sum(not has_target(labels) for _, labels in examples),
        "at_max_length": sum(length >= max_length for length in lengths),
        "tokens": sum(lengths),
    }
    _write_json(out / "features.json", plan | found)
    shutil.rmtree(parts)
    return Stats(
        counts={"examples": len(examples), "dimension": dimension, "zero_gradient": zero},
        values={key: plan[key] for key in ("model", "max_length", "projection", "checkpoints")} | found,
    )


@dataclass(frozen=True)
class _Featurizer:
    """What turns examples into rows at one checkpoint."""

    name: str
    model: Any
    parameters: dict[str, torch.nn.Parameter]
    moments: tuple[torch.Tensor, torch.Tensor]
    projection: Projection

    def rows(self, first: int, examples: list[Example]) -> np.ndarray:
        """Unit rows, float32 [examples, d]; zeros where there is no gradient. `first` is the number of examples[0]."""
        adjusted = torch.zeros(len(examples), self.projection.parameters)
        for row, (input_ids, labels) in enumerate(examples):
            if not has_target(labels):
                continue
            gradient = example_gradient(self.model, self.parameters, input_ids, labels)
            if not gradient.isfinite().all():
                raise ValueError(f"{self.name}: the gradient of example {first + row} is not finite, expected numbers")
            # The moments alone would still make a step: a zero gradient must not become their direction.
            if gradient.any():
                adjusted[row] = adjust(gradient, *self.moments)
        rows = self.projection(adjusted)
        return rows.div_(rows.norm(dim=1, keepdim=True).clamp_min_(torch.finfo(rows.dtype).tiny)).numpy()


def _take_parts(
    model: Path,
    checkpoint: Checkpoint,
    examples: list[Example],
    projection: Projection,
    parts: Path,
    progress: Progress,
) -> None:
    """Writes the part files of one checkpoint that are not there yet."""
    folder = parts / checkpoint.name
    folder.mkdir(exist_ok=True)
    missing = [start for start in range(0, len(examples), PART_ROWS) if not (folder / _part(start)).is_file()]
    done = len(examples) - sum(min(PART_ROWS, len(examples) - start) for start in missing)
    progress(done, len(examples))
    if not missing:
        return
    adapted = load_adapted(model, checkpoint.folder)
    parameters = trainable(adapted)
    moments = read_moments(checkpoint, {name: parameter.shape for name, parameter in parameters.items()})
    assert len(moments[0]) == projection.parameters, "checkpoints of one warm-up share one layout"
    featurizer = _Featurizer(checkpoint.name, adapted, parameters, moments, projection)
    step = CHUNK_ROWS if projection.kept else PART_ROWS
    step = max(1, min(step, CHUNK_FLOATS // projection.parameters))
    with _workers() as workers:
        for start in missing:
            stop = min(start + PART_ROWS, len(examples))
            firsts = range(start, stop, step)
            chunks = [examples[first : min(first + step, stop)] for first in firsts]
            rows = []
            for chunk in workers.map(featurizer.rows, firsts, chunks):
                rows.append(chunk)
                done += len(chunk)
                progress(done, len(examples))
            _replace(folder / _part(start), np.concatenate(rows))


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch may use, each computing alone: whole examples in parallel, not the small products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _fold(checkpoints: list[Checkpoint], parts: Path, out: Path, examples: int, dimension: int) -> int:
    """Sums the parts over the checkpoints into `features.npy`; returns how many rows are zero."""
    partial = parts / "features.npy"
    features = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(examples, dimension))
    zero = 0
    for start in range(0, examples, PART_ROWS):
        rows = np.zeros((min(PART_ROWS, examples - start), dimension))
        for checkpoint in checkpoints:
            rows += checkpoint.weight * np.load(parts / checkpoint.name / _part(start)).astype(np.float64)
        features[start : start + len(rows)] = rows
        zero += int((~rows.any(axis=1)).sum())
    features.flush()
    del features
    os.replace(partial, out / "features.npy")
    return zero


def _tensors(input_ids: list[int], labels: list[int]) -> Example:
    return torch.tensor(input_ids, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)


def _part(start: int) -> str:
    return f"{start // PART_ROWS:06d}.npy"


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def _replace(path: Path, rows: np.ndarray) -> None:
    """A part is there whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
