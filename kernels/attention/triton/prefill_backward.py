"""Gradients of prefill: dq in one kernel, dk and dv in another; each tile has one program, so there are no atomics.

    delta = rowsum(do * o),  p = e^{s - lse},  ds = p * (do v^T - delta)
    dq = scale * ds k,  dk = scale * ds^T q,  dv = p^T do

The first kernel visits the tiles of keys as the forward kernel does, and leaves delta for the second. There a program
takes BLOCK_N keys of one KV head and visits the tiles of (token, query head) rows that see them: from the keys' own
tokens to the end of their window, or of the row where a sink is among them. So the sum over the G query heads is a sum
over rows. Programs begin with the first keys, which most rows see.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from longloom.kernels.attention.triton.prefill import LOG2E, hide, key_tiles, masked_tile, reach, row_tile, tiles_of
from longloom.kernels.launch import launch


def prefill_backward(
    d_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    window: Tensor | None,
    sink: Tensor | None,
    alibi: Tensor | None,
    output: Tensor,
    lse: Tensor,
    scale: float,
    longest_q: int,
    longest_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, contiguous, of their dtype.

    Args:
        d_output: [Tq, Hq, D].
        output, lse: what the forward kernel wrote. The others: see `attention.prefill.prefill`; all on one device.
        longest_q, longest_k: queries and keys of the longest row.
    """
    tokens, heads, size = query.shape
    kv_heads, batch = key.shape[1], len(cu_q) - 1
    dq, dk, dv = (torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in (query, key, value))
    if not query.numel():
        return dq, dk.zero_(), dv.zero_()
    delta = torch.empty_like(lse)
    group = heads // kv_heads
    constants = {"G": group, "D": size, "BLOCK_D": triton.next_power_of_2(size)}
    strides = (*query.stride()[:2], *key.stride()[:2], *value.stride()[:2])
    inputs = (query, key, value, cu_q, cu_k, window, sink, alibi, lse, delta, d_output.contiguous())

    options = configuration(query.dtype, size)
    tiles = triton.cdiv(longest_q * group, options["BLOCK_M"])
    grid, sizes = (tiles * batch * kv_heads,), (batch, kv_heads, *strides)
    launch(_dq, grid, *inputs, output, dq, scale, tokens, tiles, *sizes, **constants, **options)

    options = configuration_keys(query.dtype, size)
    grid = (triton.cdiv(longest_k, options["BLOCK_N"]) * batch * kv_heads,)
    launch(_dk_dv, grid, *inputs, dk, dv, scale, tokens, *sizes, **constants, **options)
    return dq, dk, dv


def configuration(dtype: torch.dtype, size: int) -> dict[str, Any]:
    """Constants of the kernel of dq, chosen as `prefill.configuration` is."""
    vector = dtype.itemsize * triton.next_power_of_2(size)  # bytes
    if dtype == torch.float32:
        return tiles_of(16, 32, precision="tf32x3") if vector <= 512 else tiles_of(32, 16, precision="ieee")
    if vector <= 128:
        return tiles_of(128, 32)
    return tiles_of(64, 64 if vector <= 256 else 32)


def configuration_keys(dtype: torch.dtype, size: int) -> dict[str, Any]:
    """Constants of the kernel of dk and dv."""
    vector = dtype.itemsize * triton.next_power_of_2(size)  # bytes
    if dtype == torch.float32:
        return tiles_of(32, 16, precision="tf32x3") if vector <= 512 else tiles_of(16, 32, precision="ieee")
    if vector <= 128:
        return tiles_of(64, 128)
    return tiles_of(64, 64) if vector <= 256 else tiles_of(32, 32)


@triton.jit
def _visit_keys(
    q,  # [BLOCK_M, BLOCK_D]
    do,
    lse2,  # [BLOCK_M], base 2
    delta,
    acc,  # [BLOCK_M, BLOCK_D]
    keys,  # the head's, by key and feature
    values,
    k_t,
    v_t,
    k_begin,
    tile,
    position,  # [BLOCK_M]
    last,
    slope,  # [BLOCK_M] or None
    factor,
    width,
    sinks,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    place = tile * BLOCK_N + n
    start = k_begin + tile * BLOCK_N
    inside = (d < D)[:, None]
    if MASKED:
        inside &= (place <= last)[None, :]
    k = tl.load(keys + start * k_t + n[None, :] * k_t + d[:, None], mask=inside, other=0.0)  # [BLOCK_D, BLOCK_N]
    v = tl.load(values + start * v_t + n[None, :] * v_t + d[:, None], mask=inside, other=0.0)
    s = tl.dot(q, k, input_precision=PRECISION)
    if slope is not None:
        s += slope[:, None] * (place[None, :] - position[:, None])
    if MASKED:
        s = hide(s, place[None, :], position[:, None], width, sinks, WINDOWED)
    p = tl.exp2(s * factor - lse2[:, None])
    ds = p * (tl.dot(do, v, input_precision=PRECISION) - delta[:, None])
    return tl.dot(ds.to(k.dtype), tl.trans(k), acc, input_precision=PRECISION)


@triton.jit
def _dq(
    query,  # [Tq, Hq, D] by strides
    key,  # [Tk, Hkv, D] by strides
    value,
    cu_q,  # [B + 1]
    cu_k,
    window,  # [Hkv] or None
    sink,  # [Hkv] or None
    alibi,  # [Hq] or None
    lse,  # [Hq, Tq], base e
    delta,  # [Hq, Tq], written here
    d_output,  # [Tq, Hq, D]
    output,  # [Tq, Hq, D]
    dq,  # [Tq, Hq, D]
    scale,
    tokens,
    tiles,
    batch,
    kv_heads,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program = tl.program_id(0)
    head, tile, q_begin, len_q, k_begin, len_k = row_tile(cu_q, cu_k, program, batch, kv_heads)
    tile = tiles - 1 - tile
    rows = len_q * G
    if tile * BLOCK_M >= rows:
        return
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_row = row < rows
    inside = in_row[:, None] & (d < D)[None, :]
    token = q_begin + row // G
    q_head = head.to(tl.int64) * G + row % G
    place = (token * (kv_heads * G) + q_head)[:, None] * D + d[None, :]
    do = tl.load(d_output + place, mask=inside, other=0.0)
    o = tl.load(output + place, mask=inside, other=0.0)
    own = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
    tl.store(delta + q_head * tokens + token, own, mask=in_row)
    q = tl.load(query + (token * q_t + q_head * q_h)[:, None] + d[None, :], mask=inside, other=0.0)
    lse2 = _denominator(lse, q_head * tokens + token, in_row)
    position = len_k - len_q + row // G
    first = len_k - len_q + tile * BLOCK_M // G
    last = len_k - len_q + tl.minimum(tile * BLOCK_M + BLOCK_M - 1, rows - 1) // G
    slope = None
    if alibi is not None:
        slope = tl.load(alibi + q_head, mask=in_row, other=0.0) / scale
    factor = scale * LOG2E
    width, sinks = reach(window, sink, head, len_k)
    apart, begin, inner, inner_end, end = key_tiles(first, last, width, sinks, BLOCK_N)
    keys = key + head.to(tl.int64) * k_h
    values = value + head.to(tl.int64) * v_h
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for t in range(inner, inner_end):
        acc = _visit_keys(
            q, do, lse2, own, acc, keys, values, k_t, v_t, k_begin, t, position, last, slope, factor, width, sinks,
            False, window is not None, D, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
    for i in range(apart + inner - begin + end - inner_end):
        t = masked_tile(i, apart, begin, inner, inner_end)
        acc = _visit_keys(
            q, do, lse2, own, acc, keys, values, k_t, v_t, k_begin, t, position, last, slope, factor, width, sinks,
            True, window is not None, D, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
    tl.store(dq + place, (acc * scale).to(dq.dtype.element_ty), mask=inside)


@triton.jit
def _denominator(lse, place, inside):
    """lse in base 2; +inf where nothing is seen, so that p = exp2(s - lse) is 0 there."""
    found = tl.load(lse + place, mask=inside, other=float("inf"))
    return tl.where(found == float("-inf"), float("inf"), found * LOG2E)


@triton.jit
def _visit_rows(
    k,  # [BLOCK_N, BLOCK_D]
    v,
    dk,  # [BLOCK_N, BLOCK_D]
    dv,
    query,
    d_output,
    lse,
    delta,
    alibi,
    q_t,
    q_h,
    q_begin,
    head,
    tokens,
    kv_heads,
    tile,
    rows,
    ahead,  # earlier keys than the row's first query
    place,  # [BLOCK_N]
    scale,
    width,
    sinks,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_row = row < rows
    inside = in_row[:, None] & (d < D)[None, :]
    token = q_begin + row // G
    q_head = head.to(tl.int64) * G + row % G
    q = tl.load(query + (token * q_t + q_head * q_h)[:, None] + d[None, :], mask=inside, other=0.0)
    do = tl.load(d_output + ((token * (kv_heads * G) + q_head) * D)[:, None] + d[None, :], mask=inside, other=0.0)
    lse2 = _denominator(lse, q_head * tokens + token, in_row)
    own = tl.load(delta + q_head * tokens + token, mask=in_row, other=0.0)
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
    position = ahead + row // G
    if alibi is not None:
        slope = tl.load(alibi + q_head, mask=in_row, other=0.0) / scale
        s += slope[None, :] * (place[:, None] - position[None, :])
    if MASKED:
        s = hide(s, place[:, None], position[None, :], width, sinks, WINDOWED)
    p = tl.exp2(s * (scale * LOG2E) - lse2[None, :])
    dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
    ds = p * (tl.dot(v, tl.trans(do), input_precision=PRECISION) - own[None, :])
    dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _dk_dv(
    query,  # [Tq, Hq, D] by strides
    key,  # [Tk, Hkv, D] by strides
    value,
    cu_q,  # [B + 1]
    cu_k,
    window,  # [Hkv] or None
    sink,  # [Hkv] or None
    alibi,  # [Hq] or None
    lse,  # [Hq, Tq], base e
    delta,  # [Hq, Tq]
    d_output,  # [Tq, Hq, D]
    dk,  # [Tk, Hkv, D]
    dv,
    scale,
    tokens,
    batch,
    kv_heads,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program = tl.program_id(0)
    head, tile, q_begin, len_q, k_begin, len_k = row_tile(cu_q, cu_k, program, batch, kv_heads)
    if tile * BLOCK_N >= len_k:
        return
    place = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    inside = (place < len_k)[:, None] & (d < D)[None, :]
    at = k_begin + place
    k = tl.load(key + head.to(tl.int64) * k_h + at[:, None] * k_t + d[None, :], mask=inside, other=0.0)
    v = tl.load(value + head.to(tl.int64) * v_h + at[:, None] * v_t + d[None, :], mask=inside, other=0.0)
    ahead = len_k - len_q
    first = tile * BLOCK_N
    last = tl.minimum(first + BLOCK_N, len_k) - 1
    width, sinks = reach(window, sink, head, len_k)
    # Tokens that see any of these keys, begin .. end - 1, and those that see them all, from `inner` to `inner_end` - 1.
    begin = tl.maximum(first - ahead, 0)
    end = tl.where(first < sinks, len_q, tl.minimum(last + width - ahead, len_q))
    inner = tl.maximum(last - ahead, 0)
    inner_end = tl.where(last < sinks, len_q, tl.minimum(first + width - ahead, len_q))
    # And their tiles.
    rows = len_q * G
    begin = begin * G // BLOCK_M
    end = tl.maximum(tl.cdiv(end * G, BLOCK_M), begin)
    inner = tl.minimum(tl.cdiv(inner * G, BLOCK_M), end)
    inner_end = tl.maximum(inner_end * G // BLOCK_M, inner)
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for t in range(inner, inner_end):
        acc_k, acc_v = _visit_rows(
            k, v, acc_k, acc_v, query, d_output, lse, delta, alibi, q_t, q_h, q_begin, head, tokens, kv_heads, t, rows,
            ahead, place, scale, width, sinks, False, window is not None, G, D, BLOCK_M, BLOCK_D, PRECISION,
        )  # fmt: skip
    for i in range(inner - begin + end - inner_end):
        t = masked_tile(i, 0, begin, inner, inner_end)
        acc_k, acc_v = _visit_rows(
            k, v, acc_k, acc_v, query, d_output, lse, delta, alibi, q_t, q_h, q_begin, head, tokens, kv_heads, t, rows,
            ahead, place, scale, width, sinks, True, window is not None, G, D, BLOCK_M, BLOCK_D, PRECISION,
        )  # fmt: skip
    to = (at * kv_heads + head)[:, None] * D + d[None, :]
    tl.store(dk + to, (acc_k * scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + to, acc_v.to(dv.dtype.element_ty), mask=inside)
