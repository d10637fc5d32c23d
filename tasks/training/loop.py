"""One training loop for every stage that trains: transformers' Trainer over batches that are functions of their number.

Batch i depends on i alone, so a run that was killed goes on from its last checkpoint and ends with the bytes of a run
that was not. Loss, learning rate and gradient norm are kept as rows; speed and memory, which differ between equal runs,
apart from them (`watched.keep_speed`). A loss that is no number ends the run, with the last good model kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from longloom.tasks.progress import Progress
from longloom.tasks.training.mix import IGNORE
from longloom.tasks.training.resume import digest_of
from longloom.tasks.training.watch import Watch
from longloom.tasks.training.watched import arguments, run, use_one_gpu

Batch = dict[str, torch.Tensor]
ROWS = pa.schema(
    [
        ("step", pa.int64()),
        ("tokens", pa.int64()),
        ("loss", pa.float64()),
        ("learning_rate", pa.float64()),
        ("grad_norm", pa.float64()),
    ]
)


class NumberedBatches(Dataset[Batch]):
    """`make(i)` for i < steps.

    Args:
        make: gives input_ids, labels and, if padded, attention_mask, each [batch, length].
        steps: how many.

    Raises:
        ValueError: a batch without a label to learn from, whose mean loss would be 0 / 0.
    """

    def __init__(self, make: Callable[[int], Batch], steps: int) -> None:
        self.make, self.steps = make, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Batch:
        batch = self.make(index)
        labels = batch["labels"]
        if not (labels[..., 1:] != IGNORE).any():
            raise ValueError(
                f"training: batch {index} {list(labels.shape)} has no label to learn from, expected at least one that "
                f"is not {IGNORE} after a sequence's first token"
            )
        return batch


class _Loop(Trainer):
    """With a learning rate given step by step."""

    def __init__(self, *args: Any, learning_rates: list[float], **kwargs: Any) -> None:
        self._learning_rates = learning_rates
        super().__init__(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            rates, last, peak = self._learning_rates, len(self._learning_rates) - 1, self.args.learning_rate
            used: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(used, lambda step: rates[min(step, last)] / peak)
        return self.lr_scheduler


def train(
    model: PreTrainedModel | PeftModel,
    make: Callable[[int], Batch],
    tokens: list[int],
    learning_rates: list[float],
    out: Path,
    *,
    seed: int,
    save_every: int,
    log_every: int,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
    accumulate: int = 1,
    after_step: Callable[[int, Any, Any], None] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress,
) -> list[dict[str, float]]:
    """Trains in place with AdamW and clipping at 1, and resumes from `out`/checkpoints if a killed run left one.

    Args:
        model: float32 on CPU; on a GPU bfloat16 autocast is used.
        make: batch number -> batch.
        tokens: real tokens seen before step i, one more entry than there are steps.
        learning_rates: of every step.
        out: the stage's work folder.
        seed: for dropout.
        save_every: steps between checkpoints, rounded up to a multiple of log_every (0: none).
        log_every: steps a row of the returned table stands for.
        weight_decay, betas: of AdamW.
        accumulate: batches whose gradients add up to one step, every token weighing alike; step i takes the batches
            from i * accumulate on.
        after_step: called with (step from 1, model, optimizer) after each optimizer step.
        tokenizer: saved with the last good model if the run has to stop.
        progress: gets tokens done and in all, and with every row, where it can `tell`, how the training stands.

    Returns:
        Rows of step, tokens, loss (mean since the last row), learning_rate, grad_norm.

    Raises:
        ValueError: the loss, the gradient norm or the weights became NaN or infinite: the model of the last
            checkpoint, which is named, is kept in `out`/checkpoints/last-good; a batch without labels; a checkpoint in
            `out` of another configuration.
    """
    steps = len(learning_rates)
    assert len(tokens) == steps + 1, "one entry before the first step, one after each"
    made = TrainingArguments(
        **arguments(out, steps=steps, seed=seed, save_every=save_every, log_every=log_every),
        gradient_accumulation_steps=accumulate,
        learning_rate=max(learning_rates),
        weight_decay=weight_decay,
        adam_beta1=betas[0],
        adam_beta2=betas[1],
    )
    use_one_gpu(made)
    trainer = _Loop(
        model=model,
        args=made,
        train_dataset=NumberedBatches(make, steps * accumulate),
        data_collator=lambda items: items[0],
        learning_rates=learning_rates,
        callbacks=[Watch(tokens, progress, after_step)],
    )
    configuration = {
        "learning_rates": digest_of(learning_rates),
        "weight_decay": weight_decay,
        "betas": list(betas),
        "accumulate": accumulate,
    }
    return [{name: row[name] for name in ROWS.names} for row in run(trainer, configuration, model, tokens, tokenizer)]


def write_rows(rows: list[dict[str, float]], out: Path) -> None:
    """Writes `training.parquet`."""
    pq.write_table(pa.Table.from_pylist(rows, ROWS), out / "training.parquet", compression="zstd")


def linear(steps: int, *, peak: float, final: float, warmup: int) -> list[float]:
    """A learning rate for every step: linear warm-up over `warmup` steps to `peak`, then linear to `final`."""
    return [
        min(1.0, (step + 1) / max(1, warmup)) * (peak + (final - peak) * step / max(1, steps)) for step in range(steps)
    ]
