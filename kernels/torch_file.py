"""Files that torch saved and others may have written: tensors and plain values alone; a pickle may hold anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

import torch


def load_plain(path: Path, where: str) -> Any:
    """What a file of `torch.save` holds, on the CPU.

    Args:
        path: the file.
        where: its name in errors.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds anything but tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # pickle's, zip's and torch's own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: cannot be read as tensors alone ({reason:.200})") from None


def are_numbers(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a tensor of real numbers in memory: not sparse, quantised, complex or without data."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
    )
