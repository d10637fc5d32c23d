"""Append: a tile copy to the slots, which the device's own lengths tell, and the fold before it.

What a head holds behind its sinks and the new tokens are one line in time, y_0, y_1, ..., of which a ring of R slots
keeps the last R: y_p lives in slot sink + (turn + p) mod R, and the first F are folded. So several tokens a step need
no loop in time: a program sums the first F, be they old or new, and then writes those new ones that stay.

Without limits a program takes a tile of 2048 numbers, 16 tokens of 128 features, of one line (row and KV head). With
them it takes all of a line's, for the folded slots must be read before they are written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longloom.kernels.attention.pages import UNLIMITED, RaggedKV
from longloom.kernels.launch import launch

_UNLIMITED = tl.constexpr(UNLIMITED)

#: Programs that CUDA takes along a grid's second axis; of more tiles each program takes several.
_MOST_CHUNKS = 65_535


def append(cache: RaggedKV, key: Tensor, value: Tensor) -> None:
    """See `attention.append.append`, which checks, grows the pool and advances the host's lengths."""
    rows, heads, new, size = key.shape
    block_d = triton.next_power_of_2(size)
    block_s = 2048 // block_d
    chunks = min(triton.cdiv(new, block_s), _MOST_CHUNKS) if cache.limit is None else 1
    launch(
        _append,
        (rows * heads, chunks),
        key,
        value,
        cache.keys,
        cache.values,
        cache.table,
        cache.kv_len,
        cache.mean_key,
        cache.mean_value,
        cache.dropped,
        cache.limit,
        cache.turn,
        *key.stride()[:3],
        *value.stride()[:3],
        new,
        heads,
        cache.table.shape[2],
        cache.sink,
        D=size,
        PAGE=cache.page,
        BLOCK_S=block_s,
        BLOCK_D=block_d,
        ADVANCE=chunks == 1,
        num_warps=4,
        num_stages=1,
    )
    if chunks > 1:
        cache.kv_len += new


@triton.jit
def _append(
    key,  # [B, Hkv, S, D], strided
    value,
    keys,  # [P, PAGE, D]
    values,
    table,  # [lines, max_pages]
    kv_len,  # [lines]
    mean_key,  # [lines, D] or None
    mean_value,
    dropped,  # [lines]
    limit,  # [lines] or None
    turn,
    key_b,
    key_h,
    key_s,
    value_b,
    value_h,
    value_s,
    new,
    heads,
    max_pages,
    sink,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ADVANCE: tl.constexpr,  # whether this program is its line's only one, so that nobody else reads the length
):
    line = tl.program_id(0).to(tl.int64)
    row = line // heads
    head = line % heads
    key += row * key_b + head * key_h
    value += row * value_b + head * value_h
    pages = table + line * max_pages
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    length = tl.load(kv_len + line)
    held = length - sink  # tokens in the ring; negative: sinks are missing
    ring = _UNLIMITED
    oldest = 0
    folded = 0
    if limit is not None:
        most = tl.load(limit + line)
        ring = tl.where(most > 0, most - sink, _UNLIMITED)
        oldest = tl.load(turn + line)
        folded = tl.maximum(held + new - ring, 0)
        if folded > 0:
            before = tl.load(dropped + line)
            number = (before + folded).to(tl.float32)
            k_mean = tl.load(mean_key + line * D + d, mask=in_d, other=0.0)
            v_mean = tl.load(mean_value + line * D + d, mask=in_d, other=0.0)
            k_acc = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
            v_acc = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
            for begin in range(0, folded, BLOCK_S):
                p = begin + tl.arange(0, BLOCK_S)
                was = ((p < held) & (p < folded))[:, None] & in_d[None, :]  # in the ring; else among the new
                came = ((p >= held) & (p < folded))[:, None] & in_d[None, :]
                slot = sink + (oldest + p) % ring
                old = _place(pages, slot, p < held, PAGE) * D + d[None, :]
                late = (p - held).to(tl.int64)[:, None]
                k = tl.load(keys + old, mask=was, other=0.0).to(tl.float32)
                v = tl.load(values + old, mask=was, other=0.0).to(tl.float32)
                k += tl.load(key + late * key_s + d[None, :], mask=came, other=0.0).to(tl.float32)
                v += tl.load(value + late * value_s + d[None, :], mask=came, other=0.0).to(tl.float32)
                k_acc += tl.where((p < folded)[:, None], k - k_mean[None, :], 0.0)
                v_acc += tl.where((p < folded)[:, None], v - v_mean[None, :], 0.0)
            # Equal to (N_d * mean + sum) / (N_d + F), but only the difference is rounded.
            tl.store(mean_key + line * D + d, k_mean + tl.sum(k_acc, axis=0) / number, mask=in_d)
            tl.store(mean_value + line * D + d, v_mean + tl.sum(v_acc, axis=0) / number, mask=in_d)
            tl.debug_barrier()  # all threads have read what is written from here on
            tl.store(dropped + line, before + folded)
            tl.store(turn + line, (oldest + folded) % ring)
    for tile in range(tl.program_id(1), tl.cdiv(new, BLOCK_S), tl.num_programs(1)):
        j = tile * BLOCK_S + tl.arange(0, BLOCK_S)
        p = held + j
        stays = (j < new) & ((p < 0) | (p >= folded))
        if limit is not None:
            slot = tl.where(p < 0, length + j, sink + (oldest + p) % ring)
        else:
            slot = length + j
        into = _place(pages, slot, stays, PAGE) * D + d[None, :]
        mask = stays[:, None] & in_d[None, :]
        late = j.to(tl.int64)[:, None]
        tl.store(keys + into, tl.load(key + late * key_s + d[None, :], mask=mask), mask=mask)
        tl.store(values + into, tl.load(value + late * value_s + d[None, :], mask=mask), mask=mask)
    if ADVANCE:
        tl.debug_barrier()
        tl.store(kv_len + line, length + new - folded)


@triton.jit
def _place(pages, slot, held, PAGE: tl.constexpr):
    """Places [S, 1] int64 in the pool as [P * PAGE, D] of those slots [S] that are `held`."""
    page = tl.load(pages + slot // PAGE, mask=held, other=0)
    return (page.to(tl.int64) * PAGE + slot % PAGE)[:, None]


def specimen(dtype: torch.dtype, size: int) -> None:
    """Launch as `kernels.aot` compiles it: 2 rows, 8 KV heads; one token with a fold, one without, and a chunk."""
    from longloom.kernels.attention.append import append as checked
    from longloom.kernels.attention.compress import compress

    prompt = torch.zeros(2, 8, 64, size, dtype=dtype)
    for new, fold in ((1, True), (1, False), (48, False)):
        cache = compress(prompt, prompt, torch.full((2, 8), 32, dtype=torch.int32), sink=4, fold=fold)
        checked(cache, prompt[:, :, :new], prompt[:, :, :new], implementation="triton")
