"""Checkpoints that a training keeps beside its weights, for what sums over them (TracIn, arXiv 2002.08484).

`checkpoints/step-N/` holds a whole model without its tokenizer, and in checkpoint.json the step and the mean learning
rate since the checkpoint before. What the Trainer needs to go on after a kill lies beside them until it is done.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from peft import PeftModel

from longloom.tasks.training.watched import CHECKPOINTS

#: Beginning of their names.
STEP = "step-"
#: Of each, what is known of it besides the weights.
TOLD = "checkpoint.json"


def spaced(steps: int, count: int) -> list[int]:
    """`count` steps at equal distances, the last one at the end; fewer where there are not so many."""
    return sorted({max(1, round(steps * (number + 1) / count)) for number in range(count)})


def mean_rates(at: Sequence[int], rates: Sequence[float]) -> list[float]:
    """The mean learning rate of the steps that lead to each checkpoint from the one before.

    Args:
        at: steps from 1, in order.
        rates: of every step.
    """
    return [sum(rates[first:last]) / (last - first) for first, last in pairwise([0, *at])]


def keeper(at: Sequence[int], rates: Sequence[float], out: Path) -> Callable[[int, Any, Any], None]:
    """What saves the model of these steps: `after_step` of `loop.train`. A killed training writes them again.

    Args:
        at: steps from 1, in order.
        rates: of every step.
        out: the stage's work folder.
    """
    means = dict(zip(at, mean_rates(at, rates), strict=True))

    def after_step(step: int, model: Any, optimizer: Any) -> None:
        if step in means:
            folder = out / CHECKPOINTS / f"{STEP}{step}"
            # Merging adapters in place and back would change what is trained on.
            whole = copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model
            whole.save_pretrained(folder)
            text = json.dumps({"step": step, "mean_learning_rate": means[step]}, indent=1)
            (folder / TOLD).write_text(text + "\n")

    return after_step


def leave_kept(out: Path) -> None:
    """Removes what the Trainer left; the folder too if nothing is kept in it."""
    for path in (out / CHECKPOINTS).iterdir():
        if not path.name.startswith(STEP):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not any((out / CHECKPOINTS).iterdir()):
        (out / CHECKPOINTS).rmdir()
