"""A step's append to all heads, growing and folding, against plain indexing by torch."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpu.compress import kept
from gpu.harness import Run, close, same
from longloom.kernels.attention.append import append
from longloom.kernels.attention.compress import compress
from longloom.kernels.attention.pages import RaggedKV


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked; `context` tokens before the first step."""

    context: int = 8192
    batch: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    fuzz: int = 12


def measure(run: Run, sizes: Sizes) -> None:
    """One token a row: growing caches as Python calls it, the host's share and the pool's growth included; folding
    ones, which never grow, in a graph."""
    shape = sizes.batch, sizes.kv_heads, sizes.context, sizes.head_dim
    prompt = [run.randn(*shape) for _ in range(2)]
    token = [run.randn(*shape[:2], 1, sizes.head_dim) for _ in range(2)]
    lines = sizes.batch * sizes.kv_heads
    vector = 2 * lines * sizes.head_dim * token[0].element_size()  # keys and values of a step
    for name, fold in (("growing", False), ("folding", True)):
        window = torch.full(shape[:2], sizes.context // 4 if fold else -1, dtype=torch.int32)
        cache = compress(*prompt, window, sink=4, start=None, fold=fold, implementation=run.implementation)
        call = functools.partial(append, cache, *token, implementation=run.implementation)
        means = 2 * 2 * lines * sizes.head_dim * 4  # float32, read and written
        moved = 3 * vector + means if fold else 2 * vector
        run.time(f"{lines} heads, {name}", run.implementation, [call], moved=moved, graph=fold)
    place = torch.arange(lines, device=run.device) * sizes.context
    pools = [part.view(-1, sizes.head_dim) for part in prompt]

    def plain() -> None:
        for pool, part in zip(pools, token, strict=True):
            pool.index_copy_(0, place, part.view(lines, -1))

    run.fastest(f"{lines} heads, growing", {"index_copy_ alone": lambda: [plain]}, moved=2 * vector)


def check_steps(run: Run, sizes: Sizes) -> None:
    """Some steps of several tokens, growing and folding, against the reference on a copy of the cache."""
    for _ in range(sizes.fuzz):
        batch, heads, size = random.randint(1, 4), random.choice([1, 2, 8]), random.choice([64, 80, 128])
        dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
        tokens, sink = random.choice([9, 200]), random.randint(0, 4)
        prompt = [run.randn(batch, heads, tokens, size, dtype=dtype) for _ in range(2)]
        window = torch.randint(1, 150, (batch, heads), dtype=torch.int32)
        window[torch.rand(window.shape) < 0.3] = -1
        fold = random.random() < 0.5
        caches: list[RaggedKV] = [
            compress(*prompt, window, sink=sink, start=None, fold=fold, implementation=way)
            for way in (run.implementation, "reference")
        ]
        for steps in (1, 1, 7, 90, 1):
            new = [run.randn(batch, heads, steps, size, dtype=dtype) for _ in range(2)]
            with run.no_waits():
                append(caches[0], *new, implementation=run.implementation)
            append(caches[1], *new, implementation="reference")
        found, wanted = caches
        for mean in ("mean_key", "mean_value"):
            close(getattr(found, mean), getattr(wanted, mean), tolerance=1e-4)
            setattr(found, mean, getattr(wanted, mean))
        same(kept(found), kept(wanted))
        same([found.host_len, found.host_table], [found.kv_len.cpu(), found.table.cpu()])


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {"random steps": check_steps}
