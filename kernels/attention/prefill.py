"""Prefill: causal attention of packed rows, each KV head either full or a sliding window with sinks.

    o_p = sum_j softmax_j(scale * q_p . k_j + slope * (j - p)) v_j   over j <= p with  j < sink  or  p - j < window

A full head's window has no end. The G query heads of a KV head are rows of one product; work and memory follow what is
seen, so a windowed head costs T * (sink + window), not T * T. Slopes: ALiBi (Press et al., arXiv 2108.12409); sinks:
StreamingLLM (Xiao et al., arXiv 2309.17453).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal

#: Logits that the reference holds at a time, at most (or those of 16 tokens): they stay in the cache.
_LOGITS = 1 << 21


def prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    *,
    scale: float,
    window: Tensor | None = None,
    sink: Tensor | None = None,
    alibi: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Attention of new tokens to the keys before and among them; differentiable in query, key and value.

    Args:
        query: [Tq, Hq, D], the rows of the batch behind each other; any strides but the last dimension's, which must be
            1, as `cache[b].transpose(0, 1)` has them. A row's queries are the last of its keys' tokens.
        key: [Tk, Hkv, D], likewise.
        value: [Tk, Hkv, D], likewise.
        cu_q: [B + 1] int32 on the host: row b's queries are cu_q[b] .. cu_q[b + 1] - 1.
        cu_k: [B + 1] int32 on the host: row b's keys, at least one and at least as many as its queries.
        scale: factor on q . k, positive, usually D ** -0.5.
        window: [Hkv] int32, keys that a query sees, itself included; -1: all, as for every head where it is None. Not
            checked for less than -1, which is taken for -1, where it is on a GPU.
        sink: [Hkv] int32, keys at a row's beginning that all its queries see beside their window; None: none.
        alibi: [Hq] float32 slopes or None; they get no gradient.
        implementation: "sdpa", "triton" or "reference"; None: the fastest that can.

    Returns:
        [Tq, Hq, D] of the query's dtype, zeros where nothing is seen (window and sink 0).

    Raises:
        ValueError: shapes, types, devices or lengths that do not fit, or an implementation that cannot do this.
    """
    group = _check("prefill", query, key, value, cu_q, cu_k, scale, window, sink, alibi)
    candidates = {
        "sdpa": _sdpa_refusal(query, group, cu_q, cu_k, window, alibi),
        "triton": triton_refusal(query, asked=implementation == "triton", head_dim=query.shape[-1]),
        "reference": None,
    }
    chosen = choose("prefill", candidates, implementation)
    if chosen == "sdpa":
        return _sdpa(query, key, value, cu_q, cu_k, scale)
    if chosen == "triton":
        from longloom.kernels.attention.triton.prefill import prefill as run
    else:
        run = reference
    return run(query, key, value, cu_q, cu_k, scale, window, sink, alibi)[0]


def prefill_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    *,
    scale: float,
    window: Tensor | None = None,
    sink: Tensor | None = None,
    alibi: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`prefill` and the logarithm of each softmax's denominator: what `combine` merges parts by.

    Args:
        implementation: "triton" or "reference"; None: the fastest that can. The others: see `prefill`.

    Returns:
        The output, and [Hq, Tq] float32 (float64 for float64), -inf where nothing is seen; without a gradient.

    Raises:
        ValueError: see `prefill`.
    """
    _check("prefill_lse", query, key, value, cu_q, cu_k, scale, window, sink, alibi)
    candidates = {
        "triton": triton_refusal(query, asked=implementation == "triton", head_dim=query.shape[-1]),
        "reference": None,
    }
    if choose("prefill_lse", candidates, implementation) == "triton":
        from longloom.kernels.attention.triton.prefill import prefill as run
    else:
        run = reference
    return run(query, key, value, cu_q, cu_k, scale, window, sink, alibi)


def _check(
    operation: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    scale: float,
    window: Tensor | None,
    sink: Tensor | None,
    alibi: Tensor | None,
) -> int:
    """Check all arguments; query heads a KV head."""
    check = Arguments(operation)
    check.tensor("query", query, "Tq Hq D", FLOATS, strided=True)
    check.tensor("key", key, "Tk Hkv D", query.dtype, strided=True)
    check.tensor("value", value, "Tk Hkv D", query.dtype, strided=True)
    group = check.groups()
    check.require(0 < scale < math.inf, "scale", "positive and finite", scale)
    for name, heads in (("window", window), ("sink", sink)):
        if heads is not None:
            check.tensor(name, heads, "Hkv", torch.int32)
            if heads.device.type == "cpu":
                least = -1 if name == "window" else 0
                check.require(bool((heads >= least).all()), name, f"at least {least}", min(heads.tolist(), default=0))
    if alibi is not None:
        check.tensor("alibi", alibi, "Hq", torch.float32)
    host = Arguments(operation)
    for name, cu, tokens in (("cu_q", cu_q, len(query)), ("cu_k", cu_k, len(key))):
        host.tensor(name, cu, "B+1", torch.int32)
        host.require(cu.device.type == "cpu", name, "on the CPU", cu.device)
        found = cu.tolist()
        right = found[:1] == [0] and found[-1] == tokens and found == sorted(found)
        host.require(right, name, f"rising from 0 to {tokens}, all the tokens there are", found)
    for b, (new, seen) in enumerate(zip(cu_q.diff().tolist(), cu_k.diff().tolist(), strict=True)):
        host.require(seen >= max(new, 1), "cu_k", f"of at least {max(new, 1)} keys in row {b}", seen)
    return group


def _sdpa_refusal(
    query: Tensor, group: int, cu_q: Tensor, cu_k: Tensor, window: Tensor | None, alibi: Tensor | None
) -> str | None:
    """Why torch's attention cannot do this, or on CUDA not without its slow path, which holds T x T logits."""
    if window is not None or alibi is not None:
        return f"torch's attention has no {'window' if window is not None else 'alibi'}"
    if not query.is_cuda:
        return None
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.shape[-1] > 256 or not (half or (query.dtype == torch.float32 and group == 1)):
        kind = str(query.dtype).removeprefix("torch.")
        return f"on CUDA no fused kernel of torch takes {kind}, {group} heads a KV head, head size {query.shape[-1]}"
    for begin_q, end_q, begin_k, end_k in _rows(cu_q, cu_k):
        new, seen = end_q - begin_q, end_k - begin_k
        if new > 1 and new != seen:  # a single query sees all keys, without a mask
            return f"on CUDA {new} queries after {seen - new} earlier keys need a mask, which takes torch's slow path"
    return None


def _sdpa(query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, scale: float) -> Tensor:
    """One row after the other; bit for bit what `kvcache.full` computes."""
    heads, size = query.shape[1:]
    outputs = []
    for begin_q, end_q, begin_k, end_k in _rows(cu_q, cu_k):
        new, seen = end_q - begin_q, end_k - begin_k
        q = query[begin_q:end_q].transpose(0, 1)[None]  # [1, Hq, S, D]
        k, v = (part[begin_k:end_k].transpose(0, 1)[None] for part in (key, value))
        if new == 1:
            # All query heads of a KV head read the same keys: as rows of one product, twice as fast as enable_gqa.
            packed = q.reshape(1, k.shape[1], -1, size)
            row = scaled_dot_product_attention(packed, k, v, scale=scale).reshape(1, heads, 1, size)
        else:
            slots = torch.arange(seen, device=query.device)
            mask = None if new == seen else slots <= slots[seen - new :, None]
            row = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
            )
        outputs.append(row[0].transpose(0, 1))
    return torch.cat(outputs) if outputs else query.clone()  # no queries


def reference(
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
    """Heads of one window and sink together, block of queries after block; float32, or float64 for float64.

    A block takes only the keys that it sees, and its logits are computed anew for the gradients: no T x T is ever held.
    """
    kv_heads = key.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    queries = query.unflatten(1, (kv_heads, -1))  # [Tq, Hkv, G, D]
    group = queries.shape[2]
    slopes = None if alibi is None else alibi.detach().to(exact).view(kv_heads, group)
    recompute = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    lse = torch.empty(kv_heads, len(query), group, dtype=exact, device=query.device)
    rows = []
    for begin_q, end_q, begin_k, end_k in _rows(cu_q, cu_k):
        first = (end_k - begin_k) - (end_q - begin_q)  # position of the first query
        parts, order = [], []
        for width, sinks, heads in _modes(window, sink, kv_heads, _LOGITS // (64 * group * (end_k - begin_k))):
            index = torch.tensor(heads, device=query.device)
            keys, values = (part[begin_k:end_k, index].transpose(0, 1).to(exact) for part in (key, value))
            own = None if slopes is None else slopes[index]
            blocks = []
            for begin, end in _blocks(first, end_k - begin_k, width, sinks, len(heads) * group):
                some = queries[begin_q + begin - first : begin_q + end - first, index].transpose(0, 1).to(exact) * scale
                work = (some, keys, values, begin, width, sinks, own)
                if recompute:
                    block, total = checkpoint(_block, *work, use_reentrant=False, preserve_rng_state=False)
                else:
                    block, total = _block(*work)
                lse[index, begin_q + begin - first : begin_q + end - first] = total
                blocks.append(block.to(query.dtype))
            order += heads
            parts.append(torch.cat(blocks, dim=1))
        inverse = torch.tensor(order, device=query.device).argsort()
        rows.append(torch.cat(parts).transpose(0, 1)[:, inverse].flatten(1, 2))  # [S, Hq, D]
    output = torch.cat(rows) if rows else query.clone()  # no queries
    return output, lse.transpose(1, 2).reshape(query.shape[1], len(query))


def _block(
    queries: Tensor, keys: Tensor, values: Tensor, begin: int, width: int, sinks: int, slopes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Queries [H, n, G, D], scaled, at positions from `begin` on: their output and lse [H, n, G]."""
    end = begin + queries.shape[1]
    left = 0 if width < 0 else min(max(0, begin - width + 1), end - 1)  # one key at least, be it seen or not
    apart = min(sinks, left)
    places = torch.arange(left, end, device=queries.device)
    if apart:
        keys, values = (torch.cat((part[:, :apart], part[:, left:end]), dim=1) for part in (keys, values))
        places = torch.cat((torch.arange(apart, device=queries.device), places))
    else:
        keys, values = keys[:, left:end], values[:, left:end]
    logits = (queries.flatten(1, 2) @ keys.mT).unflatten(1, queries.shape[1:3])  # [H, n, G, keys]
    # Every query of a full head sees the keys before the block: there is something to hide among the block's own alone.
    edge = begin if width < 0 and slopes is None else 0
    distance = places[edge:] - torch.arange(begin, end, device=queries.device)[:, None]  # [n, keys]
    if slopes is not None:
        logits += slopes[:, None, :, None] * distance[:, None]
    hidden = distance > 0
    if width >= 0:
        hidden |= (distance <= -width) & (places >= sinks)
    logits[..., edge:].masked_fill_(hidden[:, None], -torch.inf)
    peak = logits.detach().amax(dim=-1, keepdim=True)
    weights = logits.sub_(peak.clamp(min=torch.finfo(logits.dtype).min)).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    output = (weights.flatten(1, 2) @ values).unflatten(1, queries.shape[1:3])
    # Wherever anything is seen the total is at least 1, the peak's own term: so 1 stands for nothing.
    return output / total.clamp(min=1), (peak + total.detach().log())[..., 0]


def _rows(cu_q: Tensor, cu_k: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """Begin and end of each row's queries and keys, of the rows with queries."""
    queries, keys = cu_q.tolist(), cu_k.tolist()
    for row in zip(queries, queries[1:], keys, keys[1:], strict=False):
        if row[0] < row[1]:
            yield row


def _modes(
    window: Tensor | None, sink: Tensor | None, kv_heads: int, most: int
) -> Iterator[tuple[int, int, list[int]]]:
    """Windows (-1: none) and sinks with the heads that have them, at most so many heads at a time."""
    widths = [-1] * kv_heads if window is None else window.tolist()
    sinks = [0] * kv_heads if sink is None else sink.tolist()
    modes: dict[tuple[int, int], list[int]] = {}
    for head, (width, first) in enumerate(zip(widths, sinks, strict=True)):
        modes.setdefault((width, first) if width >= 0 else (-1, 0), []).append(head)
    for (width, first), heads in modes.items():
        for begin in range(0, len(heads), max(1, most)):
            yield width, first, heads[begin : begin + max(1, most)]


def _blocks(first: int, last: int, width: int, sinks: int, heads: int) -> Iterator[tuple[int, int]]:
    """Positions first .. last - 1 in blocks, small beside a window: what a block computes beyond it is hidden."""
    begin = first
    while begin < last:
        seen = begin + 1 if width < 0 else min(begin + 1, sinks + width + 1)
        most = 256 if width < 0 else min(256, max(32, width // 4))
        end = min(last, begin + max(16, min(most, _LOGITS // (heads * seen))))
        yield begin, end
        begin = end
