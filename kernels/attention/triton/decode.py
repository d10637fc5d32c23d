"""Split-KV decode over ragged pages in one launch, balanced whatever the lengths, and its combine.

The T tiles of all rows and heads stand in one line; program p of P takes the tiles from p*T/P to (p+1)*T/P, be they of
one head or of several. P follows from the number of multiprocessors, not from the lengths: there is no work list to
build, no wait for the device, no cliff in the batch size, and a captured graph stays valid while lengths grow within
the pool. Each (program, head) pair writes one partial result into row p + head of a buffer of P + B * Hkv rows: along
the line either p or the head grows, so no two pairs share a row.

Shapes: M = G * nq rows of a KV head, R = P + B * Hkv partial results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longloom.kernels.attention.pages import RaggedKV
from longloom.kernels.launch import launch, multiprocessors

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


def decode(query: Tensor, cache: RaggedKV, scale: float, alibi: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `attention.decode.decode`, which checks."""
    batch, heads, steps, size = query.shape
    kv_heads = cache.kv_len.shape[1]
    lines, rows = batch * kv_heads, heads // kv_heads * steps
    output = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    if not query.numel():
        return output, lse
    # Tiles of 16 KiB of keys, and as many of values, whatever the type and the head size.
    vector = query.element_size() * triton.next_power_of_2(size)
    block_n = min(cache.page, 64, max(16, 16384 // vector))
    block_m = min(max(16, triton.next_power_of_2(rows)), block_n)
    programs = (4 if vector <= 128 else 2) * multiprocessors(query.device)
    partial = torch.empty(programs + lines, rows, size, dtype=torch.float32, device=query.device)
    partial_lse = torch.empty(programs + lines, rows, dtype=torch.float32, device=query.device)
    constants = {"BLOCK_N": block_n, "BLOCK_H": triton.next_power_of_2(lines), "BLOCK_D": triton.next_power_of_2(size)}
    launch(
        _decode,
        (programs, triton.cdiv(rows, block_m)),
        query,
        cache.keys,
        cache.values,
        cache.table,
        cache.kv_len,
        cache.mean_key,
        cache.mean_value,
        cache.dropped,
        alibi,
        partial,
        partial_lse,
        scale,
        steps,
        rows,
        lines,
        kv_heads,
        cache.table.shape[2],
        D=size,
        PAGE=cache.page,
        BLOCK_M=block_m,
        **constants,
        num_warps=8 if query.dtype == torch.float32 and vector <= 512 else 4,
        num_stages=6,  # the page's number comes a step ahead of its page: two pages are in flight
    )
    launch(
        _combine,
        (rows, lines),  # CUDA takes 65,535 programs along the second axis; of rows there may be more
        partial,
        partial_lse,
        cache.kv_len,
        output,
        lse,
        rows,
        lines,
        programs,
        D=size,
        **constants,
        PARTS=32,
        num_warps=4,
        num_stages=1,
    )
    return output, lse


@triton.jit
def _tiles(kv_len, lines, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr):
    """Tiles of each line [BLOCK_H] int64: at least one, for a head may hold its compensation slot alone."""
    line = tl.arange(0, BLOCK_H)
    length = tl.load(kv_len + line, mask=line < lines, other=0)
    return tl.where(line < lines, tl.maximum(tl.cdiv(length, BLOCK_N), 1), 0).to(tl.int64)


@triton.jit
def _decode(
    query,  # [lines, M, D]
    keys,  # [P, PAGE, D]
    values,  # [P, PAGE, D]
    table,  # [lines, max_pages]
    kv_len,  # [lines]
    mean_key,  # [lines, D] or None
    mean_value,
    dropped,  # [lines]
    alibi,  # [Hq] or None
    partial,  # [R, M, D]
    partial_lse,  # [R, M], base 2
    scale,
    steps,
    rows,
    lines,
    kv_heads,
    max_pages,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    tiles = _tiles(kv_len, lines, BLOCK_N, BLOCK_H)
    ends = tl.cumsum(tiles, axis=0)
    total = tl.sum(tiles, axis=0)
    tile = program * total // programs
    last = (program + 1) * total // programs

    m_row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_m = m_row < rows
    in_d = d < D
    later = steps - 1 - m_row % steps  # queries behind this one in the step
    line = tl.sum((ends <= tile).to(tl.int32), axis=0)
    while tile < last:
        first = tl.sum(tl.where(tl.arange(0, BLOCK_H) < line, tiles, 0), axis=0)
        stop = tl.minimum(last, first + tl.sum(tl.where(tl.arange(0, BLOCK_H) == line, tiles, 0), axis=0))
        length = tl.load(kv_len + line)
        place = (line.to(tl.int64) * rows + m_row)[:, None] * D + d[None, :]
        q = tl.load(query + place, mask=in_m[:, None] & in_d[None, :], other=0.0)
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        if dropped is not None:
            # The mean of N_d tokens is a slot like another with log N_d on its logit: the sums begin with it.
            count = tl.load(dropped + line)
            if (count > 0) & (tile == first):
                mean = tl.load(mean_key + line * D + d, mask=in_d, other=0.0)
                m = tl.sum(q.to(tl.float32) * mean[None, :], axis=1) * scale * _LOG2E + tl.log2(count.to(tl.float32))
                l += 1.0  # noqa: E741
                acc += tl.load(mean_value + line * D + d, mask=in_d, other=0.0)[None, :]
        if alibi is not None:
            head = (line % kv_heads) * (rows // steps) + m_row // steps
            slope = tl.load(alibi + head, mask=in_m, other=0.0) * _LOG2E
        for t in range((tile - first).to(tl.int32), (stop - first).to(tl.int32)):
            slot = t * BLOCK_N
            page = tl.load(table + line.to(tl.int64) * max_pages + slot // PAGE, mask=slot < length, other=0)
            start = (page.to(tl.int64) * PAGE + slot % PAGE) * D
            in_n = slot + n < length
            k = tl.load(keys + start + n[None, :] * D + d[:, None], mask=in_n[None, :] & in_d[:, None], other=0.0)
            v = tl.load(values + start + n[:, None] * D + d[None, :], mask=in_n[:, None] & in_d[None, :], other=0.0)
            s = tl.dot(q, k, input_precision="ieee") * (scale * _LOG2E)
            distance = (slot + n)[None, :] - (length - 1 - later)[:, None]
            if alibi is not None:
                s += slope[:, None] * distance
            s = tl.where(distance <= 0, s, float("-inf"))
            peak = tl.maximum(m, tl.max(s, axis=1))
            base = tl.where(peak == float("-inf"), 0.0, peak)  # rows that see nothing yet
            p = tl.exp2(s - base[:, None])
            shrink = tl.exp2(m - base)
            l = l * shrink + tl.sum(p, axis=1)  # noqa: E741
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
            m = peak
        part = (program + line) * rows + m_row
        whole = tl.where(l == 0.0, 1.0, l)
        tl.store(partial + part[:, None] * D + d[None, :], acc / whole[:, None], mask=in_m[:, None] & in_d[None, :])
        tl.store(partial_lse + part, tl.where(l == 0.0, float("-inf"), m + tl.log2(whole)), mask=in_m)
        tile = stop
        line += 1


@triton.jit
def _combine(
    partial,  # [R, M, D]
    partial_lse,  # [R, M], base 2
    kv_len,  # [lines]
    output,  # [lines, M, D]
    lse,  # [lines, M], base e
    rows,
    lines,
    programs,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0)
    line = tl.program_id(1)
    tiles = _tiles(kv_len, lines, BLOCK_N, BLOCK_H)
    total = tl.sum(tiles, axis=0)
    first = tl.sum(tl.where(tl.arange(0, BLOCK_H) < line, tiles, 0), axis=0)
    behind = first + tl.sum(tl.where(tl.arange(0, BLOCK_H) == line, tiles, 0), axis=0)
    # The programs that hold this line's first to last tile; some between hold none when there are few tiles.
    begin = ((first + 1) * programs - 1) // total
    end = (behind * programs - 1) // total + 1
    d = tl.arange(0, BLOCK_D)
    m = float("-inf")
    l = 0.0  # noqa: E741
    acc = tl.zeros([BLOCK_D], tl.float32)
    for start in range(begin, end, PARTS):
        program = start + tl.arange(0, PARTS)
        held = (program < end) & (program * total // programs < (program + 1) * total // programs)
        part = (program + line) * rows + row
        this = tl.load(partial_lse + part, mask=held, other=float("-inf"))
        o = tl.load(partial + part[:, None] * D + d[None, :], mask=held[:, None] & (d < D)[None, :], other=0.0)
        peak = tl.maximum(m, tl.max(this, axis=0))
        base = tl.where(peak == float("-inf"), 0.0, peak)
        shrink = tl.exp2(m - base)
        weight = tl.exp2(this - base)
        l = l * shrink + tl.sum(weight, axis=0)  # noqa: E741
        acc = acc * shrink + tl.sum(o * weight[:, None], axis=0)
        m = peak
    whole = tl.where(l == 0.0, 1.0, l)
    place = line.to(tl.int64) * rows + row
    tl.store(output + place * D + d, (acc / whole).to(output.dtype.element_ty), mask=d < D)
    tl.store(lse + place, tl.where(l == 0.0, float("-inf"), (m + tl.log2(whole)) * _LN2))


def specimen(dtype: torch.dtype, size: int) -> None:
    """Launch once, as `kernels.aot` compiles it: 2 rows, 8 KV heads of 4 query heads, with compensation."""
    pool = torch.zeros(16, 64, size, dtype=dtype)
    cache = RaggedKV(
        pool,
        pool.clone(),
        torch.arange(16, dtype=torch.int32).view(2, 8, 1),
        torch.full((2, 8), 64, dtype=torch.int32),
        torch.zeros(2, 8, size),
        torch.zeros(2, 8, size),
        torch.ones(2, 8, dtype=torch.int32),
    )
    decode(torch.zeros(2, 32, 1, size, dtype=dtype), cache, size**-0.5, None)
