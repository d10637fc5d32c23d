"""Attention over chosen keys of a cache, rotated to the contiguous positions 0, 1, 2, ... as they are read.

    o_i = softmax_j<=p_i(scale * R(p_i) q_i . R(j) k[idx_j]) v[idx_j],   p_i = count - Sq + i

The cache holds keys without rotary embedding (RoPE); each call sees global, selected and local keys side by side, so no
position is ever beyond the trained window (LongCache / ReAttention, arXiv 2407.15176, section 3). No copy is gathered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal

#: With at most so many queries for a KV head the reference's time is that of reading keys and values.
_ROWS = 64

#: What it has at hand, in numbers, so that it stays in a processor's cache: of keys or values, of many queries' logits.
_BLOCK = 1 << 19
_LOGITS = 1 << 20

#: Runs of so many neighbours are read where they lie.
_RUN = 1024


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
    check.require(size > 0 and size % 2 == 0, "query", "of an even head size", size)
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
    for row, length in zip(positions, count.tolist(), strict=True):
        check.require(0 <= length <= slots, "count", f"0 to M={slots}", length)
        if length:
            low, high = (int(bound) for bound in row[:length].aminmax())
            check.require(low >= 0, "positions", f"0 to {tokens - 1}", low)
            check.require(high < tokens, "positions", f"0 to {tokens - 1}", high)


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
    """One row of the batch after the other. Float32, or float64 for float64.

    With few queries the reading of keys and values takes the time: all heads at once, slots in blocks. With many the
    products and the softmax do: one KV head after the other, queries in blocks.
    """
    heads, steps, size = query.shape[1:]
    kv_heads = key.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    cos, sin = cos.to(exact), sin.to(exact)
    output = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=exact, device=query.device)
    for b, length in enumerate(count.tolist()):
        real = min(steps, length)  # queries with a slot; the others are a padded row's
        output[b, :, : steps - real], lse[b, :, : steps - real] = 0, -torch.inf
        if real == 0:
            continue
        own = slice(length - real, length)
        rows = _rotate(query[b, :, steps - real :].to(exact), cos[own], sin[own]).mul_(scale)  # [Hq, real, D]
        attend = _few if heads // kv_heads * real <= _ROWS else _many
        found, parts = attend(
            rows.view(kv_heads, -1, real, size), key[b], value[b], positions[b, :length], cos[:length], sin[:length]
        )
        output[b, :, steps - real :], lse[b, :, steps - real :] = found.flatten(0, 1), parts.flatten(0, 1)
    return output, lse


def _few(rows: Tensor, key: Tensor, value: Tensor, index: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Of rotated, scaled queries [Hkv, G, S, D] the output and lse [Hkv, G, S] over the slots `index` [n].

    What is gathered and rotated goes to the same small buffers again and again: fresh memory costs more than the work.
    """
    kv_heads, group, steps, size = rows.shape
    flat, length = rows.flatten(1, 2), len(index)
    block = min(length, max(64, _BLOCK // (kv_heads * size)))
    pieces = _pieces(index, block)
    taken = torch.empty(kv_heads * block, size, dtype=key.dtype, device=key.device)
    turned = torch.empty(kv_heads * block * size, dtype=rows.dtype, device=key.device)
    logits = torch.empty(kv_heads, group, steps, length, dtype=rows.dtype, device=key.device)
    for first, behind, part in _parts(key, index, pieces, taken):
        keys = turned[: part.numel()].view(part.shape)
        _rotate(part.to(rows.dtype), cos[first:behind], sin[first:behind], out=keys)
        logits.flatten(1, 2)[..., first:behind] = flat @ keys.mT
    sums, lse = _weigh(logits)
    found = torch.zeros_like(flat)
    for first, behind, part in _parts(value, index, pieces, taken):
        found.baddbmm_(logits.flatten(1, 2)[..., first:behind], part.to(rows.dtype))
    return found.view(rows.shape).div_(sums), lse


def _many(rows: Tensor, key: Tensor, value: Tensor, index: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Like `_few`."""
    kv_heads, group, steps, size = rows.shape
    length = len(index)
    block = max(1, _LOGITS // (group * length))
    buffer = torch.empty(group * min(block, steps) * length, dtype=rows.dtype, device=key.device)
    found, lse = torch.empty_like(rows), rows.new_empty(rows.shape[:3])
    tables = [_table(x, index) for x in (key, value)]
    for h in range(kv_heads):
        keys, values = (table.index_select(0, places[h]).to(rows.dtype) for table, places in tables)  # [n, D]
        keys = _rotate(keys, cos, sin)
        for first in range(0, steps, block):
            behind = min(first + block, steps)
            seen = length - steps + behind  # slots that the block's last query sees
            asked = rows[h, :, first:behind].flatten(0, 1)
            logits = torch.mm(asked, keys[:seen].T, out=buffer[: len(asked) * seen].view(-1, seen))
            sums, lse[h, :, first:behind] = _weigh(logits.view(group, -1, seen))
            found[h, :, first:behind] = (logits @ values[:seen]).view(group, -1, size).div_(sums)
    return found, lse


def _weigh(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [..., S, n] of the queries of the last S of n slots become weights; their sums [..., S, 1], lse [..., S].

    The weights are not divided by the sums.
    """
    steps = logits.shape[-2]
    if steps > 1:
        later = torch.ones(steps, steps, dtype=torch.bool, device=logits.device).triu_(1)
        logits[..., -steps:].masked_fill_(later, -torch.inf)
    peak = logits.amax(dim=-1, keepdim=True)
    sums = logits.sub_(peak).exp_().sum(dim=-1, keepdim=True)
    return sums, (peak + sums.log())[..., 0]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotary embedding of x [..., n, D] with cos, sin [n, D / 2], in `out` if given."""
    half = cos.shape[1]
    out = torch.mul(x, torch.cat((cos, cos), dim=-1), out=out)
    out[..., :half].addcmul_(x[..., half:], sin, value=-1)
    out[..., half:].addcmul_(x[..., :half], sin)
    return out


def _pieces(index: Tensor, block: int) -> list[tuple[int, int, int | None]]:
    """The slots in order, in pieces of at most `block`: their bounds, and the first's position if it is a long run."""
    length = len(index)
    runs = [0, length]
    if length >= _RUN:
        runs[1:1] = (index.diff() != 1).nonzero()[:, 0].add_(1).tolist()
    cuts: list[tuple[int, int, int | None]] = []
    behind = 0
    for first, end in pairwise(runs):
        if end - first >= _RUN:
            cuts += [(behind, first, None), (first, end, int(index[first]))]
            behind = end
    cuts.append((behind, length, None))
    return [
        (at, min(at + block, end), None if place is None else place + at - first)
        for first, end, place in cuts
        for at in range(first, end, block)
    ]


def _parts(
    x: Tensor, index: Tensor, pieces: list[tuple[int, int, int | None]], taken: Tensor
) -> Iterator[tuple[int, int, Tensor]]:
    """Each piece's bounds and x [Hkv, its slots, D]: a view of x, or of `taken` until the next one."""
    table, places = _table(x, index)
    for first, behind, place in pieces:
        if place is not None:
            yield first, behind, x[:, place : place + behind - first]
        else:
            wanted = places[:, first:behind]
            rows = torch.index_select(table, 0, wanted.flatten(), out=taken[: wanted.numel()])
            yield first, behind, rows.view(*wanted.shape, -1)


def _table(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """x [Hkv, N, D] as a table of rows [.., D], and where in it each head's tokens `index` [n] are: [Hkv, n] int64.

    Along its middle dimension `index_select` takes a thousand times as long where there are gaps between the heads, as
    in a cache with room to spare (torch 2.13).
    """
    heads, tokens, size = x.shape
    if x.stride(0) % size or x.stride(1) % size:
        x = x.contiguous()
    head, token = x.stride(0) // size, x.stride(1) // size
    table = x.as_strided(((heads - 1) * head + (tokens - 1) * token + 1, size), (size, 1))
    return table, torch.add(torch.arange(heads, device=x.device)[:, None] * head, index, alpha=token)
