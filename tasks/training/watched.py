"""What every trainer of transformers' kind has in common here: a numbered batch a step, saved, watched and resumed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from longloom.tasks.training.resume import keep_last_good, layout, to_resume
from longloom.tasks.training.watch import SPEED, NotFinite, check_weights, write_speed

#: Where checkpoints lie within a stage's work folder until it is done.
CHECKPOINTS = "checkpoints"


def arguments(out: Path, *, steps: int, seed: int, save_every: int, log_every: int) -> dict[str, Any]:
    """TrainingArguments of a run of numbered batches: AdamW, clipping at 1; bfloat16 autocast on a GPU, else the CPU.

    Args:
        out: the stage's work folder.
        steps: of the optimizer.
        seed: for dropout.
        save_every: steps between checkpoints, rounded up to a multiple of log_every (0: none).
        log_every: steps a row of the log stands for.
    """
    folder = out / CHECKPOINTS
    folder.mkdir(exist_ok=True)
    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": 1,  # one numbered batch
        "train_sampling_strategy": "sequential",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "logging_steps": log_every,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if save_every else "no",
        # At the end of a row: a loss half summed up is lost in a checkpoint.
        "save_steps": -(-save_every // log_every) * log_every or steps,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "seed": seed,
        "use_cpu": not gpu,
        "bf16": gpu,
        "dataloader_pin_memory": gpu,
        "remove_unused_columns": False,
    }


def use_one_gpu(made: TrainingArguments) -> None:
    """Of several on the host: else several batches are drawn a step, one for each."""
    if made.n_gpu > 1:
        made._n_gpu = 1


def run(
    trainer: Trainer,
    configuration: dict[str, Any],
    model: PreTrainedModel | PeftModel,
    tokens: list[int],
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[dict[str, Any]]:
    """Trains, from the last checkpoint that a killed run of the same configuration left, and writes `speed.parquet`.

    Args:
        trainer: with `arguments` and a Watch.
        configuration: what the course of the training depends on, beside the model's layout; JSON.
        model: the trainer's.
        tokens: seen before step i, one more entry than there are steps.
        tokenizer: saved with the last good model if the run has to stop.

    Returns:
        The trainer's log, an entry for each row, with its `tokens`.

    Raises:
        ValueError: the loss, the gradient norm or the weights became NaN or infinite: the model of the last
            checkpoint, which is named, is kept in `checkpoints/last-good`; a checkpoint of another configuration.
    """
    folder = Path(str(trainer.args.output_dir))
    trainer.remove_callback(PrinterCallback)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    steps = len(tokens) - 1
    configuration = {
        "steps": steps,
        "tokens": tokens[-1],
        **configuration,
        "seed": trainer.args.seed,
        "log_every": int(trainer.args.logging_steps),
        "model": type(model).__name__,
        "parameters": layout(model),
    }
    try:
        trainer.train(resume_from_checkpoint=to_resume(folder, configuration))
        check_weights(model, steps)  # past the last row's loss
    except NotFinite as stop:
        kept = keep_last_good(model, tokenizer, folder)
        raise ValueError(f"training: {stop}; {f'{kept}; ' if kept else ''}lower the learning rate") from None
    # On a GPU accelerate leaves its autocast around the model's forward, under which later measures would be taken.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    write_speed(trainer.state.log_history, tokens, folder)
    return [row | {"tokens": tokens[int(row["step"])]} for row in trainer.state.log_history if "loss" in row]


def keep_speed(out: Path) -> tuple[str, ...]:
    """Makes `speed.parquet` a part of the artifact, before its checkpoints are removed.

    Returns:
        For `Stats.volatile`.
    """
    (out / CHECKPOINTS / SPEED).replace(out / SPEED)
    return (SPEED,)
