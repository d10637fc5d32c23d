"""Checks of a kernel's arguments against each other, before any launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: What keys, values and queries may be; the references compute float64 in float64, everything else in float32.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Arguments:
    """One call's tensors: a dimension's name is bound by the first tensor that has it, and all are on one device.

    Attributes:
        operation: begins every message.
        sizes: the dimensions known so far, {"B": 2, "D": 64}.
    """

    operation: str
    sizes: dict[str, int] = field(default_factory=dict)
    _device: torch.device | None = None
    _first: str = ""

    def tensor(
        self, name: str, value: Tensor, dims: str, dtypes: Sequence[torch.dtype] | torch.dtype, *, strided: bool = False
    ) -> None:
        """Check one tensor.

        Args:
            name: the argument's.
            value: the argument.
            dims: names of its dimensions, "B Hq S D"; a number stands for itself.
            dtypes: those allowed.
            strided: whether any strides will do but for the last dimension's, which must be 1; else the tensor must be
                contiguous.

        Raises:
            ValueError: naming the argument, what was found and what was expected.
        """
        if not isinstance(value, Tensor):
            raise ValueError(f"{self.operation}: {name} must be a tensor, found {type(value).__name__}")
        allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
        if value.dtype not in allowed:
            expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            found = str(value.dtype).removeprefix("torch.")
            raise ValueError(f"{self.operation}: {name} must be of {expected}, found {found}")
        names = dims.split()
        known = [int(dim) if dim.isdigit() else self.sizes.get(dim) for dim in names]
        shape = tuple(value.shape)
        if len(shape) != len(names) or any(
            want is not None and want != size for want, size in zip(known, shape, strict=True)
        ):
            sizes = ", ".join(f"{dim}={self.sizes[dim]}" for dim in names if dim in self.sizes)
            expected = f"[{', '.join(names)}]" + (f" with {sizes}" if sizes else "")
            raise ValueError(f"{self.operation}: {name} must be {expected}, found {list(shape)}")
        self.sizes |= {dim: size for dim, size in zip(names, shape, strict=True) if not dim.isdigit()}
        if self._device is None:
            self._device, self._first = value.device, name
        elif value.device != self._device:
            raise ValueError(
                f"{self.operation}: {name} must be on {self._device} like {self._first}, found {value.device}"
            )
        if strided and shape and shape[-1] > 1 and value.stride(-1) != 1:
            raise ValueError(
                f"{self.operation}: {name} must be contiguous in its last dimension, found strides {value.stride()}"
            )
        if not strided and not value.is_contiguous():
            raise ValueError(f"{self.operation}: {name} must be contiguous, found strides {value.stride()}")

    def groups(self, query: str = "Hq", key: str = "Hkv") -> int:
        """Query heads a KV head.

        Raises:
            ValueError: the one is no multiple of the other.
        """
        heads, kv_heads = self.sizes[query], self.sizes[key]
        if not kv_heads or heads % kv_heads:
            raise ValueError(f"{self.operation}: {heads} query heads are no multiple of {kv_heads} KV heads")
        return heads // kv_heads

    def require(self, holds: bool, name: str, expected: str, found: object) -> None:
        """Raise a ValueError that names the argument unless `holds`."""
        if not holds:
            raise ValueError(f"{self.operation}: {name} must be {expected}, found {found}")
