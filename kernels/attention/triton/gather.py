"""Gather + RoPE attention: keys are read through their positions, rotated in registers and multiplied at once.

A program takes one tile of rows (the G query heads of a KV head times the Sq queries, packed) and an even share of the
slots that its rows see: rotated query halves stay in registers, and each tile of BLOCK_N slots costs a load of its
positions, of the keys' two halves and the values behind them, and of the slots' cosines and sines, two products for the
scores and one for the output. The tiles beyond the last row's own slot are not visited. Where the rows alone make too
few programs for the GPU (decode), the slots are split; the number of splits follows from M, which the host knows, while
each program reads `count` on the device, so a captured graph stays valid as counts change. Splits are merged by
`combine`; one split writes the result itself.

Shapes: lines = B * Hkv, rows = G * Sq, H = D / 2.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from longloom.kernels.attention.triton.combine import combine
from longloom.kernels.launch import launch, multiprocessors

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


def gather_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    count: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """See `attention.gather.gather_attention`, which checks."""
    batch, heads, steps, size = query.shape
    kv_heads, tokens = key.shape[1:3]
    slots = positions.shape[1]
    rows = heads // kv_heads * steps
    if not query.numel():
        return torch.empty_like(query), torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    block_d = triton.next_power_of_2(size)
    vector = query.element_size() * block_d  # bytes
    exact = query.dtype == torch.float32  # no tensor cores, more registers
    block_m = min(max(16, triton.next_power_of_2(rows)), 128, (16384 if exact else 32768) // vector)
    block_n = 64 if vector <= 128 else 32 if vector <= (256 if exact else 512) else 16
    warps = 8 if exact or block_m * vector >= 16384 else 4
    tiles = triton.cdiv(rows, block_m)
    resident = multiprocessors(query.device) * 8 // warps
    splits = _splits(batch * kv_heads * tiles, resident, triton.cdiv(slots, block_n), max(2, block_m // 8))
    kind = query.dtype if splits == 1 else torch.float32
    output = torch.empty(splits, *query.shape, dtype=kind, device=query.device)
    lse = torch.empty(splits, *query.shape[:3], dtype=torch.float32, device=query.device)
    launch(
        _gather,
        (batch * kv_heads * tiles, splits),
        query,
        key,
        value,
        positions,
        count,
        cos,
        sin,
        output,
        lse,
        scale,
        *key.stride()[:3],
        *value.stride()[:3],
        steps,
        rows,
        kv_heads,
        tokens,
        slots,
        D=size,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        BLOCK_H=max(16, block_d // 2),
        num_warps=warps,
        num_stages=5 if vector <= 256 else 3,  # a position is read ahead of its key: two tiles in flight, or one
    )
    return (output[0], lse[0]) if splits == 1 else combine(output, lse, query.dtype)


@lru_cache(maxsize=4096)
def _splits(programs: int, resident: int, tiles: int, overhead: int) -> int:
    """How many splits end first, taking each tile of slots for equally long; the fewest of those.

    Args:
        programs: without splits.
        resident: programs that run at once.
        tiles: of slots, an upper bound.
        overhead: tiles that a split's start and its partial result, written and read again, are worth.
    """

    def ends(splits: int) -> int:
        return -(-programs * splits // resident) * (-(-tiles // splits) + (overhead if splits > 1 else 0))

    return min(range(1, max(1, min(tiles, 4 * resident // programs)) + 1), key=ends)


@triton.jit
def _gather(
    query,  # [lines, rows, D]
    key,  # [B, Hkv, N, D], of these strides:
    value,  # [B, Hkv, N, D]
    positions,  # [B, M]
    count,  # [B]
    cos,  # [R, H]
    sin,
    output,  # [splits, lines, rows, D]
    lse,  # [splits, lines, rows], base e
    scale,
    key_batch,
    key_head,
    key_token,
    value_batch,
    value_head,
    value_token,
    steps,
    rows,
    kv_heads,
    tokens,
    slots,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    H: tl.constexpr = D // 2
    m_tiles = tl.cdiv(rows, BLOCK_M)
    begin_row = tl.program_id(0) % m_tiles * BLOCK_M
    line = (tl.program_id(0) // m_tiles).to(tl.int64)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    b = line // kv_heads
    positions += b * slots
    key += b * key_batch + line % kv_heads * key_head
    value += b * value_batch + line % kv_heads * value_head
    length = tl.minimum(tl.maximum(tl.load(count + b), 0), slots)

    row = begin_row + tl.arange(0, BLOCK_M)
    h = tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_m = row < rows
    in_h = h < H
    in_d = d < D
    place = length - steps + row % steps  # the rows' own slots; negative: a row that sees nothing
    end_row = tl.minimum(begin_row + BLOCK_M, rows) - 1
    latest = tl.where(end_row // steps == begin_row // steps, end_row % steps, steps - 1)
    tiles = tl.cdiv(tl.maximum(length - steps + latest + 1, 0), BLOCK_N)

    # Both halves of the queries rotated, and scaled for exp2.
    half = (line * rows + row)[:, None] * D + h[None, :]
    turn = place[:, None] * H + h[None, :]
    in_q = in_m[:, None] & in_h[None, :]
    in_turn = in_q & (place >= 0)[:, None]
    x1 = tl.load(query + half, mask=in_q, other=0.0).to(tl.float32) * (scale * _LOG2E)
    x2 = tl.load(query + half + H, mask=in_q, other=0.0).to(tl.float32) * (scale * _LOG2E)
    c = tl.load(cos + turn, mask=in_turn, other=0.0)
    s = tl.load(sin + turn, mask=in_turn, other=0.0)
    q1 = (x1 * c - x2 * s).to(query.dtype.element_ty)
    q2 = (x2 * c + x1 * s).to(query.dtype.element_ty)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for t in range(split * tiles // splits, (split + 1) * tiles // splits):
        slot = t * BLOCK_N + n
        token = tl.load(positions + slot, mask=slot < length, other=-1)
        in_n = (token >= 0) & (token < tokens)
        at = token.to(tl.int64)
        in_k = in_n[None, :] & in_h[:, None]
        k_at = key + at[None, :] * key_token + h[:, None]
        k1 = tl.load(k_at, mask=in_k, other=0.0).to(tl.float32)  # [BLOCK_H, BLOCK_N]
        k2 = tl.load(k_at + H, mask=in_k, other=0.0).to(tl.float32)
        v = tl.load(value + at[:, None] * value_token + d[None, :], mask=in_n[:, None] & in_d[None, :], other=0.0)
        k_turn = slot[None, :] * H + h[:, None]
        in_k_turn = (slot < length)[None, :] & in_h[:, None]
        k_cos = tl.load(cos + k_turn, mask=in_k_turn, other=0.0)
        k_sin = tl.load(sin + k_turn, mask=in_k_turn, other=0.0)
        r1 = (k1 * k_cos - k2 * k_sin).to(q1.dtype)
        r2 = (k2 * k_cos + k1 * k_sin).to(q1.dtype)
        scores = tl.dot(q2, r2, tl.dot(q1, r1, input_precision="ieee"), input_precision="ieee")
        own = tl.where(in_n, slot, slots)  # beyond every row where there is nothing to see
        scores = tl.where(own[None, :] <= place[:, None], scores, float("-inf"))
        peak = tl.maximum(m, tl.max(scores, axis=1))
        base = tl.where(peak == float("-inf"), 0.0, peak)  # rows that see nothing yet
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(m - base)
        l = l * shrink + tl.sum(p, axis=1)  # noqa: E741
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        m = peak
    whole = tl.where(l == 0.0, 1.0, l)
    to = (split * tl.num_programs(0) // m_tiles + line) * rows + row
    out = (acc / whole[:, None]).to(output.dtype.element_ty)
    tl.store(output + to[:, None] * D + d[None, :], out, mask=in_m[:, None] & in_d[None, :])
    tl.store(lse + to, tl.where(l == 0.0, float("-inf"), (m + tl.log2(whole)) * _LN2), mask=in_m)


def specimen(dtype: torch.dtype, size: int) -> None:
    """Launch as `kernels.aot` compiles it: a decode step and a prefill chunk, 8 KV heads of 4 query heads."""
    key = torch.zeros(1, 8, 2048, size, dtype=dtype)
    positions, count = torch.zeros(1, 2048, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    turn = torch.zeros(2048, size // 2)
    for steps in (1, 512):
        query = torch.zeros(1, 32, steps, size, dtype=dtype)
        gather_attention(query, key, key, positions, count, turn, turn, size**-0.5)
