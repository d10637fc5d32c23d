"""Launches of Triton kernels, which can also be compiled for a GPU that is not there instead of being run.

Importing this module imports triton.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from longloom.kernels.dispatch import recording_launches

#: Streaming multiprocessors of an H100 or H200, assumed when compiling for a GPU that is not there.
_MULTIPROCESSORS = 132

#: And under the interpreter, which takes one program after the other.
_INTERPRETED = 2


@dataclass
class Compiled:
    """Launches that were compiled instead of run: (name, triton's compiled kernel), each distinct one once."""

    capability: int
    kernels: dict[str, Any] = field(default_factory=dict)


_compiling: ContextVar[Compiled | None] = ContextVar("compiling", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run a Triton kernel on the device of its first tensor, or compile it within `compile_launches`.

    Args:
        kernel: a function under `triton.jit`.
        grid: programs along up to three axes, none of them 0.
        args: its positional arguments.
        options: its constexprs by name, and num_warps, num_stages.
    """
    compiling = _compiling.get()
    if compiling is not None:
        compiled = kernel.warmup(*args, grid=grid, **options)
        compiling.kernels[compiled.hash] = compiled
        return
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*args, **options)


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device: what a launch is sized by."""
    if device.type != "cuda":
        return _INTERPRETED if _compiling.get() is None else _MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@contextmanager
def compile_launches(capability: int) -> Iterator[Compiled]:
    """Compile every launch within for GPUs of this compute capability (80, 90) and run none; tensors lie on the CPU.

    Needs a process of its own, without TRITON_INTERPRET: afterwards Triton still takes this GPU for its own. What the
    launches would have written is not there.
    """
    compiled = Compiled(capability)
    triton.runtime.driver.set_active(_AbsentGPU(capability))
    token = _compiling.set(compiled)
    try:
        with recording_launches():
            yield compiled
    finally:
        _compiling.reset(token)


class _AbsentGPU:
    """What Triton's just-in-time compiler asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target
