"""The warm-up of coresets of preference data: a reward model's adapters on a random sample of the comparisons.

As `tasks/training/warmup.py` does for instructions, it keeps adapters (and the head), Adam's moments and the rates.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longloom.storage.stats import Stats
from longloom.tasks.preference import template as templates
from longloom.tasks.preference.encoding import Reading, set_apart_padding
from longloom.tasks.preference.reward_model import start, with_adapters
from longloom.tasks.preference.reward_trainer import Batches, train
from longloom.tasks.preference.training import WARMUP_SHARE, read_pairs
from longloom.tasks.progress import Progress, silent
from longloom.tasks.training.checkpoints import leave_kept, spaced
from longloom.tasks.training.sft import epoch_batches
from longloom.tasks.training.stored import window_of
from longloom.tasks.training.warmup import save_checkpoint
from longloom.tasks.training.watched import keep_speed


def build(
    model: Path | str,
    comparisons: Path,
    out: Path,
    *,
    share: float,
    checkpoints: int,
    epochs: int,
    batch: int,
    learning_rate: float,
    rank: int,
    alpha: int,
    max_length: int,
    seed: int,
    progress: Progress = silent,
) -> Stats:
    """Trains adapters and a head, and writes `checkpoint-00001/` and so on, which `tasks/coreset/checkpoints.py` reads.

    Args:
        model: a model folder or a hub name; a language model gets a new head.
        comparisons: a comparisons artifact; its ties and the texts that are too long are left out.
        out: the artifact's folder.
        share: of the comparisons, drawn at random; at least one batch a checkpoint, where there are so many.
        checkpoints: kept at equal distances, the last one at the end.
        epochs: passes over the sample.
        batch: comparisons a step.
        learning_rate: peak; linear warm-up over 3% of the steps, linear to 0.
        rank, alpha: of LoRA.
        max_length: tokens of a text.
        seed: of the sample, the head, the adapters and the order.
        progress: tokens read, and in all.

    Raises:
        ValueError: no comparison to train on, a loss or gradient that is not finite.
    """
    network, tokenizer = start(model, seed=seed)
    set_apart_padding(tokenizer, network)
    reading = Reading(templates.DEFAULT, min(max_length, window_of(network.config)))
    known, told = read_pairs(comparisons, tokenizer, reading, on_too_long="skip")
    count = min(len(known), max(round(share * len(known)), checkpoints * batch))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(known))[:count]).tolist()
    pairs = [known[row] for row in chosen]
    lengths = [len(pair.chosen) + len(pair.rejected) for pair in pairs]
    batches = epoch_batches(lengths, batch=batch, epochs=epochs, seed=seed)
    steps = len(batches)
    at = spaced(steps, checkpoints)
    rates: list[float] = []

    def after_step(step: int, trained: Any, optimizer: Any) -> None:
        rates.append(float(optimizer.param_groups[0]["lr"]))
        if step in at:
            folder = out / f"checkpoint-{at.index(step) + 1:05d}"
            save_checkpoint(trained, optimizer, folder, step=step, mean_learning_rate=statistics.fmean(rates))
            rates.clear()

    torch.manual_seed(seed)
    sizes = (sum(len(pairs[row].chosen) + len(pairs[row].rejected) for row in rows) for rows in batches)
    rows = train(
        with_adapters(network, rank=rank, alpha=alpha),
        tokenizer,
        Batches(pairs, batches, margin=0.0, pad_id=int(tokenizer.pad_token_id)),
        [0, *itertools.accumulate(sizes)],
        out,
        learning_rate=learning_rate,
        warmup=max(1, int(WARMUP_SHARE * steps)),
        centre=0.0,
        seed=seed,
        save_every=steps,
        log_every=max(1, steps // 50),
        after_step=after_step,
        progress=progress,
    )
    volatile = keep_speed(out)
    leave_kept(out)
    return Stats(
        counts={"examples": len(pairs), "steps": steps, "checkpoints": len(at), **told},
        values={"final_loss": rows[-1]["loss"], "final_accuracy": rows[-1]["accuracy"]},
        volatile=volatile,
    )
