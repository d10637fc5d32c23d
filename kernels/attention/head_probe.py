"""Head probe: how much each query head attends to earlier occurrences of its token, without a T x T matrix.

On a token BOS and then `period` tokens over and over, with A the causal softmax of scale * q . k and r = row - 1:

    score(h, offset) = mean over r >= period of sum over m >= 1, c = r - m * period >= 0, of A[1 + r, 1 + c + offset]

Offset 0 is the echo score, offset 1 the induction score (RazorAttention, arXiv 2407.15891, section on retrieval heads).
A row needs the sum of its softmax and then a few of its entries, so the matrix is never held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal

#: Logits that the reference holds at a time, at most (or those of one token and KV head): they stay in the cache.
_LOGITS = 1 << 19


@torch.no_grad()
def head_probe(
    query: Tensor,
    key: Tensor,
    period: int,
    *,
    scale: float,
    offsets: Sequence[int] = (0, 1),
    implementation: str | None = None,
) -> Tensor:
    """Mean attention of every query head to the tokens at `offsets` behind a token's earlier occurrences.

    Token 0 is BOS: it counts in the softmax, but its row and its column in no score. Not differentiable.

    Args:
        query: [Hq, T, D], rotated; any strides but the last dimension's, which must be 1.
        key: [Hkv, T, D], rotated, likewise.
        period: tokens after which the sequence repeats itself, at least 1 and at most T - 2.
        scale: factor on q . k, usually D ** -0.5.
        offsets: places after an earlier occurrence, each 0 .. period - 1.
        implementation: "triton" or "reference"; None: the fastest that can.

    Returns:
        [Hq, len(offsets)] float32 (float64 for float64), each 0 .. 1.

    Raises:
        ValueError: shapes, types, devices, scale, period or offsets that do not fit, or an implementation that cannot
            do this.
    """
    check = Arguments("head_probe")
    check.tensor("query", query, "Hq T D", FLOATS, strided=True)
    check.tensor("key", key, "Hkv T D", query.dtype, strided=True)
    check.groups()
    check.require(math.isfinite(scale), "scale", "finite", scale)
    check.require(period >= 1, "period", "at least 1", period)
    tokens = query.shape[1]
    check.require(tokens >= period + 2, "query", f"of at least period + 2 = {period + 2} tokens", tokens)
    check.require(len(offsets) > 0, "offsets", "at least one", "none")
    for offset in offsets:
        check.require(0 <= offset < period, "offsets", f"0 to period - 1 = {period - 1}", offset)
    candidates = {
        "triton": triton_refusal(query, asked=implementation == "triton", head_dim=query.shape[-1]),
        "reference": None,
    }
    if choose("head_probe", candidates, implementation) == "triton":
        from longloom.kernels.attention.triton.head_probe import head_probe as run
    else:
        run = reference
    return run(query, key, period, scale, offsets)


def reference(query: Tensor, key: Tensor, period: int, scale: float, offsets: Sequence[int]) -> Tensor:
    """One KV head and block of rows after the other; float32, or float64 for float64."""
    heads, tokens, _ = query.shape
    kv_heads = key.shape[0]
    group = heads // kv_heads
    exact = torch.promote_types(query.dtype, torch.float32)
    block = max(1, _LOGITS // max(1, group * tokens))
    places = torch.tensor(list(offsets), device=query.device)
    back = period * torch.arange(1, (tokens - 2) // period + 1, device=query.device)
    scores = torch.zeros(kv_heads, group, len(offsets), dtype=exact, device=query.device)
    scratch = torch.empty(group * min(block, tokens) * tokens, dtype=exact, device=query.device)
    for h in range(kv_heads):
        rows = query[h * group : (h + 1) * group]
        keys = key[h].to(exact).T  # [D, T]
        for begin in range(1 + period, tokens, block):  # the rows before have no earlier occurrence
            end = min(begin + block, tokens)
            logits = scratch[: group * (end - begin) * end].view(group * (end - begin), end)
            torch.mm((rows[:, begin:end].to(exact) * scale).flatten(0, 1), keys[:, :end], out=logits)
            logits = logits.view(group, end - begin, end)
            logits[:, :, begin:].masked_fill_(
                torch.ones(end - begin, end - begin, dtype=torch.bool, device=query.device).triu(1), -torch.inf
            )
            # Column of each row's m-th last occurrence: those that would lie at BOS or before it do not exist.
            last = torch.arange(begin, end, device=query.device)[:, None] - back[: (end - 2) // period]  # [rows, M]
            columns = (last[..., None] + places).clamp(min=0).flatten(1)
            some = logits.gather(2, columns.expand(group, -1, -1)).unflatten(2, (-1, len(places)))
            peak = logits.amax(dim=-1, keepdim=True)
            total = logits.sub_(peak).exp_().sum(dim=-1)
            weights = some.sub_(peak[..., None]).exp_().masked_fill_((last < 1)[..., None], 0)
            scores[h] += (weights.sum(dim=2) / total[..., None]).sum(dim=1)
    return scores.flatten(0, 1) / (tokens - 1 - period)
