"""Score and top-k in one pass over the keys, which writes nothing but each row's best k.

A program takes BLOCK_M of the M = G * Sq query rows of a KV head and one of S splits of its keys, and goes through them
from the last to the first, so that of equal scores the later is there already and a key must be strictly better to get
in. A tile of keys costs its product and one test, whether any row gains; only then are the row's maxima taken out one
by one and put in the place of the row's worst. The best are int64: the score, its bits put into the order of integers,
above the position, so that one maximum says "the higher score, then the later". A second kernel merges the splits and
writes indices, or counts votes with integer atomics.

S follows from the multiprocessors: as many programs as run at once, two each, so that one's test hides behind the
other's loads; one split where there are rows enough. Keys in pieces take a launch each, and leave their splits beside
each other. 8-bit codes become the query's type in registers, which has room for every one of them, and a key's scale
meets its scores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longloom.kernels.launch import launch, multiprocessors
from longloom.kernels.staging import staged

_LEAST = tl.constexpr(-(2**63))
_MOST = tl.constexpr(2**63 - 1)


def topk_indices(
    query: Tensor,
    key: list[Tensor],
    scales: list[Tensor] | None,
    k: int,
    begin: Tensor | None,
    end: Tensor | None,
    block: int | None,
) -> Tensor:
    """See `attention.topk.topk_indices`, which checks."""
    indices = torch.empty(*query.shape[:3], k, dtype=torch.int32, device=query.device)
    _run(query, key, scales, k, begin, end, block, indices, None)
    return indices


def topk_votes(
    query: Tensor,
    key: list[Tensor],
    scales: list[Tensor] | None,
    k: int,
    begin: Tensor | None,
    end: Tensor | None,
    block: int | None,
) -> Tensor:
    """See `attention.topk.topk_votes`, which checks."""
    tokens = sum(piece.shape[2] for piece in key)
    votes = torch.zeros(len(query), tokens, dtype=torch.int32, device=query.device)
    _run(query, key, scales, k, begin, end, block, None, votes)
    return votes


def _run(
    query: Tensor,
    key: list[Tensor],
    scales: list[Tensor] | None,
    k: int,
    begin: Tensor | None,
    end: Tensor | None,
    block: int | None,
    indices: Tensor | None,
    votes: Tensor | None,
) -> None:
    batch, heads, steps, size = query.shape
    kv_heads = key[0].shape[1]
    if not query.numel():
        return
    lines, rows = batch * kv_heads, heads // kv_heads * steps
    vector = query.element_size() * triton.next_power_of_2(size)  # bytes
    # Three products make one of float32: with more rows the query's parts for them do not fit into the registers.
    block_m = 16 if rows <= 16 or query.element_size() == 4 else 64
    block_n = max(32, min(128, 32768 // vector))
    if block is not None:
        block_n = min(block_n, block)
    units = lines * triton.cdiv(rows, block_m)
    most = _splits(units, 2 * multiprocessors(query.device))
    splits = [min(most, max(1, triton.cdiv(piece.shape[2], block or block_n))) for piece in key]
    parts = sum(splits) * k
    partial = torch.empty(lines * rows, parts, dtype=torch.int64, device=query.device)
    origin = column = 0
    pieces = [[piece] for piece in key] if scales is None else list(map(list, zip(key, scales, strict=True)))
    for (piece, *weights), split in zip(staged(pieces, query.device), splits, strict=True):
        weight = weights[0] if weights else None
        launch(
            _best,
            (units, split),
            query,
            piece if weight is None else piece.view(torch.int8),
            weight,
            begin,
            end,
            partial,
            rows,
            kv_heads,
            piece.shape[2],
            origin,
            column,
            parts,
            *piece.stride()[:3],
            *((0, 0) if weight is None else weight.stride()[:2]),
            D=size,
            K=k,
            K_PADDED=triton.next_power_of_2(k),
            BLOCK=block or 0,
            FP8=piece.dtype == torch.float8_e4m3fn,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_D=triton.next_power_of_2(size),
            num_warps=8 if vector > 512 and weight is None else 4,
            num_stages=3,  # two programs a multiprocessor, each with 64 KiB on the way
        )
        origin, column = origin + piece.shape[2], column + split * k
    width = min(512, triton.next_power_of_2(parts))
    block_r = min(512 // width, triton.next_power_of_2(lines * rows))
    launch(
        _merge,
        (triton.cdiv(lines * rows, block_r),),
        partial,
        indices,
        votes,
        lines * rows,
        parts,
        kv_heads * rows,
        origin,
        K=k,
        BLOCK_R=block_r,
        BLOCK_P=width,
        num_warps=4,
        num_stages=1,
    )


def _splits(units: int, slots: int) -> int:
    """Into how many parts to split each unit of work so that the parts fill their last round over the slots best."""
    rounds = max(range(1, 5), key=lambda r: (round(r * slots // units * units / (r * slots), 1), -r))
    return max(1, rounds * slots // units)


@triton.jit
def _pack(score, position):
    """The score's bits in the order of integers, above the position; -0 is 0."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (order.to(tl.int64) << 32) | position.to(tl.int64)


@triton.jit
def _score(packed):
    order = (packed >> 32).to(tl.int32)
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _take(best, least, score, position):
    """Put one key a row in the place of the row's worst where it is better; the best [M, K] and their least [M]."""
    worst = tl.min(best, axis=1)
    better = (score > least)[:, None] & (best == worst[:, None])
    best = tl.where(better, _pack(score, position)[:, None], best)
    return best, _score(tl.min(best, axis=1))


@triton.jit(do_not_specialize=["origin", "column", "parts"])
def _best(
    query,  # [lines, M, D]
    key,  # [B, Hkv, n, D], strided: a piece, or codes
    scales,  # [B, Hkv, n], strided, or None
    begin,  # [B] or None
    end,
    partial,  # [lines, M, parts] int64, from column on [S, K]
    rows,
    kv_heads,
    tokens,  # n
    origin,  # the piece's first position
    column,
    parts,
    stride_b,
    stride_h,
    stride_n,
    scale_b,
    scale_h,
    D: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    FP8: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row_tiles = tl.cdiv(rows, BLOCK_M)
    line = (tl.program_id(0) // row_tiles).to(tl.int64)  # neighbours read the same keys
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    m_row = tl.program_id(0) % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m_row < rows
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    inside = n[None, :] * stride_n + d[:, None]  # of a tile: 32 bits are enough
    b = line // kv_heads

    first = 0
    last = tokens
    if begin is not None:
        first = tl.minimum(tl.maximum(tl.load(begin + b) - origin, 0), tokens)
    if end is not None:
        last = tl.minimum(tl.maximum(tl.load(end + b) - origin, 0), tokens)
    # Splits are whole blocks: the tiles of a block stay together.
    PER: tl.constexpr = BLOCK // BLOCK_N if BLOCK else 1
    blocks = tl.cdiv(tl.maximum(last - first, 0), PER * BLOCK_N).to(tl.int64)
    low = (split * blocks // splits).to(tl.int32) * PER
    high = ((split + 1) * blocks // splits).to(tl.int32) * PER

    q = tl.load(query + (line * rows + m_row)[:, None] * D + d[None, :], mask=in_m[:, None] & in_d[None, :], other=0.0)
    keys = key + b * stride_b + line % kv_heads * stride_h
    if scales is not None:
        scales += b * scale_b + line % kv_heads * scale_h
    # Empty places hold -inf, each with a low half of its own, so that only one of them is taken at a time.
    slot = tl.arange(0, K_PADDED)
    empty = _pack(tl.full([K_PADDED], float("-inf"), tl.float32), slot)
    best = tl.broadcast_to(tl.where(slot < K, empty, _MOST)[None, :], [BLOCK_M, K_PADDED])
    least = tl.full([BLOCK_M], float("-inf"), tl.float32)  # the worst of the best
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)  # of the block so far
    peak_at = tl.zeros([BLOCK_M], tl.int32)
    for t in range(high - low):
        tile = high - 1 - t
        start = first + tile * BLOCK_N
        in_n = start + n < last
        here = keys + start.to(tl.int64) * stride_n
        k = tl.load(here + inside, mask=in_n[None, :] & in_d[:, None], other=0)
        if scales is not None:
            if FP8:
                # Its bits in float16's places, but for the sign's copy: 2^-8 of it, as the bias is 7 and not 15. All
                # keys are smaller by that, which changes no order.
                k = ((k.to(tl.int16) << 7) & -16385).to(tl.float16, bitcast=True)
            k = k.to(q.dtype)
        s = tl.dot(q, k, input_precision="tf32x3")
        if scales is not None:
            weight = tl.load(scales + start + n, mask=in_n, other=0.0)
            s *= weight[None, :]
        s = tl.where(in_n[None, :], s, float("-inf"))
        place = (start + n)[None, :]
        if BLOCK:
            floor = tl.maximum(least, peak)
            if tl.max((s > floor[:, None]).to(tl.int32), axis=None) > 0:
                score = tl.max(s, axis=1)
                position = tl.max(tl.where(s == score[:, None], place, -1), axis=1)
                better = score > floor
                peak = tl.where(better, score, peak)
                peak_at = tl.where(better, position, peak_at)
            if tile % PER == 0:
                best, least = _take(best, least, peak, origin + peak_at)
                peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
        else:
            # The loads of a loop with a loop in it are not pipelined, of one with a branch they are.
            gains = tl.max((s > least[:, None]).to(tl.int32), axis=None)
            if gains > 0:
                while gains > 0:
                    score = tl.max(s, axis=1)
                    position = tl.max(tl.where(s == score[:, None], place, -1), axis=1)
                    best, least = _take(best, least, score, origin + position)
                    s = tl.where(place == position[:, None], float("-inf"), s)
                    gains = tl.max((s > least[:, None]).to(tl.int32), axis=None)
    at = ((line * rows + m_row) * parts + column + split * K)[:, None] + slot[None, :]
    tl.store(partial + at, best, mask=in_m[:, None] & (slot < K)[None, :])


@triton.jit
def _merge(
    partial,  # [R, P] int64, R = lines * M, P = S * K
    indices,  # [R, K] or None
    votes,  # [B, N] or None
    rows,
    parts,
    rows_per_batch,
    tokens,
    K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_r = row < rows
    p = tl.arange(0, BLOCK_P)
    last = tl.full([BLOCK_R], _MOST, tl.int64)
    for i in range(K):
        # No two keys are alike, so the next best is the best of those below the last.
        best = tl.full([BLOCK_R], _LEAST, tl.int64)
        for start in range(0, parts, BLOCK_P):
            mask = in_r[:, None] & (start + p < parts)[None, :]
            x = tl.load(partial + row[:, None] * parts + start + p[None, :], mask=mask, other=_LEAST)
            best = tl.maximum(best, tl.max(tl.where(x < last[:, None], x, _LEAST), axis=1))
        position = (best & 0xFFFFFFFF).to(tl.int32)
        found = _score(best) > float("-inf")
        if indices is not None:
            tl.store(indices + row * K + i, tl.where(found, position, -1), mask=in_r)
        if votes is not None:
            at = row // rows_per_batch * tokens + position
            tl.atomic_add(votes + at, 1, mask=in_r & found, sem="relaxed")
        last = best


def specimen(dtype: torch.dtype, size: int) -> None:
    """Launch as `kernels.aot` compiles it: a decode step and a chunk of 64 queries, exact, by blocks and of codes."""
    key = torch.zeros(2, 8, 4096, size, dtype=dtype)
    codes = [key.to(code) for code in (torch.int8, torch.float8_e4m3fn)]
    scales = torch.zeros(2, 8, 4096)
    begin = torch.full((2,), 32, dtype=torch.int32)
    for steps in (1, 64):
        query = torch.zeros(2, 32, steps, size, dtype=dtype)
        topk_votes(query, [key], None, 4, begin, begin + 4000, None)
        topk_indices(query, [key], None, 4, begin, begin + 4000, 128)
        for code in codes:
            topk_votes(query, [code], [scales], 4, begin, begin + 4000, None)
