"""Compress in one pass over the source, and a small second kernel that reduces its partial sums in a fixed order.

A program takes 256 tokens of one row and KV head: each is either copied to its slot or added to a sum in registers.
Where tokens go follows from the number kept alone (the first `sink` stay, the others move up by the number dropped, and
the head's pages stand side by side), so nothing is looked up. A program whose tokens are all kept writes no sum, and
without means the dropped tokens are not even read.

Shapes: lines = B * Hkv, chunks = N / 256.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longloom.kernels.attention.pages import RaggedKV, upload
from longloom.kernels.launch import launch

#: Tokens of a program: the partial sums take 1/64 (16 bits) of the bytes read.
_CHUNK = 256


def compress(key: Tensor, value: Tensor, start: Tensor, cache: RaggedKV) -> None:
    """See `attention.compress.reference`."""
    rows, heads, tokens, size = key.shape
    lines, chunks = rows * heads, triton.cdiv(tokens, _CHUNK)
    block_d = triton.next_power_of_2(size)
    if not lines:
        return
    sums: tuple[Tensor | None, ...] = (None, None)
    if cache.dropped is not None:
        sums = tuple(torch.empty(lines, chunks, size, dtype=torch.float32, device=key.device) for _ in range(2))
    if chunks:
        launch(
            _compress,
            (chunks, lines),
            key,
            value,
            upload(start, key.device),
            cache.kv_len,
            cache.table,
            cache.keys,
            cache.values,
            *sums,
            *key.stride()[:3],
            *value.stride()[:3],
            tokens,
            heads,
            cache.table.shape[2],
            cache.sink,
            D=size,
            PAGE=cache.page,
            CHUNK=_CHUNK,
            BLOCK_N=4096 // block_d,
            BLOCK_D=block_d,
            num_warps=4,
            num_stages=1,
        )
    if cache.dropped is not None:
        block_f = min(block_d, 32)
        launch(
            _means,
            (lines, triton.cdiv(size, block_f)),
            *sums,
            cache.dropped,
            cache.mean_key,
            cache.mean_value,
            chunks,
            cache.sink,
            D=size,
            CHUNK=_CHUNK,
            BLOCK_C=128,
            BLOCK_F=block_f,
            num_warps=4,
            num_stages=1,
        )


@triton.jit
def _compress(
    key,  # [B, Hkv, N, D], strided
    value,
    start,  # [B]
    kv_len,  # [lines]
    table,  # [lines, max_pages]
    keys,  # [P * PAGE, D]
    values,
    key_sums,  # [lines, chunks, D] or None
    value_sums,
    key_b,
    key_h,
    key_n,
    value_b,
    value_h,
    value_n,
    tokens,
    heads,
    max_pages,
    sink,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    chunk = tl.program_id(0)
    line = tl.program_id(1).to(tl.int64)
    row = line // heads
    head = line % heads
    padding = tl.load(start + row)
    length = tokens - padding
    first = chunk * CHUNK
    if first >= length:
        return
    behind = sink + length - tl.load(kv_len + line)  # tokens sink .. behind - 1 are dropped
    slots = tl.load(table + line * max_pages).to(tl.int64) * PAGE
    last = tl.minimum(first + CHUNK, length)
    source = key + row * key_b + head * key_h + padding.to(tl.int64) * key_n
    total = _move(source, key_n, keys + slots * D, first, last, sink, behind, key_sums is not None, D, BLOCK_N, BLOCK_D)
    source = value + row * value_b + head * value_h + padding.to(tl.int64) * value_n
    into = values + slots * D
    total_value = _move(source, value_n, into, first, last, sink, behind, key_sums is not None, D, BLOCK_N, BLOCK_D)
    if key_sums is not None:  # noqa: SIM102 (the one is known when compiling)
        if (first < behind) & (last > sink):
            d = tl.arange(0, BLOCK_D)
            place = (line * tl.num_programs(0) + chunk) * D + d
            tl.store(key_sums + place, total, mask=d < D)
            tl.store(value_sums + place, total_value, mask=d < D)


@triton.jit
def _move(
    source,  # [n, D], the row's tokens
    stride,
    into,  # [kept, D]
    first,
    last,
    sink,
    behind,
    SUM: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Copy what is kept of tokens first .. last - 1; the sum [BLOCK_D] of what is not."""
    d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for begin in range(first, last, BLOCK_N):
        token = begin + tl.arange(0, BLOCK_N)
        kept = (token < sink) | (token >= behind)
        held = token < last
        read = held if SUM else held & kept
        x = tl.load(
            source + token.to(tl.int64)[:, None] * stride + d[None, :], mask=read[:, None] & (d < D)[None, :], other=0.0
        )
        slot = tl.where(token < sink, token, token - (behind - sink)).to(tl.int64)
        tl.store(into + slot[:, None] * D + d[None, :], x, mask=(held & kept)[:, None] & (d < D)[None, :])
        if SUM:
            acc += tl.where(kept[:, None], 0.0, x.to(tl.float32))
    return tl.sum(acc, axis=0)


@triton.jit
def _means(
    key_sums,  # [lines, chunks, D]
    value_sums,
    dropped,  # [lines]
    mean_key,  # [lines, D]
    mean_value,
    chunks,
    sink,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_d = feature < D
    count = tl.load(dropped + line)
    begin = sink // CHUNK  # of the chunks that hold dropped tokens
    end = tl.where(count > 0, tl.cdiv(sink + count, CHUNK), begin)
    key_acc = tl.zeros([BLOCK_C, BLOCK_F], tl.float32)
    value_acc = tl.zeros([BLOCK_C, BLOCK_F], tl.float32)
    for c in range(begin, end, BLOCK_C):
        chunk = c + tl.arange(0, BLOCK_C)
        place = (line * chunks + chunk)[:, None] * D + feature[None, :]
        mask = (chunk < end)[:, None] & in_d[None, :]
        key_acc += tl.load(key_sums + place, mask=mask, other=0.0)
        value_acc += tl.load(value_sums + place, mask=mask, other=0.0)
    number = tl.maximum(count, 1).to(tl.float32)
    tl.store(mean_key + line * D + feature, tl.sum(key_acc, axis=0) / number, mask=in_d)
    tl.store(mean_value + line * D + feature, tl.sum(value_acc, axis=0) / number, mask=in_d)


def specimen(dtype: torch.dtype, size: int) -> None:
    """Launch as `kernels.aot` compiles it: 2 rows, 8 KV heads, with means and without."""
    from longloom.kernels.attention.compress import compress as checked

    tokens = torch.zeros(2, 8, 512, size, dtype=dtype)
    window = torch.full((2, 8), 128, dtype=torch.int32)
    for compensate in (True, False):
        checked(tokens, tokens, window, sink=4, compensate=compensate, implementation="triton")
