"""Compression of 128K prompts into ragged pages, against slices and means by torch."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gpu.harness import Run, close, same
from longloom.kernels.attention.compress import compress
from longloom.kernels.attention.pages import RaggedKV


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked; `far` elements of keys in the check of offsets, beyond 32 bits."""

    context: int = 131_072
    batch: int = 4
    kv_heads: int = 8
    head_dim: int = 128
    sink: int = 4
    window: int = 26_214
    far: int = (1 << 31) + (1 << 27)
    fuzz: int = 16


def windows(sizes: Sizes, batch: int) -> Tensor:
    """[B, Hkv]: one head in eight keeps everything."""
    window = torch.full((batch, sizes.kv_heads), sizes.window, dtype=torch.int32)
    window[:, 0] = -1
    return window


def measure(run: Run, sizes: Sizes) -> None:
    """A whole call: the pages are counted and taken, then filled in one pass."""
    shape = sizes.batch, sizes.kv_heads, sizes.context, sizes.head_dim
    key, value = (run.randn(*shape) for _ in range(2))
    window = windows(sizes, sizes.batch)
    call = functools.partial(
        compress, key, value, window, sink=sizes.sink, start=None, implementation=run.implementation
    )
    cache = call()
    kept = 2 * int(cache.host_len.sum()) * sizes.head_dim * key.element_size()
    moved = 2 * key.numel() * key.element_size() + kept + 8 * sizes.head_dim * window.numel()
    ratio = 2 * key.numel() * key.element_size() / cache.bytes()
    case = f"{sizes.context // 1024}K x {sizes.batch}, {ratio:.2f} times smaller"
    del cache

    def plain() -> list[Tensor]:
        behind = sizes.context - sizes.window
        found = []
        for part in (key, value):
            found.append(part[:, :1].clone())
            found.append(torch.cat([part[:, 1:, : sizes.sink], part[:, 1:, behind:]], dim=2))
            found.append(part[:, 1:, sizes.sink : behind].mean(dim=2, dtype=torch.float32))
        return found

    run.time(case, run.implementation, [call], moved=moved, peak=True)
    run.fastest(case, {"slices and means": lambda: [plain]}, moved=moved, peak=True)


def slots(cache: RaggedKV, pool: Tensor, row: int, head: int) -> Tensor:
    """What a head keeps [n, D], in order."""
    pages = cache.table[row, head].long()
    return pool[pages].view(-1, pool.shape[2])[: int(cache.host_len[row, head])]


def check_long(run: Run, sizes: Sizes) -> None:
    """A prompt beyond 2^31 elements where there is room: what is kept bitwise, the means in float64."""
    far = sizes.far // (sizes.kv_heads * sizes.head_dim)
    tokens = far if run.fits("far prompt", 8 * sizes.far) else sizes.context
    key, value = (run.randn(1, sizes.kv_heads, tokens, sizes.head_dim) for _ in range(2))
    cache = compress(key, value, windows(sizes, 1), sink=sizes.sink, start=None, implementation=run.implementation)
    behind = tokens - sizes.window
    assert cache.mean_key is not None
    assert cache.mean_value is not None
    for part, pool, mean in ((key, cache.keys, cache.mean_key), (value, cache.values, cache.mean_value)):
        same([slots(cache, pool, 0, 0)], [part[0, 0]])
        for h in range(1, sizes.kv_heads):
            same([slots(cache, pool, 0, h)], [torch.cat([part[0, h, : sizes.sink], part[0, h, behind:]])])
            close(mean[0, h], part[0, h, sizes.sink : behind].mean(dim=0, dtype=torch.float64), tolerance=1e-4)


def check_fuzz(run: Run, sizes: Sizes) -> None:
    """Random windows, paddings and options against the reference; two runs are bitwise alike."""
    for trial in range(sizes.fuzz):
        batch, heads, size = random.randint(1, 4), random.choice([1, 2, 8]), random.choice([64, 80, 128])
        tokens = random.choice([7, 300, 5000])
        dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
        key, value = (run.randn(batch, tokens, heads, size, dtype=dtype).transpose(1, 2) for _ in range(2))
        window = torch.randint(1, tokens + 9, (batch, heads), dtype=torch.int32)
        window[torch.rand(window.shape) < 0.2] = -1
        start = torch.randint(0, tokens + 1, (batch,), dtype=torch.int32) if trial % 2 else None
        options: dict[str, Any] = {
            "sink": random.randint(0, 9),
            "start": start,
            "fold": trial % 3 == 2,
            "page": random.choice([16, 64]),
        }
        wanted = compress(key, value, window, implementation="reference", **options)
        ours = options | {"implementation": run.implementation}
        with run.no_waits():
            found, again = (compress(key, value, window, **ours) for _ in range(2))
        same(kept(found), kept(again))
        assert found.mean_key is not None
        assert found.mean_value is not None
        assert wanted.mean_key is not None
        assert wanted.mean_value is not None
        close(found.mean_key, wanted.mean_key, tolerance=1e-4)
        close(found.mean_value, wanted.mean_value, tolerance=1e-4)
        for b in range(batch):
            for h in range(heads):
                same(
                    [slots(found, pool, b, h) for pool in (found.keys, found.values)],
                    [slots(wanted, pool, b, h) for pool in (wanted.keys, wanted.values)],
                )


def kept(cache: RaggedKV) -> list[Tensor]:
    """The cache's tensors on the device, pages' ends behind the last slots left out."""
    rows, heads = cache.host_len.shape
    pools = [slots(cache, pool, b, h) for pool in (cache.keys, cache.values) for b in range(rows) for h in range(heads)]
    rest = [getattr(cache, part.name) for part in fields(cache) if part.name not in ("keys", "values")]
    return pools + [part for part in rest if isinstance(part, Tensor)]


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {
    "a long prompt": check_long,
    "random windows and paddings": check_fuzz,
}
