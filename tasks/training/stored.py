"""What a stored model says of itself, the tokens that it can read and the type of its weights; and how it is saved."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from longloom.kernels.huggingface import load

#: Floating types by their names in safetensors.
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def window_of(config: PreTrainedConfig) -> int:
    """`kernels.huggingface.load.window_of`, without a limit where the configuration tells none."""
    return load.window_of(config) or 2**31 - 1


def dtype_of(model: Path | str) -> torch.dtype:
    """The type in which a model's weights are stored, and loaded where no other is asked for.

    Args:
        model: a model folder or a hub name.

    Returns:
        What the configuration says, else the type of the folder's first floating weight, else float32.
    """
    folder = Path(model)
    said = AutoConfig.from_pretrained(model, local_files_only=folder.is_dir()).dtype
    if isinstance(said, torch.dtype):
        return said
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (no mapping)
                if found := _FLOATS.get(weights.get_slice(name).get_dtype()):
                    return found
    return torch.float32


def save(network: PreTrainedModel, folder: Path, *, dtype: torch.dtype) -> None:
    """Writes a model folder without its tokenizer, and leaves the model itself in the type that it is saved in.

    Args:
        network: trained.
        folder: that it is written to.
        dtype: of the weights; the same as they have changes no byte.
    """
    network.to(dtype)  # type: ignore[arg-type]  # a wrapper around torch's own, whose types mypy misreads
    network.save_pretrained(folder)
