"""Context extension: rotary positions for a longer window, then training on rows that fill it.

After ChatQA 2 (arXiv 2407.14482, section 3.1): 8K to 128K by a larger base and 2,000 steps of 32 rows at a learning
rate of 3e-5. Each row is read alone and its gradients are added up over a step, so memory is that of one row: MLPs in
tiles, a loss without logits, checkpointed layers, whose inputs may wait in host memory (kernels/minisequence).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from longloom.kernels.huggingface.load import load_tokenizer
from longloom.kernels.huggingface.minisequence import minisequence
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.accounting import plan
from longloom.tasks.training.checkpoints import leave_kept
from longloom.tasks.training.loop import Batch, linear, train, write_rows
from longloom.tasks.training.pack import read_rows
from longloom.tasks.training.rope import extend_rope
from longloom.tasks.training.stored import dtype_of, save
from longloom.tasks.training.watched import keep_speed

ROWS = 200
SAVES = 20
#: Of the peak, at the end of training.
FINAL = 0.1


def build(
    model: Path,
    packed: Path,
    out: Path,
    *,
    rope: str,
    base: float | None,
    steps: int | None,
    batch: int,
    learning_rate: float,
    warmup: float,
    recompute: bool,
    offload: bool,
    seed: int,
    progress: Progress = silent,
) -> Stats:
    """Writes a model folder of the new window with its tokenizer, `training.parquet`, `extension.json` (the
    window before, the rotary parameters, what was read) and `speed.parquet` (volatile). Weights are trained in float32
    and saved in the type in which the model is stored.

    Args:
        model: a model folder.
        packed: rows packed with this model's tokenizer (tasks/training/pack.py); their length is the new window.
        out: the artifact's folder; checkpoints in it are resumed from.
        rope, base: of the rotary positions (tasks/training/rope.py).
        steps: None: one pass over the rows.
        batch: rows a step.
        learning_rate: peak; linear warm-up, then linear to a tenth.
        warmup: share of the steps that warm up.
        recompute: gradient checkpointing.
        offload: with it, the layers' inputs wait in host memory.
        seed: of the order of the rows.
        progress: tokens seen.

    Raises:
        ValueError: positions that do not fit the model; offload without recompute.
    """
    rows, numbers = read_rows(packed)
    length = numbers["length"]
    if offload and not recompute:
        raise ValueError("offload: what waits in host memory are the checkpoints of recompute, expected both")
    window = AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings
    network, positions = load_extended(model, length=length, rope=rope, base=base)
    tokenizer = load_tokenizer(model)
    reading = plan(len(rows.ids), length, batch=batch, steps=steps)
    order = row_order(len(rows.ids), reading["rows"], seed=seed)

    def make(number: int) -> Batch:
        return rows.batch(int(order[number]))

    count = reading["steps"]
    rates = linear(count, peak=learning_rate, final=FINAL * learning_rate, warmup=max(1, round(warmup * count)))
    network.config.use_cache = False
    if recompute:
        network.activation_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(seed)
    with minisequence(network, offload=offload) as patched:
        log = train(
            network,
            make,
            [batch * length * step for step in range(count + 1)],
            rates,
            out,
            seed=seed,
            save_every=max(1, count // SAVES),
            log_every=max(1, count // ROWS),
            accumulate=batch,
            tokenizer=tokenizer,
            progress=progress,
        )
    network.activation_checkpointing_disable()
    network.config.use_cache = True
    save(network, out, dtype=dtype_of(model))
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(out)
    write_rows(log, out)
    told = {"window": window, "rope": positions, "kind": rope, "plan": reading}
    (out / "extension.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    volatile = keep_speed(out)
    leave_kept(out)
    return Stats(
        counts={"steps": count, "training_tokens": reading["tokens"], "window": length},
        values={"rope": positions, "plan": reading, "final_loss": log[-1]["loss"], "left_alone": list(patched.left)},
        volatile=volatile,
    )


def load_extended(model: Path, *, length: int, rope: str, base: float | None) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model with a window of `length`, its weights in float32 and untouched; the rotary parameters.

    Raises:
        ValueError: see `extend_rope`.
    """
    config = AutoConfig.from_pretrained(model)
    positions = extend_rope(config, kind=rope, length=length, base=base)
    network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, config=config, dtype=torch.float32)
    return network, positions


def row_order(rows: int, read: int, *, seed: int) -> np.ndarray:
    """Which row is read when: int64 [read], every pass over the rows in an order of its own."""
    passes = -(-read // rows)
    return np.concatenate([np.random.default_rng([seed, each]).permutation(rows) for each in range(passes)])[:read]
