"""Merge parts of a softmax: one program a few rows, all their parts.

A program holds BLOCK_R rows times PARTS parts of BLOCK_D numbers, 4096 in all: many parts of one row (splits of a
decode step) or few parts of many rows (two prefill passes) are read in equally large loads. Outputs of parts that have
seen nothing are not read.

Shapes: rows = B * Hq * S.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longloom.kernels.launch import launch

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)

#: Numbers in a program's registers at once.
_HELD = 4096


def combine(outputs: Tensor, lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `attention.combine.combine`, which checks; the output is of `dtype`."""
    parts, *shape = outputs.shape
    merged = torch.empty(shape, dtype=dtype, device=outputs.device)
    total = torch.empty(shape[:-1], dtype=torch.float32, device=outputs.device)
    rows = total.numel()
    if not rows:
        return merged, total
    block_d = triton.next_power_of_2(shape[-1])
    held = min(_HELD // block_d, triton.next_power_of_2(parts))
    block_r = _HELD // block_d // held
    launch(
        _combine,
        (triton.cdiv(rows, block_r),),
        outputs,
        lse,
        merged,
        total,
        rows,
        parts,
        D=shape[-1],
        BLOCK_R=block_r,
        BLOCK_D=block_d,
        PARTS=held,
        num_warps=4,
        num_stages=1,
    )
    return merged, total


@triton.jit
def _combine(
    outputs,  # [parts, rows, D]
    lse,  # [parts, rows], base e
    merged,  # [rows, D]
    total,  # [rows], base e
    rows,
    parts,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    in_row = row < rows
    in_d = d < D
    m = tl.full([BLOCK_R], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_R], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        place = part[None, :].to(tl.int64) * rows + row[:, None]  # [BLOCK_R, PARTS]
        held = (part < parts)[None, :] & in_row[:, None]
        this = tl.load(lse + place, mask=held, other=float("-inf")) * _LOG2E
        some = this > float("-inf")
        o = tl.load(
            outputs + place[:, :, None] * D + d[None, None, :],
            mask=some[:, :, None] & in_d[None, None, :],
            other=0.0,
        ).to(tl.float32)
        peak = tl.maximum(m, tl.max(this, axis=1))
        base = tl.where(peak == float("-inf"), 0.0, peak)  # nothing seen yet
        shrink = tl.exp2(m - base)
        weight = tl.exp2(this - base[:, None])
        l = l * shrink + tl.sum(weight, axis=1)  # noqa: E741
        acc = acc * shrink[:, None] + tl.sum(o * weight[:, :, None], axis=1)
        m = peak
    whole = tl.where(l == 0.0, 1.0, l)
    out = (acc / whole[:, None]).to(merged.dtype.element_ty)
    tl.store(merged + row[:, None] * D + d[None, :], out, mask=in_row[:, None] & in_d[None, :])
    tl.store(total + row, tl.where(l == 0.0, float("-inf"), (m + tl.log2(whole)) * _LN2), mask=in_row)


def specimen(dtype: torch.dtype, size: int) -> None:
    """Launch as `kernels.aot` compiles it: two passes of a chunk in the queries' dtype, and a decode step's splits."""
    combine(torch.zeros(2, 1, 8, 64, size, dtype=dtype), torch.zeros(2, 1, 8, 64), dtype)
    combine(torch.zeros(33, 1, 8, 1, size), torch.zeros(33, 1, 8, 1), dtype)
