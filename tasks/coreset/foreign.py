"""A warm-up made elsewhere: LESS's or any Hugging Face Trainer's folder of checkpoints, as a warm-up artifact.

checkpoint-105/            adapter_model.safetensors or .bin, adapter_config.json (peft)
    optimizer.bin          of FSDP: {"state": {name: {exp_avg, exp_avg_sq, step}}}; LESS reads this one
    optimizer.pt           of the Trainer: {"state": {number: ...}, "param_groups": [{"params": [number, ...]}]}
    trainer_state.json     {"global_step": int, "log_history": [{"step": int, "learning_rate": float}, ...]}

A state by number follows the order in which the optimizer was given its parameters: the Trainer makes two groups, those
with weight decay and those without, each in the model's order. A checkpoint's mean learning rate is that over its own
steps, with a straight line between those that were logged; `weights` of `checkpoints` makes shares of them.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longloom.kernels.torch_file import are_numbers, load_plain
from longloom.storage.stats import Stats
from longloom.tasks.coreset.gradients import load_adapted, trainable

#: What wrappers put into parameters' names.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|module)\.")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _Found:
    """One checkpoint as it lies there."""

    folder: Path
    step: int
    rates: list[tuple[int, float]]


def build(model: Path, warmup: Path, out: Path) -> Stats:
    """Writes a warm-up artifact (see `checkpoints`) from a foreign folder.

    Args:
        model: the base model's folder, which gives the parameters' names and order.
        warmup: the folder of `checkpoint-*` folders.
        out: the artifact's folder.

    Raises:
        FileNotFoundError: no checkpoint, or one of its files is missing.
        ValueError: an adapter or an optimizer that does not fit the model, two checkpoints of one step, a state that
            cannot be read, or no learning rates.
    """
    found = sorted(
        (_read(folder) for folder in warmup.glob("checkpoint-*") if folder.is_dir()), key=lambda one: one.step
    )
    if not found:
        raise FileNotFoundError(f"{warmup}: found no checkpoint-* folder, expected those of a Trainer or of LESS")
    steps = [one.step for one in found]
    if len(set(steps)) < len(steps) or steps[0] < 1:
        raise ValueError(
            f"trainer_state.json: found checkpoints of the steps {steps}, expected different ones from 1 on"
        )
    means = mean_rates(steps, found[-1].rates)
    parameters = 0
    for number, (one, rate) in enumerate(zip(found, means, strict=True), start=1):
        folder = out / f"checkpoint-{number:05d}"
        folder.mkdir()
        _copy_adapter(one.folder, folder)
        layout = _layout(model, folder, one.folder.name)
        moments = read_optimizer(one.folder, layout)
        parameters = sum(math.prod(shape) for shape in layout.values())
        save_file(moments, folder / "optimizer.safetensors")
        told = {"step": one.step, "mean_learning_rate": rate}
        (folder / "checkpoint.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    counts = {"checkpoints": len(found), "steps": steps[-1], "parameters": parameters}
    return Stats(counts=counts, values={"steps": steps, "mean_learning_rates": means})


def mean_rates(steps: list[int], rates: list[tuple[int, float]]) -> list[float]:
    """Mean learning rate over each checkpoint's steps, those after the checkpoint before.

    Args:
        steps: of the checkpoints, increasing.
        rates: (step, learning rate) as logged, possibly not every step: those between lie on a straight line, as those
            of a linear schedule do; those before the first are like it, those after the last too.

    Raises:
        ValueError: a checkpoint without a logged rate.
    """
    logged, values = np.array(sorted(rates), np.float64).reshape(-1, 2).T
    means = []
    for before, step in itertools.pairwise([0, *steps]):
        if not ((before < logged) & (logged <= step)).any():
            raise ValueError(
                f"trainer_state.json: found no learning rate of steps {before + 1} to {step}, expected log_history"
            )
        means.append(math.fsum(np.interp(np.arange(before + 1, step + 1), logged, values).tolist()) / (step - before))
    return means


def read_optimizer(folder: Path, layout: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The moments by `exp_avg.{name}` and `exp_avg_sq.{name}`, float32, for every name of `layout`.

    Args:
        folder: of a checkpoint; `optimizer.bin` is preferred.
        layout: name -> shape of the trainable parameters in the model's order.

    Raises:
        FileNotFoundError: neither file is there.
        ValueError: states that are missing, too many, or of other shapes.
    """
    path = next((folder / name for name in ("optimizer.bin", "optimizer.pt") if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder.name}: found no optimizer.bin or optimizer.pt, expected Adam's moments")
    where = f"{folder.name}/{path.name}"
    held: dict[str, Any] = _load(path, where)
    if not isinstance(held.get("state"), dict) or not held["state"]:
        raise ValueError(f"{where}: found no state, expected that of Adam")
    states: dict[Any, Any] = held["state"]
    if all(isinstance(key, int) for key in states):
        named = _by_number(held, layout, where)
    else:
        named = {_plain(str(key)): value for key, value in states.items()}
    keys = {name: _plain(name) for name in layout}
    odd = sorted(set(named) ^ set(keys.values()))
    if odd:
        raise ValueError(f"{where}: {len(odd)} names differ from the adapter's parameters, first {odd[0]!r}")
    result = {}
    for name, key in keys.items():
        for moment in _MOMENTS:
            value = named[key].get(moment) if isinstance(named[key], dict) else None
            if not are_numbers(value) or value.numel() != math.prod(layout[name]):
                told = list(value.shape) if isinstance(value, torch.Tensor) else "nothing"
                raise ValueError(f"{where}: {moment} of {name} is {told}, expected {list(layout[name])}")
            result[f"{moment}.{name}"] = value.detach().float().reshape(layout[name]).contiguous()
    return result


def _by_number(held: dict[str, Any], layout: Mapping[str, torch.Size], where: str) -> dict[str, Any]:
    """Names for the numbered states.

    The Trainer gives weight decay to all but biases and norms, in a group of its own that comes first; groups of other
    sizes cannot be told apart.
    """
    told = held.get("param_groups", [])
    if not isinstance(told, list) or not all(
        isinstance(group, dict) and isinstance(group.get("params", []), list) for group in told
    ):
        raise ValueError(f"{where}: param_groups is none, expected lists of the parameters' numbers")
    groups = [group.get("params", []) for group in told]
    order = [number for group in groups for number in group]
    if (
        any(type(number) is not int for number in order)
        or sorted(order) != sorted(held["state"])
        or len(order) != len(layout)
    ):
        raise ValueError(
            f"{where}: found {len(held['state'])} states in groups of {[len(group) for group in groups]}, "
            f"expected {len(layout)}, one a trainable parameter"
        )
    decayed = [name for name in layout if not name.endswith("bias")]
    rest = [name for name in layout if name.endswith("bias")]
    filled = [group for group in groups if group]
    if len(filled) == 2 and [len(decayed), len(rest)] != [len(group) for group in filled]:
        raise ValueError(
            f"{where}: found groups of {[len(group) for group in filled]} parameters, expected "
            f"{[len(decayed), len(rest)]} (weights, biases) or one"
        )
    if len(filled) > 2:
        raise ValueError(f"{where}: found {len(filled)} groups of parameters, expected 1 or 2")
    names = [*decayed, *rest] if len(filled) == 2 else list(layout)
    return {_plain(name): held["state"][number] for name, number in zip(names, order, strict=True)}


def _read(folder: Path) -> _Found:
    path = folder / "trainer_state.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder.name}: found no trainer_state.json, expected a Trainer's checkpoint")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        log = [row for row in state["log_history"] if "learning_rate" in row]
        return _Found(
            folder, int(state["global_step"]), [(int(row["step"]), float(row["learning_rate"])) for row in log]
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{folder.name}/trainer_state.json: expected an object with global_step and log_history"
        ) from None


def _layout(model: Path, folder: Path, name: str) -> dict[str, torch.Size]:
    """Name -> shape of the adapter's parameters on the model, in its order; the adapter must hold just these."""
    try:
        layout = {key: value.shape for key, value in trainable(load_adapted(model, folder)).items()}
    except (RuntimeError, ValueError) as error:  # peft's: other shapes, modules that the model has not
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: the adapter does not fit the model: {reason[:200]}") from None
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        found = {_plain(key) for key in file.keys()}  # noqa: SIM118
    odd = sorted(found ^ {_plain(key).replace(".modules_to_save.", ".") for key in layout})
    if odd:  # peft would leave such parameters at their random beginning
        raise ValueError(f"{name}: {len(odd)} names of the adapter differ from the model's, first {odd[0]!r}")
    return layout


def _copy_adapter(source: Path, target: Path) -> None:
    config, weights = source / "adapter_config.json", source / "adapter_model.safetensors"
    if not config.is_file():
        raise FileNotFoundError(f"{source.name}: found no adapter_config.json, expected peft's")
    PeftConfig.from_pretrained(str(source))
    record = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": ""}
    (target / config.name).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if weights.is_file():
        tensors = load_file(weights)
    elif (source / "adapter_model.bin").is_file():
        where = f"{source.name}/adapter_model.bin"
        tensors = {_WRAPPERS.sub("", name): value for name, value in _load(source / "adapter_model.bin", where).items()}
    else:
        raise FileNotFoundError(f"{source.name}: found no adapter_model.safetensors or .bin, expected peft's")
    save_file({name: value.contiguous() for name, value in tensors.items()}, target / weights.name)


def _load(path: Path, where: str) -> dict[str, Any]:
    """Tensors and plain values only: a pickle may hold anything."""
    held = load_plain(path, where)
    if not isinstance(held, dict):
        raise ValueError(f"{where}: found {type(held).__name__}, expected a dictionary")
    return held


def _plain(name: str) -> str:
    """Without what FSDP, checkpointing and compiling put in, and without the adapter's name."""
    return _WRAPPERS.sub("", name).replace(".default.", ".")
