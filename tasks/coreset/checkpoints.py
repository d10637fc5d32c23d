"""The warm-up artifact: LoRA checkpoints with the optimizer's moments and the learning rates that weigh them.

checkpoint-00001/          adapter_model.safetensors, adapter_config.json (peft)
    optimizer.safetensors  `exp_avg.{name}` and `exp_avg_sq.{name}` for every trainable parameter
    checkpoint.json        {"step": int, "mean_learning_rate": mean over the steps since the previous checkpoint}
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from longloom.evals.jsonl import NUMBER, Field, check_fields
from longloom.storage.json_text import read_json

FILES = ("adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "checkpoint.json")
_FIELDS = {
    "step": NUMBER,
    "mean_learning_rate": Field("a number", lambda value: isinstance(value, float) or type(value) is int),
}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of the warm-up.

    Attributes:
        folder: where its files lie.
        step: optimizer steps taken.
        mean_learning_rate: over the steps since the previous checkpoint.
        weight: its share in the sum over checkpoints; all of them sum to 1.
    """

    folder: Path
    step: int
    mean_learning_rate: float
    weight: float

    @property
    def name(self) -> str:
        """`checkpoint-00001`."""
        return self.folder.name


def weights(rates: list[float]) -> list[float]:
    """Mean learning rates, normalised to sum to 1 (TAGCOS, section 3.1).

    Raises:
        ValueError: a rate is negative or not finite, or all are zero.
    """
    total = math.fsum(rates)
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates) or total <= 0:
        raise ValueError(
            f"mean learning rates of the checkpoints: found {rates}, expected none negative and one positive"
        )
    return [rate / total for rate in rates]


def read_checkpoints(warmup: Path) -> list[Checkpoint]:
    """Lists the checkpoints in the order of their steps.

    Raises:
        ValueError: none there, a file is missing, or the steps do not increase with the names.
    """
    folders = sorted(path for path in warmup.glob("checkpoint-*") if path.is_dir())
    if not folders:
        raise ValueError(f"{warmup.name}: found no checkpoint-* folder, expected the artifact of a warm-up")
    for folder in folders:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder.name}: found no {', '.join(missing)}, expected {', '.join(FILES)}")
    records = [_record(folder / "checkpoint.json") for folder in folders]
    steps = [record["step"] for record in records]
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"steps of the checkpoints: found {steps}, expected an increasing sequence")
    rates = [record["mean_learning_rate"] for record in records]
    return [Checkpoint(*row) for row in zip(folders, steps, rates, weights(rates), strict=True)]


@contextlib.contextmanager
def _moments(checkpoint: Checkpoint) -> Iterator[Any]:
    """The optimizer's file, open; whatever safetensors says of a damaged one is a ValueError that names it."""
    try:
        with safe_open(checkpoint.folder / "optimizer.safetensors", framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{checkpoint.name}/optimizer.safetensors: cannot be read ({error!s:.200})") from None


def _record(path: Path) -> dict[str, Any]:
    record = read_json(path, expected="an object with step and mean_learning_rate")
    where = f"{path.parent.name}/{path.name}"
    check_fields(record if isinstance(record, dict) else {}, _FIELDS, where)
    found: dict[str, Any] = record
    return found


def count_parameters(checkpoint: Checkpoint) -> int:
    """Trainable parameters (P) of the checkpoint, from the header of its optimizer file alone."""
    with _moments(checkpoint) as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys() if _is_first(name))  # noqa: SIM118


def read_moments(checkpoint: Checkpoint, layout: Mapping[str, torch.Size]) -> tuple[torch.Tensor, torch.Tensor]:
    """The two moments as flat float32 vectors [P] in the order of `layout` (parameter name -> shape).

    Raises:
        ValueError: the names or shapes in the file are not those of the model, or numbers that no optimizer has.
    """
    with _moments(checkpoint) as file:
        found = set(file.keys())
        expected = {f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in layout}
        if found != expected:
            odd = sorted(found ^ expected)
            raise ValueError(
                f"{checkpoint.name}/optimizer.safetensors: {len(odd)} names differ from the model's parameters, "
                f"first {odd[0]!r}"
            )
        flat = []
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors = {name: file.get_tensor(f"{moment}.{name}") for name in layout}
            for name, tensor in tensors.items():
                if tensor.shape != layout[name]:
                    raise ValueError(
                        f"{checkpoint.name}/optimizer.safetensors: {moment}.{name} is {list(tensor.shape)}, "
                        f"expected {list(layout[name])}"
                    )
            flat.append(torch.cat([tensor.reshape(-1).float() for tensor in tensors.values()]))
    if not (flat[0].isfinite().all() and flat[1].isfinite().all() and (flat[1] >= 0).all()):
        raise ValueError(
            f"{checkpoint.name}/optimizer.safetensors: found moments that are not finite or an exp_avg_sq below 0, "
            "expected Adam's"
        )
    return flat[0], flat[1]


def _is_first(name: str) -> bool:
    return name.startswith("exp_avg.")
