"""Attention over chosen keys of a cache, rotated to the contiguous positions 0, 1, 2, ... as they are read.

    o_i = softmax_j<=p_i(scale * R(p_i) q_i . R(j) k[idx_j]) v[idx_j],   p_i = count - Sq + i

The cache holds keys without rotary embedding (RoPE); each call sees global, selected and local keys side by side, so no
position is ever beyond the trained window (LongCache / ReAttention, arXiv 2407.15176, section 3). No copy is gathered.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal

#: The reference's logits in memory at once: numbers over all heads.
_LOGITS = 1 << 24


@torch.no_grad()
def gather_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    count: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    scale: float,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of each row's last Sq slots over the slots that `positions` names. Not differentiable.

    Args:
        query: [B, Hq, Sq, D], not rotated, D even. Query i stands at position count[b] - Sq + i and sees the slots up
            to its own.
        key: [B, Hkv, N, D], not rotated; any strides but for the last dimension's, which is 1.
        value: [B, Hkv, N, D], likewise.
        positions: [B, M] int32: slot j of row b is key and value positions[b, j], 0 .. N - 1, rotated to position j.
            What stands at count[b] and behind is not looked at. The faster, the longer its runs of neighbours.
        count: [B] int32, slots in use, 0 .. M. Of a row with fewer than Sq the first queries are padding.
        cos: [R, D / 2] float32, R >= M, of the positions 0, 1, 2, ...: feature i turns with feature i + D / 2, as in
            Llama. Factors that belong to the embedding (YaRN's) may be in them.
        sin: [R, D / 2] float32, likewise.
        scale: factor on q . k, usually D ** -0.5.
        implementation: "triton" or "reference"; None: the fastest that can.

    Returns:
        Output [B, Hq, Sq, D] of the query's dtype, and the logarithm of the softmax's denominator [B, Hq, Sq] float32
        (float64 for float64): what `combine` merges parts by. Zeros and -inf at padding.

    Raises:
        ValueError: shapes, types, devices or a scale that do not fit, an implementation that cannot do this, or a count
            or position out of range. With Triton on a GPU, where looking would wait for the device, a position out of
            range is not read and adds nothing, a count is taken as 0 .. M, and a query that thus sees nothing gets
            zeros and -inf.
    """
    check = Arguments("gather_attention")
    check.tensor("query", query, "B Hq Sq D", FLOATS)
    check.tensor("key", key, "B Hkv N D", query.dtype, strided=True)
    check.tensor("value", value, "B Hkv N D", query.dtype, strided=True)
    check.tensor("positions", positions, "B M", torch.int32)
    check.tensor("count", count, "B", torch.int32)
    check.groups()
    size, slots, steps = check.sizes["D"], check.sizes["M"], check.sizes["Sq"]
    check.require(size % 2 == 0, "query", "of an even head size", size)
    check.require(steps <= slots, "query", f"at most M={slots} queries, each with a slot of its own", steps)
    check.sizes["D/2"] = size // 2
    check.tensor("cos", cos, "R D/2", torch.float32)
    check.tensor("sin", sin, "R D/2", torch.float32)
    check.require(math.isfinite(scale), "scale", "finite", scale)
    check.require(len(cos) >= slots, "cos", f"at least M={slots} rows", len(cos))
    candidates = {
        "triton": triton_refusal(query, asked=implementation == "triton", head_dim=size),
        "reference": None,
    }
    chosen = choose("gather_attention", candidates, implementation)
    if chosen == "reference" or not query.is_cuda:
        _check_values(check, positions, count)
    if chosen == "triton":
        from longloom.kernels.attention.triton.gather import gather_attention as run
    else:
        run = reference
    return run(query, key, value, positions, count, cos, sin, scale)


def _check_values(check: Arguments, positions: Tensor, count: Tensor) -> None:
    """Raise a ValueError with the first count or position in use that is out of range."""
    slots, tokens = check.sizes["M"], check.sizes["N"]
    wrong = (count < 0) | (count > slots)
    if bool(wrong.any()):
        check.require(False, "count", f"0 to M={slots}", int(count[wrong][0]))
    used = torch.arange(slots, device=count.device) < count[:, None]
    wrong = used & ((positions < 0) | (positions >= tokens))
    if bool(wrong.any()):
        check.require(False, "positions", f"0 to {tokens - 1}", int(positions[wrong][0]))


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    count: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """One row and KV head after the other, so that what is gathered stays in the cache; queries in blocks.

    Float32, or float64 for float64.
    """
    heads, steps, size = query.shape[1:]
    kv_heads = key.shape[1]
    group = heads // kv_heads
    exact = torch.promote_types(query.dtype, torch.float32)
    output = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=exact, device=query.device)
    block = max(1, _LOGITS // max(1, group * positions.shape[1]))
    later = torch.ones(2 * [min(block, steps)], dtype=torch.bool, device=query.device).triu(1)
    for b, length in enumerate(count.tolist()):
        index = positions[b, :length]
        empty = max(0, steps - length)  # queries without a slot: a padded row's
        place = slice(length - steps + empty, length)
        rows = _rotate(query[b, :, empty:].to(exact), cos[place], sin[place]).mul_(scale)  # [Hq, Sq - empty, D]
        output[b, :, :empty], lse[b, :, :empty] = 0, -torch.inf
        for h in range(kv_heads):
            own = slice(h * group, (h + 1) * group)
            keys = _rotate(key[b, h].index_select(0, index).to(exact), cos[:length], sin[:length])  # [n, D]
            values = value[b, h].index_select(0, index).to(exact)
            for first in range(empty, steps, block):
                behind = min(first + block, steps)
                seen = length - steps + behind  # slots that the block's last query sees
                asked = rows[own, first - empty : behind - empty].flatten(0, 1)
                # With few rows only a product that begins with the keys is as fast as memory.
                few = len(asked) <= 8
                logits = (keys[:seen] @ asked.T).T.contiguous() if few else asked @ keys[:seen].T
                logits = logits.view(group, behind - first, seen)
                logits[..., first - behind :].masked_fill_(later[: behind - first, : behind - first], -torch.inf)
                peak = logits.amax(dim=-1, keepdim=True)
                weights = logits.sub_(peak).exp_()
                sums = weights.sum(dim=-1, keepdim=True)
                found = (weights.flatten(0, 1) @ values[:seen]).view(group, -1, size)
                output[b, own, first:behind] = (found / sums).to(query.dtype)
                lse[b, own, first:behind] = (peak + sums.log())[..., 0]
    return output, lse


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [..., n, D] with cos, sin [n, D / 2]."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
