"""What a killed or failed training leaves in its work folder: whose it is, what of it is whole, what can start anew.

checkpoints/run.json        the configuration that the checkpoints belong to
checkpoints/checkpoint-N/   the Trainer's, for the same run to go on from
checkpoints/last-good/      after a stop at a NaN: a whole model, for a run with other parameters to start from
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, load_peft_weights
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from longloom.storage.atomic import write_atomic

RUN = "run.json"
LAST_GOOD = "last-good"
#: Of a checkpoint, besides the weights: all gone or all there, unless a kill came between.
_NEEDED = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
#: Of the Trainer's checkpoint, what makes a model.
_MODEL = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")


def last_whole(folder: Path) -> Path | None:
    """The last checkpoint that is whole; half-written and half-removed ones are removed."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -_step(path)):
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text())  # the trainer writes it last
            for name in (*_NEEDED, *_weights(checkpoint)):
                (checkpoint / name).stat()
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
        else:
            return checkpoint
    return None


def _weights(checkpoint: Path) -> Iterable[str]:
    """The files that the Trainer will read the weights from: adapters, a model's shards, or all of it in one."""
    if (checkpoint / CONFIG_NAME).exists():
        return [SAFETENSORS_WEIGHTS_NAME]
    index = checkpoint / SAFE_WEIGHTS_INDEX_NAME
    if index.exists():
        return set(json.loads(index.read_text())["weight_map"].values())
    return [SAFE_WEIGHTS_NAME]


def to_resume(folder: Path, run: Mapping[str, Any]) -> str | None:
    """The checkpoint to go on from, if it is of this run; says in `folder` which run the next ones are of.

    Args:
        folder: of the checkpoints.
        run: the configuration, JSON only.

    Raises:
        ValueError: the checkpoint is of a run of another configuration.
    """
    found = last_whole(folder)
    if found is not None:
        try:
            theirs = json.loads((folder / RUN).read_text())
        except (OSError, ValueError):  # nobody can say what it is of
            shutil.rmtree(found)
            return to_resume(folder, run)
        for name, value in run.items():
            if theirs.get(name) != value:
                raise ValueError(
                    f"training: {found} is of another configuration: its {name.replace('_', ' ')} is "
                    f"{theirs.get(name)}, expected {value}; remove it to start anew"
                )
    write_atomic(folder / RUN, json.dumps(run, indent=1) + "\n")
    return None if found is None else str(found)


def digest_of(value: Any) -> str:
    """Twelve digits that stand for a JSON value too long to be told."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def layout(model: nn.Module) -> str:
    """Names, shapes, types and what is trained, as a digest."""
    return digest_of(
        [(name, list(part.shape), str(part.dtype), part.requires_grad) for name, part in model.named_parameters()]
    )


def keep_last_good(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> str | None:
    """Makes a whole model of the last checkpoint.

    Args:
        model: what was trained, now of no use; adapters are set back in it and merged.
        tokenizer: saved with it.
        folder: of the checkpoints.

    Returns:
        Where it is, in words; None: there is no checkpoint.
    """
    checkpoint = last_whole(folder)
    if checkpoint is None:
        return None
    place = folder / LAST_GOOD
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))
        model.merge_and_unload().save_pretrained(place)
    else:
        for path in {path for pattern in _MODEL for path in checkpoint.glob(pattern)}:
            shutil.copyfile(path, place / path.name)
    if tokenizer is not None:
        tokenizer.save_pretrained(place)
    return f"the model of step {_step(checkpoint)} is kept in {place}"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
