"""Prefill in one launch for all rows and heads, be they full or windows with sinks.

A program takes BLOCK_M of the S * G (token, query head) rows of one KV head and visits the tiles of BLOCK_N keys that
they see: those of the sinks, and those from the left edge of the first query's window to the last query. Tiles that
every row sees whole take a loop without a mask; the others (sinks, the window's left edge, the diagonal) take one with
it. A full head is a window as long as the row. Programs begin with the latest queries, which see most, so that the
short ones fill the end of the launch. The backward kernels are in `prefill_backward`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from longloom.kernels.launch import launch

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


def prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    scale: float,
    window: Tensor | None,
    sink: Tensor | None,
    alibi: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `attention.prefill.prefill_lse`, which checks."""
    if len(cu_q) == 1:  # no rows
        return query.clone(), torch.empty(query.shape[1], 0, device=query.device)
    longest = int(cu_q.diff().amax()), int(cu_k.diff().amax())
    offsets = (cu.to(query.device, non_blocking=True) for cu in (cu_q, cu_k))
    output, lse = _Prefill.apply(query, key, value, *offsets, window, sink, alibi, scale, *longest)  # type: ignore[no-untyped-call]
    return output, lse


class _Prefill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        window: Tensor | None,
        sink: Tensor | None,
        alibi: Tensor | None,
        scale: float,
        longest_q: int,
        longest_k: int,
    ) -> tuple[Tensor, Tensor]:
        output, lse = _forward(query, key, value, cu_q, cu_k, window, sink, alibi, scale, longest_q)
        ctx.save_for_backward(query, key, value, cu_q, cu_k, window, sink, alibi, output, lse)
        ctx.numbers = scale, longest_q, longest_k
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        from longloom.kernels.attention.triton.prefill_backward import prefill_backward

        return *prefill_backward(d_output, *ctx.saved_tensors, *ctx.numbers), *(None,) * 8


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    window: Tensor | None,
    sink: Tensor | None,
    alibi: Tensor | None,
    scale: float,
    longest: int,
) -> tuple[Tensor, Tensor]:
    tokens, heads, size = query.shape
    kv_heads, batch = key.shape[1], len(cu_q) - 1
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=query.device)
    if not query.numel():
        return output, lse
    options = configuration(query.dtype, size)
    group = heads // kv_heads
    tiles = triton.cdiv(longest * group, options["BLOCK_M"])
    launch(
        _prefill,
        (tiles * batch * kv_heads,),
        query,
        key,
        value,
        cu_q,
        cu_k,
        window,
        sink,
        alibi,
        output,
        lse,
        scale,
        tokens,
        tiles,
        batch,
        kv_heads,
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        G=group,
        D=size,
        BLOCK_D=triton.next_power_of_2(size),
        **options,
    )
    return output, lse


def configuration(dtype: torch.dtype, size: int) -> dict[str, Any]:
    """Constants of the forward kernel: the largest tiles that spill on neither sm_80 nor sm_90."""
    vector = dtype.itemsize * triton.next_power_of_2(size)  # bytes
    if dtype == torch.float32:
        return tiles_of(16, 32, precision="tf32x3") if vector <= 512 else tiles_of(16, 16, precision="ieee")
    if vector <= 128:
        return tiles_of(128, 64)
    return tiles_of(128, 32, stages=4) if vector <= 256 else tiles_of(64, 32)


def tiles_of(block_m: int, block_n: int, *, stages: int = 3, precision: str = "tf32x3") -> dict[str, Any]:
    """A launch's options.

    Fewer than 3 stages would leave one buffer for each load on sm_80. `precision` is that of float32 products: of more
    than 128 features the parts that tf32x3 splits them into do not fit the registers.
    """
    options = {"BLOCK_M": block_m, "BLOCK_N": block_n, "PRECISION": precision}
    return options | {"num_warps": 8, "num_stages": stages}


@triton.jit
def row_tile(cu_q, cu_k, tile, batch, kv_heads):
    """Of program `tile`, heads first, then rows: its head, its tile, and begin and length of its row."""
    head = tile % kv_heads
    b = tile // kv_heads % batch
    q_begin = tl.load(cu_q + b)
    k_begin = tl.load(cu_k + b)
    len_q = tl.load(cu_q + b + 1) - q_begin
    len_k = tl.load(cu_k + b + 1) - k_begin
    return head, tile // kv_heads // batch, q_begin.to(tl.int64), len_q, k_begin.to(tl.int64), len_k


@triton.jit
def reach(window, sink, head, len_k):
    """Window and sinks of a KV head; a full head's window is as long as the row."""
    width = len_k
    sinks = 0
    if window is not None:
        width = tl.load(window + head)
        width = tl.where(width < 0, len_k, tl.minimum(width, len_k))
        if sink is not None:
            sinks = tl.load(sink + head)
    return width, sinks


@triton.jit
def key_tiles(first, last, width, sinks, BLOCK_N: tl.constexpr):
    """Tiles that queries at positions first .. last see: 0 .. apart - 1 and begin .. end - 1; inner ones whole."""
    left = tl.maximum(first - width + 1, 0)
    apart = tl.cdiv(tl.minimum(sinks, left), BLOCK_N)
    begin = tl.maximum(left // BLOCK_N, apart)
    end = last // BLOCK_N + 1
    inner = tl.maximum(tl.cdiv(tl.maximum(last - width + 1, 0), BLOCK_N), begin)
    inner_end = tl.maximum((first + 1) // BLOCK_N, inner)
    return apart, begin, inner, inner_end, end


@triton.jit
def masked_tile(i, apart, begin, inner, inner_end):
    """The i-th of the tiles 0 .. apart - 1, begin .. inner - 1, inner_end and on."""
    tile = tl.where(i < apart, i, i - apart + begin)
    return tl.where(tile < inner, tile, tile - inner + inner_end)


@triton.jit
def hide(s, places, positions, width, sinks, WINDOWED: tl.constexpr):
    """Logits with -inf where the query at positions does not see the key at places, one of them a row, one a column."""
    seen = places <= positions
    if WINDOWED:
        seen &= (places > positions - width) | (places < sinks)
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _visit(
    q,  # [BLOCK_M, BLOCK_D]
    m,  # [BLOCK_M]
    l,  # noqa: E741
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
    in_k = (d < D)[:, None]
    in_v = (d < D)[None, :]
    if MASKED:
        in_k &= (place <= last)[None, :]
        in_v &= (place <= last)[:, None]
    k = tl.load(keys + start * k_t + n[None, :] * k_t + d[:, None], mask=in_k, other=0.0)
    v = tl.load(values + start * v_t + n[:, None] * v_t + d[None, :], mask=in_v, other=0.0)
    s = tl.dot(q, k, input_precision=PRECISION)
    if slope is not None:
        s += slope[:, None] * (place[None, :] - position[:, None])
    if MASKED:
        s = hide(s, place[None, :], position[:, None], width, sinks, WINDOWED)
    peak = tl.maximum(m, tl.max(s, axis=1) * factor)
    base = tl.where(peak == float("-inf"), 0.0, peak) if MASKED else peak  # rows that see nothing yet
    p = tl.exp2(s * factor - base[:, None])
    shrink = tl.exp2(m - base)
    l = l * shrink + tl.sum(p, axis=1)  # noqa: E741
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return peak, l, acc


@triton.jit
def _prefill(
    query,  # [Tq, Hq, D] by strides
    key,  # [Tk, Hkv, D] by strides
    value,
    cu_q,  # [B + 1]
    cu_k,
    window,  # [Hkv] or None
    sink,  # [Hkv] or None
    alibi,  # [Hq] or None
    output,  # [Tq, Hq, D]
    lse,  # [Hq, Tq], base e
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
    position = len_k - len_q + row // G
    first = len_k - len_q + tile * BLOCK_M // G
    last = len_k - len_q + tl.minimum(tile * BLOCK_M + BLOCK_M - 1, rows - 1) // G
    q = tl.load(query + (token * q_t + q_head * q_h)[:, None] + d[None, :], mask=inside, other=0.0)
    slope = None
    if alibi is not None:
        slope = tl.load(alibi + q_head, mask=in_row, other=0.0) / scale
    factor = scale * LOG2E
    width, sinks = reach(window, sink, head, len_k)
    apart, begin, inner, inner_end, end = key_tiles(first, last, width, sinks, BLOCK_N)
    keys = key + head.to(tl.int64) * k_h
    values = value + head.to(tl.int64) * v_h
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for t in range(inner, inner_end):
        m, l, acc = _visit(  # noqa: E741
            q, m, l, acc, keys, values, k_t, v_t, k_begin, t, position, last, slope, factor, width, sinks,
            False, window is not None, D, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
    for i in range(apart + inner - begin + end - inner_end):
        t = masked_tile(i, apart, begin, inner, inner_end)
        m, l, acc = _visit(  # noqa: E741
            q, m, l, acc, keys, values, k_t, v_t, k_begin, t, position, last, slope, factor, width, sinks,
            True, window is not None, D, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
    whole = tl.where(l == 0.0, 1.0, l)
    place = (token * (kv_heads * G) + q_head)[:, None] * D + d[None, :]
    tl.store(output + place, (acc / whole[:, None]).to(output.dtype.element_ty), mask=inside)
    tl.store(lse + q_head * tokens + token, tl.where(l == 0.0, float("-inf"), (m + tl.log2(whole)) * LN2), mask=in_row)


def specimen(dtype: torch.dtype, size: int) -> None:
    """Launch once each, as `kernels.aot` compiles them: 8 KV heads of 4 query heads, with windows and sinks."""
    from longloom.kernels.attention.triton.prefill_backward import prefill_backward

    query = torch.zeros(16, 32, size, dtype=dtype)
    key = torch.zeros(16, 8, size, dtype=dtype)
    cu, heads = torch.tensor([0, 16], dtype=torch.int32), torch.full((8,), 4, dtype=torch.int32)
    inputs = (query, key, key, cu, cu, heads, heads, None)
    output, lse = _forward(*inputs, size**-0.5, 16)
    prefill_backward(output, *inputs, output, lse, size**-0.5, 16, 16)
