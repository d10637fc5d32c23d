"""TAGCOS's warm-up (arXiv 2407.15235, section 3.1): LoRA on a random sample, keeping what the gradient features need.

Each checkpoint holds the adapter, Adam's moments by parameter name, and the mean learning rate since the checkpoint
before, which later weighs its gradients.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file

from longloom.kernels.huggingface.load import load_model
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.checkpoints import mean_rates, spaced
from longloom.tasks.training.finetune import WARMUP_SHARE, with_lora
from longloom.tasks.training.loop import Batch, linear, train, write_rows
from longloom.tasks.training.sft import encode_all, epoch_batches, load_examples, pad
from longloom.tasks.training.stored import window_of
from longloom.tasks.training.watched import CHECKPOINTS, keep_speed


def build(
    model: Path | str,
    instructions: Path,
    out: Path,
    *,
    share: float,
    checkpoints: int,
    epochs: int,
    batch: int,
    learning_rate: float,
    rank: int,
    alpha: int,
    dropout: float,
    max_length: int,
    seed: int,
    progress: Progress = silent,
) -> Stats:
    """Trains adapters and writes `checkpoint-00001/` ... and `training.parquet`.

    Args:
        model: a model folder or a hub name.
        instructions: an instructions artifact.
        out: the artifact's folder.
        share: of the examples, drawn at random; at least one batch a checkpoint, where there are so many.
        checkpoints: kept at equal distances, the last one at the end.
        epochs: passes over the sample.
        batch: examples a step.
        learning_rate: peak; linear warm-up over 3% of the steps, linear to 0.
        rank, alpha, dropout: of LoRA.
        max_length: tokens of an example.
        seed: of the sample, the order and the adapters.
        progress: real tokens seen.

    Raises:
        ValueError: no example with a label; one that the chat template refuses; projections of unknown names.
    """
    network, tokenizer = load_model(model, dtype="float32")
    pool = load_examples(instructions)
    count = min(len(pool), max(round(share * len(pool)), checkpoints * batch))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pool))[:count]).tolist()
    max_length = min(max_length, window_of(network.config))
    examples, without = encode_all(tokenizer, [pool[row] for row in chosen], max_length=max_length)
    if not examples:
        raise ValueError(f"instructions: none of {count} sampled examples has an answer within {max_length} tokens")
    batches = epoch_batches([len(ids) for ids, _ in examples], batch=batch, epochs=epochs, seed=seed)

    def make(step: int) -> Batch:
        return pad([examples[row] for row in batches[step]], pad_id=tokenizer.pad_token_id)

    steps = len(batches)
    rates = linear(steps, peak=learning_rate, final=0.0, warmup=max(1, round(WARMUP_SHARE * steps)))
    at = spaced(steps, checkpoints)
    means = mean_rates(at, rates)

    def after_step(step: int, trained: PeftModel, optimizer: Any) -> None:
        if step in at:
            number = at.index(step)
            folder = out / f"checkpoint-{number + 1:05d}"
            save_checkpoint(trained, optimizer, folder, step=step, mean_learning_rate=means[number])

    torch.manual_seed(seed)
    adapted = with_lora(network, rank=rank, alpha=alpha, dropout=dropout)
    rows = train(
        adapted,
        make,
        [0, *itertools.accumulate(sum(len(examples[row][0]) for row in rows) for rows in batches)],
        rates,
        out,
        seed=seed,
        save_every=0,
        log_every=max(1, steps // 50),
        weight_decay=0.0,
        betas=(0.9, 0.999),
        after_step=after_step,
        progress=progress,
    )
    write_rows(rows, out)
    speed = keep_speed(out)
    shutil.rmtree(out / CHECKPOINTS)
    return Stats(
        counts={"examples": len(examples), "steps": steps, "checkpoints": len(at)},
        values={"without_label": without, "final_loss": rows[-1]["loss"]},
        volatile=speed,
    )


def save_checkpoint(model: PeftModel, optimizer: Any, folder: Path, *, step: int, mean_learning_rate: float) -> None:
    """Writes one `checkpoint-*` folder: what `tasks/coreset/checkpoints.py` reads."""
    model.save_pretrained(str(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = ""  # a place on this machine
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from process to process
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card template
    moments = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state[parameter]
            moments[f"exp_avg.{name}"] = state["exp_avg"].detach().float().contiguous()
            moments[f"exp_avg_sq.{name}"] = state["exp_avg_sq"].detach().float().contiguous()
    save_file(moments, folder / "optimizer.safetensors")
    text = json.dumps({"step": step, "mean_learning_rate": mean_learning_rate}, indent=1)
    (folder / "checkpoint.json").write_text(text + "\n")
