"""What the device gives at most: bytes of a large copy, operations of a large matrix product."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gpu.timing import Meter


class Ceilings(NamedTuple):
    """Rates that this device reached in this run.

    Attributes:
        copy: bytes read and written a second by a copy within the device's memory.
        matmul: floating-point operations a second of a bfloat16 product of random matrices.
    """

    copy: float
    matmul: float

    def floor(self, moved: int, flops: int) -> float:
        """Seconds that no version of the work can do without: the slower of moving the bytes and of computing."""
        return max(moved / self.copy, flops / self.matmul)


def measure(device: torch.device, meter: Meter, *, copy_bytes: int = 1 << 32, matmul: int = 8192) -> Ceilings:
    """Measure both.

    Args:
        device: where.
        meter: by what.
        copy_bytes: size of what is copied, many times the cache.
        matmul: rows and columns of the matrices.
    """
    source, target = torch.randint(256, (2, copy_bytes), dtype=torch.uint8, device=device)
    a, b = torch.randn(2, matmul, matmul, dtype=torch.bfloat16, device=device)
    copied = meter.seconds([lambda: target.copy_(source)]).seconds
    multiplied = meter.seconds([lambda: a @ b]).seconds
    return Ceilings(2 * copy_bytes / copied, 2 * matmul**3 / multiplied)
