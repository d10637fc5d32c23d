"""Votes to spans: torch finds a row's most voted keys, one program a row sorts, joins and writes their spans.

The program holds all of a row's middles, so what a span adds behind the one before it, and where in the row that goes,
follow from a neighbour and a running sum; each of `span` steps writes one position of every span.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longloom.kernels.attention.spans import most_voted
from longloom.kernels.launch import launch


def vote_spans(votes: Tensor, most: int, span: int, begin: Tensor | None, end: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `attention.spans.vote_spans`, which checks."""
    batch, tokens = votes.shape
    positions = torch.empty(batch, most * span, dtype=torch.int32, device=votes.device)
    count = torch.empty(batch, dtype=torch.int32, device=votes.device)
    if batch:
        launch(
            _spans,
            (batch,),
            most_voted(votes, most, begin, end),
            begin,
            end,
            positions,
            count,
            tokens,
            most,
            span,
            BLOCK=triton.next_power_of_2(most),
            num_warps=4,
            num_stages=1,
        )
    return positions, count


@triton.jit
def _spans(
    middles,  # [B, most] int64, in any order; N: none
    begin,  # [B] or None
    end,
    positions,  # [B, most * span]
    count,  # [B]
    tokens,
    most,
    span,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    low = 0
    high = tokens
    if begin is not None:
        low = tl.minimum(tl.maximum(tl.load(begin + row), 0), tokens)
    if end is not None:
        high = tl.minimum(tl.maximum(tl.load(end + row), 0), tokens)
    i = tl.arange(0, BLOCK)
    middle = tl.sort(tl.load(middles + row * most + i, mask=i < most, other=tokens).to(tl.int32))
    before = tl.gather(middle, tl.maximum(i - 1, 0), axis=0)
    before = tl.where(i > 0, tl.minimum(before + span // 2, high), low)
    start = tl.maximum(middle - span // 2, before)
    length = tl.where(middle < tokens, tl.minimum(middle + span // 2, high) - start, 0)
    behind = tl.cumsum(length, axis=0)
    total = tl.sum(length, axis=0)
    here = positions + row * most * span
    for step in range(span):
        tl.store(here + behind - length + step, start + step, mask=step < length)
    for slot in range(0, most * span, BLOCK):
        tl.store(here + slot + i, -1, mask=(slot + i >= total) & (slot + i < most * span))
    tl.store(count + row, total)


def specimen(dtype: torch.dtype, size: int) -> None:
    """Launch as `kernels.aot` compiles it, with 256 spans of 32 and with the most; no type or head size matters."""
    begin = torch.full((2,), 32, dtype=torch.int32)
    for most in (256, 1024):
        vote_spans(torch.zeros(2, 4096, dtype=torch.int32), most, 32, begin, begin + 4000)
