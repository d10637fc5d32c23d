"""Merging parts of one softmax: a decode step's few rows, and a chunk's many."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpu.harness import Run, close, same
from longloom.kernels.attention.combine import combine


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked: so many parts of [B, Hq, S, D]."""

    parts: int = 3
    shapes: tuple[tuple[int, int, int, int], ...] = ((16, 32, 1, 128), (1, 32, 8192, 128))


def measure(run: Run, sizes: Sizes) -> None:
    """Both shapes, the small one in a graph."""
    for shape in sizes.shapes:
        rows = shape[0] * shape[1] * shape[2]
        moved = (sizes.parts + 1) * rows * (2 * shape[3] + 4)
        sets = [
            (run.randn(sizes.parts, *shape), run.randn(sizes.parts, *shape[:3], dtype=torch.float32))
            for _ in range(run.copies(moved))
        ]
        calls = [functools.partial(combine, *given, implementation=run.implementation) for given in sets]
        run.time(f"{sizes.parts} parts of {list(shape)}", run.implementation, calls, moved=moved, graph=True)


def check_parts(run: Run, sizes: Sizes) -> None:
    """Against float64, with parts that have seen nothing and hold NaN; two runs are bitwise alike."""
    for shape in sizes.shapes:
        outputs = run.randn(sizes.parts, *shape)
        lse = run.randn(sizes.parts, *shape[:3], dtype=torch.float32) * 9
        blind = torch.rand(lse.shape, device=run.device) < 0.2
        lse[blind], outputs[blind] = -torch.inf, torch.nan
        with run.no_waits():
            found, again = (combine(outputs, lse, implementation=run.implementation) for _ in range(2))
        same(found, again)
        total = lse.double().logsumexp(0)
        weights = (lse.double() - total.clamp(min=-1e300)).exp()
        close(found[0], (outputs.double().masked_fill(blind[..., None], 0) * weights[..., None]).sum(0))
        close(found[1], total, tolerance=1e-5)


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {"parts that have seen nothing": check_parts}
