"""Head probe: one pass over the causal key tiles for the softmax's denominator, then the few entries that are scored.

A program takes one query head and one tile of rows and keeps their log-sum-exp in registers. The entries it then needs
lie on diagonals: for an offset and m, row after row meets key after key, so each is a rowwise product of the tile of
queries with a contiguous tile of keys. The sums go to one place for each (head, tile, offset) and are added in a fixed
order. The G query heads of a KV head are not packed into one tile: rows are plenty here, so a tile of M rows reads the
keys once for M rows either way; instead they are neighbours in the grid and meet in the L2 cache. Rows of the first
period score nothing and are not visited; the longest rows start first.

Shapes: O offsets, N = ceil((T - 1 - period) / BLOCK_M) tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from longloom.kernels.launch import launch

_LOG2E = tl.constexpr(1.4426950408889634)


def head_probe(query: Tensor, key: Tensor, period: int, scale: float, offsets: Sequence[int]) -> Tensor:
    """See `attention.head_probe.head_probe`, which checks."""
    heads, tokens, size = query.shape
    if not heads:
        return torch.zeros(0, len(offsets), device=query.device)
    wide = triton.next_power_of_2(size) > 128
    if query.dtype == torch.float32:  # its products are split in three, and the parts of q take registers
        block_m, block_n, stages = (16, 32, 2) if wide else (32, 64, 2)
    else:
        block_m, block_n, stages = (64 if wide else 128), 64, 3
    tiles = triton.cdiv(tokens - 1 - period, block_m)
    partial = torch.empty(heads, tiles, len(offsets), dtype=torch.float32, device=query.device)
    launch(
        _head_probe,
        (heads, tiles),
        query,
        key,
        torch.tensor(list(offsets), dtype=torch.int32).to(query.device, non_blocking=True),
        partial,
        scale,
        tokens,
        period,
        len(offsets),
        heads // key.shape[0],
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        D=size,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=triton.next_power_of_2(size),
        num_warps=8,
        num_stages=stages,
    )
    return partial.sum(dim=1) / (tokens - 1 - period)


@triton.jit
def _head_probe(
    query,  # [Hq, T, D]
    key,  # [Hkv, T, D]
    offsets,  # [O]
    partial,  # [Hq, N, O]
    scale,
    tokens,
    period,
    count,
    group,
    query_head,  # strides
    query_row,
    key_head,
    key_row,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    first = 1 + period + tile * BLOCK_M
    r = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    row = first + r
    in_d = d < D
    queries = query + head * query_head + row.to(tl.int64)[:, None] * query_row + d[None, :]
    keys = key + head // group * key_head
    q = tl.load(queries, mask=(row < tokens)[:, None] & in_d[None, :], other=0.0)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    for start in range(0, tl.minimum(first + BLOCK_M, tokens), BLOCK_N):
        at = keys + (start + n).to(tl.int64)[None, :] * key_row + d[:, None]
        k = tl.load(at, mask=(start + n < tokens)[None, :] & in_d[:, None], other=0.0)
        s = tl.dot(q, k, input_precision="tf32x3") * (scale * _LOG2E)
        s = tl.where(start + n[None, :] <= row[:, None], s, float("-inf"))
        peak = tl.maximum(m, tl.max(s, axis=1))  # finite from the first tile on: every row sees column 0
        l = l * tl.exp2(m - peak) + tl.sum(tl.exp2(s - peak[:, None]), axis=1)  # noqa: E741
        m = peak
    lse = m + tl.log2(l)

    occurrences = (tl.minimum(first + BLOCK_M, tokens) - 2) // period  # of the tile's last row
    for o in range(count):
        offset = tl.load(offsets + o)
        total = tl.zeros([BLOCK_M], tl.float32)
        for back in range(1, occurrences + 1):
            last = row - back * period  # column of the occurrence; 0 is BOS
            seen = (last >= 1) & (row < tokens)
            at = keys + (last + offset).to(tl.int64)[:, None] * key_row + d[None, :]
            k = tl.load(at, mask=seen[:, None] & in_d[None, :], other=0.0)
            # Loaded again: held since the loop above, q would take registers.
            again = tl.load(queries, mask=seen[:, None] & in_d[None, :], other=0.0)
            s = tl.sum(again.to(tl.float32) * k.to(tl.float32), axis=1) * (scale * _LOG2E)
            total += tl.where(seen, tl.exp2(s - lse), 0.0)
        tl.store(partial + (head * tl.num_programs(1) + tile) * count + o, tl.sum(total, axis=0))


def specimen(dtype: torch.dtype, size: int) -> None:
    """Launch once, as `kernels.aot` compiles it: 32 query heads, 8 KV heads."""
    head_probe(torch.zeros(32, 512, size, dtype=dtype), torch.zeros(8, 512, size, dtype=dtype), 96, size**-0.5, (0, 1))
