"""Gradient features of instruction examples, after TAGCOS (arXiv 2407.15235, sections 3.1 and 3.2).

    f_i = sum over checkpoints k of  w_k * normalise(project(adjust(gradient of example i at checkpoint k)))

The weights w are the checkpoints' mean learning rates, normalised to 1; f is not normalised again. What is stored are
the unit rows of each checkpoint (see `store`); f is their sum as it is read. Row i is example i; an example without a
gradient (nothing of the assistant's to predict) has a row of zeros. Equal examples have equal rows, taken once.

Work is done in shards, one file each, so that a killed run goes on where it stopped, by whatever `Workers`: the same
bytes, on a CPU as on a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from peft import PeftConfig
from transformers import AutoConfig

from longloom.kernels.huggingface.load import load_tokenizer
from longloom.storage.parquet import FileWriter
from longloom.storage.stats import Stats
from longloom.tasks.coreset.adam import BETA1, BETA2, EPSILON
from longloom.tasks.coreset.checkpoints import Checkpoint, count_parameters, read_checkpoints
from longloom.tasks.coreset.encoded import Encoded
from longloom.tasks.coreset.pairwise import encode_pairs, load_reward_body
from longloom.tasks.coreset.pool import conversations, fingerprint, holds_pairs, read_pool
from longloom.tasks.coreset.shards import ONE_BY_ONE, SHARD_ROWS, Featurizer, Job, take_shard
from longloom.tasks.coreset.store import EXAMPLES, FORMAT, RECORD, write_array, write_json
from longloom.tasks.preference import template as templates
from longloom.tasks.preference.encoding import Reading
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.sft import encode_named
from longloom.tasks.training.stored import window_of
from longloom.tasks.workers import THREADS, Workers


def build(
    model: Path,
    instructions: Path,
    warmup: Path,
    out: Path,
    *,
    dimension: int,
    seed: int,
    max_length: int,
    adam: bool,
    bias_correction: bool,
    device: str | None,
    threads: int,
    workers: str,
    progress: Progress = silent,
) -> Stats:
    """Writes the artifact that `store` describes.

    Args:
        model: the base model with its tokenizer, a transformers folder.
        instructions: an instructions artifact; or a comparisons artifact, whose rows are pairs of responses.
        warmup: LoRA checkpoints with optimizer moments; see `checkpoints`. For pairs they are a reward model's.
        out: the artifact's folder; may hold what a killed run left.
        dimension: of the projection.
        seed: of the projection.
        max_length: tokens of an example; no more than the model has positions for.
        adam: adjust the gradients by the checkpoint's moments; LESS takes those of validation examples plain.
        bias_correction: of these moments; the released code has none.
        device: a torch device; None: cuda where there is one (on a scheduler's workers, where one declares it), else
            cpu. A GPU computes in bfloat16, a CPU in float32.
        threads: of this host, on a CPU; no other bytes.
        workers: who computes the shards, see `Workers`; each but threads loads the model. No other bytes.
        progress: gets gradients taken and in all (examples times checkpoints).

    Raises:
        ValueError: parameters out of range, an empty pool, a warm-up that does not fit the model, an example that the
            chat template refuses, a gradient that is not finite.
        RuntimeError: two processes or Dask workers died at a shard, which is named.
    """
    if max_length < 2:
        raise ValueError(f"max_length: found {max_length}, expected 2 or more tokens")
    if dimension < 1:
        raise ValueError(f"dimension of the projection: found {dimension}, expected 1 or more")
    if bias_correction and not adam:
        raise ValueError("bias_correction: there are no moments to correct without adam")
    table, pairs = read_pool(instructions, ["id"]), holds_pairs(instructions)
    checkpoints = read_checkpoints(warmup.absolute())  # a worker may stand elsewhere
    config = AutoConfig.from_pretrained(model)
    max_length = min(max_length, window_of(config))
    adapter = PeftConfig.from_pretrained(str(checkpoints[0].folder))
    with Workers(workers, threads=threads, whole=True, gpu=device != "cpu") as crew:
        device = device or ("cuda" if crew.gpu else "cpu")
        dtype = "float32" if device == "cpu" else "bfloat16"
        moments = {"beta1": BETA1, "beta2": BETA2, "epsilon": EPSILON, "bias_correction": bias_correction}
        plan: dict[str, Any] = {
            "format": FORMAT,
            "examples": table.num_rows,
            "shard_rows": SHARD_ROWS,
            "pool": fingerprint(table.column("id").to_pylist()),
            "model": {
                "type": config.model_type,
                "lora_rank": getattr(adapter, "r", None),
                "lora_alpha": getattr(adapter, "lora_alpha", None),
                "parameters": count_parameters(checkpoints[0]),
                "dtype": dtype,
            },
            "max_length": max_length,
            "loss": "Bradley-Terry" if pairs else "mean over the assistant's tokens",
            "adam": moments if adam else None,
            "projection": {"kind": "count-sketch-philox", "dimension": dimension, "seed": seed},
            "checkpoints": [
                {"name": one.name, "step": one.step, "mean_learning_rate": one.mean_learning_rate, "weight": one.weight}
                for one in checkpoints
            ],
        }
        work = out / "work"
        record = _read_json(out / RECORD) or {}
        if record | plan == record:  # killed when all was written: what `work` has left is not needed
            shutil.rmtree(work, ignore_errors=True)
            return _stats(plan, record)
        if _read_json(work / "plan.json") != plan:
            (out / RECORD).unlink(missing_ok=True)  # of another plan, whose shards go now
            for path in [work, *out.glob("checkpoint-*")]:
                shutil.rmtree(path, ignore_errors=True)
            work.mkdir(parents=True)
            write_json(work / "plan.json", plan)
        encoded = Encoded.write(work, _encode(model, instructions, table["id"].to_pylist(), max_length))
        job = Job(
            model.absolute(), out.absolute(), work.absolute(), table.num_rows, SHARD_ROWS, dimension, seed, device,
            dtype, adam, bias_correction, pairs,
        )  # fmt: skip
        _take(job, checkpoints, None if workers == THREADS else crew, threads=threads, progress=progress)
    _copy(job, checkpoints, encoded.first())
    found = _finish(job, checkpoints, encoded, max_length)
    for path in out.glob("checkpoint-*/*.partial"):  # of a writer that was killed
        path.unlink()
    with (out / "examples.parquet").open("rb") as file:
        os.fsync(file.fileno())  # before the record, which says that all is there
    write_json(out / RECORD, plan | found)
    shutil.rmtree(work)
    return _stats(plan, plan | found)


def _stats(plan: dict[str, Any], record: dict[str, Any]) -> Stats:
    """Of the finished features; `record` is the plan and what was found."""
    found = {key: value for key, value in record.items() if key not in plan}
    dimension = plan["projection"]["dimension"]
    return Stats(
        counts={"examples": plan["examples"], "dimension": dimension, "zero_gradient": found["zero_gradient"]},
        values={key: plan[key] for key in ("model", "max_length", "adam", "projection", "checkpoints")} | found,
    )


def _encode(model: Path, pool: Path, names: list[str], max_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of each example; a template may not know what to do with no turn at all."""
    if holds_pairs(pool):
        _, tokenizer = load_reward_body(model)
        yield from encode_pairs(pool, tokenizer, Reading(templates.DEFAULT, max_length))
        return
    tokenizer = load_tokenizer(model)
    for name, messages in zip(names, conversations(pool), strict=True):
        yield encode_named(tokenizer, name, messages, max_length=max_length) if messages else ([], [])


def _take(job: Job, checkpoints: list[Checkpoint], crew: Workers | None, *, threads: int, progress: Progress) -> None:
    """Writes the shards that are not there yet; by threads of this process, within a shard, if there is no crew."""
    total = job.examples * len(checkpoints)
    missing = [
        (one, shard) for one in checkpoints for shard in job.shards if not job.rows_file(one.name, shard).is_file()
    ]
    lock = threading.Lock()
    done = total

    def advance(rows: int) -> None:
        nonlocal done
        with lock:
            done += rows
            progress(done, total)

    advance(-sum(_rows(job, shard) for _, shard in missing))
    for one in checkpoints:
        (job.out / one.name).mkdir(exist_ok=True)
    if crew is not None:
        # A checkpoint after the other: a worker has one model loaded.
        futures = [
            crew.submit(f"features shard {shard} of {one.name}", take_shard, job, one, shard, crew.remote)
            for one, shard in missing
        ]
        for future in as_completed(futures):
            advance(future.result())
        return
    for one in checkpoints:
        mine = [shard for owner, shard in missing if owner == one]
        if mine:
            featurizer = Featurizer(job, one)
            for shard in mine:
                featurizer.take(shard, threads=threads, progress=advance)


def _copy(job: Job, checkpoints: list[Checkpoint], first: np.ndarray) -> None:
    """Gives examples that equal one of an earlier shard its row and loss; `first` is that of `Encoded`."""
    for shard in job.shards:
        start, stop = job.span(shard)
        places = np.flatnonzero(first[start:stop] < start)
        originals = first[start:stop][places]
        owners = originals // job.shard_rows
        for one in checkpoints if len(places) else []:
            for file in (job.losses_file, job.rows_file):
                values = np.load(file(one.name, shard))
                for owner in np.unique(owners).tolist():
                    mine = owners == owner
                    theirs = np.load(file(one.name, owner), mmap_mode="r")
                    values[places[mine]] = theirs[originals[mine] - owner * job.shard_rows]
                write_array(file(one.name, shard), values)


def _finish(job: Job, checkpoints: list[Checkpoint], encoded: Encoded, max_length: int) -> dict[str, Any]:
    """Writes `examples.parquet`; returns what was found."""
    losses = np.stack(
        [np.concatenate([np.load(job.losses_file(one.name, shard)) for shard in job.shards]) for one in checkpoints], 1
    )
    lengths, answers = encoded.lengths(), encoded.answers()
    has_loss = answers > 0
    with FileWriter(job.out / "examples.parquet", EXAMPLES) as writer:
        for start in range(0, job.examples, job.shard_rows):
            part = slice(start, start + job.shard_rows)
            taken = [row.tolist() if there else None for row, there in zip(losses[part], has_loss[part], strict=True)]
            columns = [np.arange(job.examples)[part], lengths[part].astype(np.int32), answers[part].astype(np.int32)]
            writer.write_table(
                pa.table([*map(pa.array, columns), pa.array(taken, EXAMPLES.field("loss").type)], EXAMPLES)
            )
    zero = 0
    for shard in job.shards:
        alive = [np.load(job.rows_file(one.name, shard), mmap_mode="r").any(axis=1) for one in checkpoints]
        zero += int((~np.any(alive, axis=0)).sum())
    reason = job.work / ONE_BY_ONE
    return {
        "zero_gradient": zero,
        "without_target": int((~has_loss).sum()),
        "empty": int((lengths == 0).sum()),
        "at_max_length": int((lengths >= max_length).sum()),
        "duplicates": encoded.duplicates(),
        "tokens": int(lengths.sum()),
        "one_by_one": reason.read_text(encoding="utf-8") if reason.is_file() else None,
    }


def _rows(job: Job, shard: int) -> int:
    start, stop = job.span(shard)
    return stop - start


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
