"""Which implementation runs a kernel's work, chosen by what it can do; refusals say why, and what ran is recorded.

The order is fixed and nothing is measured at run time, so equal calls take equal ways.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_ran: ContextVar[Counter[str] | None] = ContextVar("ran", default=None)
_recording: ContextVar[bool] = ContextVar("recording", default=False)

#: What the Triton kernels compute in; sums are float32.
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

#: Head sizes of the Triton kernels; any whole number between, by masking.
TRITON_HEAD_SIZES = range(16, 257)


def choose(operation: str, candidates: Mapping[str, str | None], implementation: str | None) -> str:
    """The implementation to run.

    Args:
        operation: the kernel's name, for messages and the record.
        candidates: the implementations, the preferred one first, each with the reason why it cannot do this work, or
            None if it can.
        implementation: the one asked for; None: the first that can.

    Raises:
        ValueError: an unknown implementation, or one that cannot do this work.
    """
    if implementation is None:
        implementation = next(name for name, reason in candidates.items() if reason is None)
    elif implementation not in candidates:
        known = ", ".join(candidates)
        raise ValueError(f"{operation}: implementation must be one of {known}, found {implementation!r}")
    elif (reason := candidates[implementation]) is not None:
        raise ValueError(f"{operation}: implementation {implementation!r} cannot do this: {reason}")
    if (ran := _ran.get()) is not None:
        ran[f"{operation}:{implementation}"] += 1
    return implementation


@contextmanager
def record_choices() -> Iterator[Counter[str]]:
    """Count what runs within: {"decode:triton": 32, "prefill:sdpa": 32}."""
    ran: Counter[str] = Counter()
    token = _ran.set(ran)
    try:
        yield ran
    finally:
        _ran.reset(token)


def triton_refusal(tensor: Tensor, *, asked: bool, head_dim: int | None = None) -> str | None:
    """Why the Triton kernels cannot work on tensors like this one; None: they can.

    On the CPU they run under Triton's interpreter (TRITON_INTERPRET=1), which is for checks: only when asked for.

    Args:
        tensor: one of the inputs, whose type counts if it is a floating one.
        asked: whether the caller asked for Triton.
        head_dim: D, where the kernel has one.
    """
    if tensor.is_floating_point() and tensor.dtype not in TRITON_DTYPES:
        return f"Triton kernels take float16, bfloat16 or float32, found {str(tensor.dtype).removeprefix('torch.')}"
    if head_dim is not None and head_dim not in TRITON_HEAD_SIZES:
        return f"Triton kernels take head sizes {TRITON_HEAD_SIZES[0]} to {TRITON_HEAD_SIZES[-1]}, found {head_dim}"
    interpreted = asked and (_recording.get() or os.environ.get("TRITON_INTERPRET") == "1")
    if not (tensor.is_cuda or interpreted):
        return f"Triton kernels need a CUDA device, found {tensor.device}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install 'longloom[gpu]')"
    return None


@contextmanager
def recording_launches() -> Iterator[None]:
    """Let Triton be asked for on CPU tensors: launches are to be compiled, not run (`kernels.launch`)."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)
