"""One training loop for every stage that trains: transformers' Trainer over batches that are functions of their number.

Batch i depends on i alone, so a run that was killed goes on from its last checkpoint and ends with the bytes of a run
that was not. Losses are kept as rows; times are told to the progress callable only.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from longloom.tasks.progress import Progress

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
#: Where checkpoints lie within a stage's work folder until it is done.
CHECKPOINTS = "checkpoints"


class NumberedBatches(Dataset[Batch]):
    """`make(i)` for i < steps.

    Args:
        make: gives input_ids, labels and, if padded, attention_mask, each [batch, length].
        steps: how many.
    """

    def __init__(self, make: Callable[[int], Batch], steps: int) -> None:
        self.make, self.steps = make, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Batch:
        return self.make(index)


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


class _Watch(TrainerCallback):
    """Collects the rows, reports progress, stops at the first loss that is no number."""

    def __init__(
        self, tokens: list[int], progress: Progress, after_step: Callable[[int, Any, Any], None] | None
    ) -> None:
        self.tokens, self.progress, self.after_step = tokens, progress, after_step

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The moments of this step stand in the optimizer; the schedule has not moved on yet.
        if self.after_step is not None:
            self.after_step(state.global_step + 1, kwargs["model"], kwargs["optimizer"])

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.progress(self.tokens[state.global_step], self.tokens[-1])

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        row = state.log_history[-1]
        if "loss" in row and not row["loss"] < float("inf"):
            raise ValueError(
                f"training: the loss is {row['loss']} at step {state.global_step}; lower the learning rate"
            )


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
    after_step: Callable[[int, Any, Any], None] | None = None,
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
        after_step: called with (step from 1, model, optimizer) after each optimizer step.
        progress: gets tokens done and in all.

    Returns:
        Rows of step, tokens, loss (mean since the last row), learning_rate, grad_norm.

    Raises:
        ValueError: the loss or the weights became NaN or infinite.
    """
    steps = len(learning_rates)
    assert len(tokens) == steps + 1, "one entry before the first step, one after each"
    folder = out / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,  # one numbered batch
        train_sampling_strategy="sequential",
        learning_rate=max(learning_rates),
        optim="adamw_torch_fused",
        weight_decay=weight_decay,
        adam_beta1=betas[0],
        adam_beta2=betas[1],
        max_grad_norm=1.0,
        logging_steps=log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps" if save_every else "no",
        # At the end of a row: a loss half summed up is lost in a checkpoint.
        save_steps=-(-save_every // log_every) * log_every or steps,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=not gpu,
        bf16=gpu,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else several batches are drawn a step, one for each GPU
    trainer = _Loop(
        model=model,
        args=arguments,
        train_dataset=NumberedBatches(make, steps),
        data_collator=lambda items: items[0],
        learning_rates=learning_rates,
        callbacks=[_Watch(tokens, progress, after_step)],
    )
    trainer.remove_callback(PrinterCallback)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    trainer.train(resume_from_checkpoint=_last_whole(folder))
    if not all(parameter.isfinite().all() for parameter in model.parameters()):  # past the last row's loss
        raise ValueError(f"training: weights are not finite after step {steps}; lower the learning rate")
    return [
        {
            "step": row["step"],
            "tokens": tokens[int(row["step"])],
            "loss": row["loss"],
            "learning_rate": row["learning_rate"],
            "grad_norm": row["grad_norm"],
        }
        for row in trainer.state.log_history
        if "loss" in row
    ]


#: Of a checkpoint, besides the weights: all gone or all there, unless a kill came between.
_NEEDED = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def _last_whole(folder: Path) -> str | None:
    """The last checkpoint that is whole; half-written and half-removed ones are removed."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text())  # the trainer writes it last
            for name in _NEEDED:
                (checkpoint / name).stat()
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
        else:
            return str(checkpoint)
    return None


def write_rows(rows: list[dict[str, float]], out: Path) -> None:
    """Writes `training.parquet`."""
    pq.write_table(pa.Table.from_pylist(rows, ROWS), out / "training.parquet", compression="zstd")


def linear(steps: int, *, peak: float, final: float, warmup: int) -> list[float]:
    """A learning rate for every step: linear warm-up over `warmup` steps to `peak`, then linear to `final`."""
    return [
        min(1.0, (step + 1) / max(1, warmup)) * (peak + (final - peak) * step / max(1, steps)) for step in range(steps)
    ]
