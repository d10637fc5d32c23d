"""Decode at Llama-3.1-8B's shape over full caches and RazorAttention's, against dense attention over the full ones.

Razor keeps 15% of the KV heads whole: of 8 heads a layer, one in four layers of five and two in the fifth. Five such
layers stand for a model: their steps follow each other, and a row tells their mean.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu.harness import Row, Run, close, same
from gpu.peers import decode_peers
from longloom.kernels.attention.compress import compress
from longloom.kernels.attention.decode import decode
from longloom.kernels.attention.pages import PAGE, RaggedKV


@dataclass(frozen=True)
class Sizes:
    """What is measured and checked.

    Attributes:
        ratio_at: the context that Razor is held against the full cache at.
        whole: heads that Razor keeps whole, layer by layer.
        sink, window, part: what Razor keeps of N tokens elsewhere: sink + max(window, N / part).
        far: elements of a page pool in the check of offsets, beyond 32 bits.
        fuzz: random caches checked.
    """

    contexts: tuple[int, ...] = (32_768, 131_072, 524_288)
    batches: tuple[int, ...] = (1, 4, 8, 12, 16)
    ratio_at: int = 131_072
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    whole: tuple[int, ...] = (1, 1, 1, 1, 2)
    sink: int = 4
    window: int = 4000
    part: int = 5
    far: int = (1 << 31) + (1 << 24)
    fuzz: int = 24


def razor_windows(context: int, whole: int, sizes: Sizes) -> Tensor:
    """[1, Hkv] int32 windows as `compress` takes them: -1 for the heads kept whole, which come first."""
    window = max(sizes.window, context // sizes.part)
    return torch.tensor([[-1] * whole + [window] * (sizes.kv_heads - whole)], dtype=torch.int32)


def needed_bytes(query: Tensor, cache: RaggedKV) -> int:
    """What a step must move: slots in use, their pages' numbers, means, the query, the output and its lse."""
    lines, size = cache.host_len.numel(), query.shape[-1]
    moved = 2 * int(cache.host_len.sum()) * size * cache.keys.element_size()
    moved += 4 * (lines + int((-(-cache.host_len // cache.page)).sum()))
    if cache.dropped is not None:
        moved += lines * (2 * size + 1) * 4
    return moved + 2 * query.numel() * query.element_size() + 4 * query.numel() // size


def full_cache(run: Run, batch: int, context: int, sizes: Sizes) -> RaggedKV:
    """Pages in order, so that the pool is a dense [B, Hkv, N, D] too; N a whole number of pages."""
    lines, pages = batch * sizes.kv_heads, context // PAGE
    table = torch.arange(lines * pages, dtype=torch.int32, device=run.device).view(batch, sizes.kv_heads, pages)
    pools = (run.randn(lines * pages, PAGE, sizes.head_dim) for _ in range(2))
    return RaggedKV(*pools, table, torch.full(table.shape[:2], context, dtype=torch.int32, device=run.device))


def repeated(cache: RaggedKV, batch: int) -> RaggedKV:
    """A cache of one row as so many rows, on pages of their own."""
    first = torch.arange(batch, dtype=torch.int32, device=cache.table.device)[:, None, None] * len(cache.keys)
    table = torch.where(cache.table < 0, -1, cache.table + first)
    parts = {name: getattr(cache, name) for name in ("mean_key", "mean_value", "dropped", "kv_len")}
    return RaggedKV(
        cache.keys.repeat(batch, 1, 1),
        cache.values.repeat(batch, 1, 1),
        table,
        **{name: None if part is None else part.repeat(batch, *[1] * (part.ndim - 1)) for name, part in parts.items()},
    )


def measure(run: Run, sizes: Sizes) -> None:
    """Every context and batch, the full cache beside Razor's."""
    full: dict[tuple[int, int], Row] = {}
    razor: dict[tuple[int, int], Row] = {}
    dense: dict[tuple[int, int], Row] = {}
    for context in sizes.contexts:
        size = 2 * context * sizes.kv_heads * sizes.head_dim * 2  # bytes of a row's keys and values
        for batch in sizes.batches:
            at = context, batch
            case = f"{context // 1024}K x {batch}"
            if run.fits(f"{case}, full", size * batch):
                caches = [full_cache(run, batch, context, sizes) for _ in range(run.copies(size * batch))]
                queries = [run.randn(batch, sizes.heads, 1, sizes.head_dim) for _ in caches]
                full[at] = _time(run, f"{case}, full", queries, caches)
                found = run.fastest(f"{case}, full", decode_peers(queries, caches), moved=full[at].bytes, graph=True)
                if found is not None:
                    dense[at] = found
                del caches, queries
        rows = _razor_rows(run, context, sizes)
        for batch in sizes.batches:
            case = f"{context // 1024}K x {batch}, Razor"
            layers = sum(row.bytes() for row in rows) * batch
            if run.fits(case, layers):
                caches = [repeated(row, batch) for row in rows for _ in range(run.copies(layers))]
                queries = [run.randn(batch, sizes.heads, 1, sizes.head_dim) for _ in caches]
                razor[context, batch] = _time(run, case, queries, caches)
                del caches, queries
        del rows
    for name, times in (("full", full), ("Razor", razor)):
        least = min((row.share for row in times.values() if row.share is not None), default=None)
        run.target(f"{name}: least share of copy bandwidth", least, 0.85)
        run.target(f"{name}: time a row at batch 12 and 16 over batch 8", _cliff(times, sizes), 1.1, most=True)
    ratios = [dense[at].seconds / razor[at].seconds for at in razor if at in dense and at[0] == sizes.ratio_at]
    run.target(f"Razor at {sizes.ratio_at // 1024}K over dense: least ratio", min(ratios, default=None), 2.7)


def _razor_rows(run: Run, context: int, sizes: Sizes) -> list[RaggedKV]:
    """One row's cache of each layer."""
    key, value = (run.randn(1, sizes.kv_heads, context, sizes.head_dim) for _ in range(2))
    windows = [razor_windows(context, whole, sizes) for whole in sizes.whole]
    options = {"sink": sizes.sink, "implementation": run.implementation}
    return [compress(key, value, window, start=None, **options) for window in windows]


def _time(run: Run, case: str, queries: Sequence[Tensor], caches: Sequence[RaggedKV]) -> Row:
    scale = queries[0].shape[-1] ** -0.5
    calls = [
        functools.partial(decode, query, cache, scale=scale, implementation=run.implementation)
        for query, cache in zip(queries, caches, strict=True)
    ]
    moved = sum(needed_bytes(query, cache) for query, cache in zip(queries, caches, strict=True)) // len(calls)
    return run.time(case, run.implementation, calls, moved=moved, graph=True)


def _cliff(rows: dict[tuple[int, int], Row], sizes: Sizes) -> float | None:
    """The worst growth of the time a row beyond the middle batch size."""
    middle = sizes.batches[len(sizes.batches) // 2]
    growth = [
        row.seconds / batch * middle / rows[context, middle].seconds
        for (context, batch), row in rows.items()
        if batch > middle and (context, middle) in rows
    ]
    return max(growth, default=None)


def check_long(run: Run, sizes: Sizes) -> None:
    """Two rows of the ratio's length with compensation against dense attention in float64, head by head."""
    n, size = sizes.ratio_at, sizes.head_dim
    lengths = torch.randint(n // 2, n + 1, (2, sizes.kv_heads), dtype=torch.int32)
    cache = ragged(run, lengths, size, dtype=torch.bfloat16, dropped=torch.randint_like(lengths, n))
    query = run.randn(2, sizes.heads, 1, size)
    output, lse = decode(query, cache, scale=size**-0.5, implementation=run.implementation)
    for b in range(2):
        for h in range(sizes.kv_heads):
            group = slice(h * sizes.heads // sizes.kv_heads, (h + 1) * sizes.heads // sizes.kv_heads)
            pages = cache.table[b, h].long()
            key, value = (pool[pages].view(-1, size)[: lengths[b, h]].double() for pool in (cache.keys, cache.values))
            assert cache.mean_key is not None
            assert cache.mean_value is not None
            assert cache.dropped is not None
            key = torch.cat([key, cache.mean_key[b, h, None].double()])
            value = torch.cat([value, cache.mean_value[b, h, None].double()])
            logits = query[b, group, 0].double() @ key.T * size**-0.5
            logits[:, -1] += cache.dropped[b, h].double().log()
            close(output[b, group, 0], logits.softmax(-1) @ value)
            close(lse[b, group, 0], logits.logsumexp(-1), tolerance=1e-5)


def check_far_pages(run: Run, sizes: Sizes) -> None:
    """Pages beyond 2^31 elements of the pool give bitwise what the same pages give in a small pool."""
    pages = sizes.far // (PAGE * sizes.head_dim)
    if not run.fits("far pages", 2 * 2 * sizes.far):
        return
    used = min(64, pages // 2)
    small = ragged(run, torch.full((1, 4), used // 4 * PAGE - 5, dtype=torch.int32), sizes.head_dim)
    pools = []
    for pool in (small.keys, small.values):
        pools.append(torch.full((pages, PAGE, sizes.head_dim), torch.nan, dtype=pool.dtype, device=run.device))
        pools[-1][-len(pool) :] = pool
    big = replace(small, keys=pools[0], values=pools[1], table=small.table + (pages - len(small.keys)))
    query = run.randn(1, 8, 1, sizes.head_dim, dtype=small.keys.dtype)
    results = (decode(query, cache, scale=0.1, implementation=run.implementation) for cache in (small, big))
    same(*results)


def check_fuzz(run: Run, sizes: Sizes) -> None:
    """Random batches, lengths, groups and steps against the reference in float64; two runs are bitwise alike."""
    for trial in range(sizes.fuzz):
        kv_heads, group, size = random.choice([1, 2, 8]), random.choice([1, 3, 4, 8]), random.choice([64, 80, 128])
        dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
        shape = random.randint(1, 17), kv_heads
        lengths = torch.randint(0, random.choice([3, 70, 3000]), shape, dtype=torch.int32)
        dropped = torch.randint(0, 9, shape, dtype=torch.int32) if trial % 2 else None
        cache = ragged(run, lengths, size, dtype=dtype, dropped=dropped)
        query = run.randn(shape[0], kv_heads * group, random.randint(1, 4), size, dtype=dtype)
        exact = replace(cache, keys=cache.keys.double(), values=cache.values.double())
        expected = decode(query.double(), exact, scale=size**-0.5, implementation="reference")
        with run.no_waits():
            found, again = (decode(query, cache, scale=size**-0.5, implementation=run.implementation) for _ in range(2))
        close(found[0], expected[0])
        close(found[1], expected[1], tolerance=1e-3)
        same(found, again)


def ragged(
    run: Run, lengths: Tensor, head_dim: int, *, dtype: torch.dtype = torch.bfloat16, dropped: Tensor | None = None
) -> RaggedKV:
    """Random keys and values on pages in random order."""
    pages = -(-lengths // PAGE)
    table = torch.full((*lengths.shape, max(1, int(pages.max()))), -1, dtype=torch.int32)
    used = torch.arange(table.shape[2]) < pages[..., None]
    table[used] = torch.randperm(int(used.sum())).int()
    keys, values = (run.randn(max(1, int(used.sum())), PAGE, head_dim, dtype=dtype) for _ in range(2))
    means: dict[str, Tensor] = {}
    if dropped is not None:
        means = {name: run.randn(*lengths.shape, head_dim, dtype=torch.float32) for name in ("mean_key", "mean_value")}
        means["dropped"] = dropped.to(run.device)
    return RaggedKV(keys, values, table.to(run.device), lengths.to(run.device), **means)


CHECKS: dict[str, Callable[[Run, Sizes], None]] = {
    "128K against float64": check_long,
    "pages beyond 2^31 elements": check_far_pages,
    "random ragged caches": check_fuzz,
}
