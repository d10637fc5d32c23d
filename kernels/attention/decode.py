"""Decode: new queries against a ragged cache, each KV head with a length of its own and a compensation slot.

    o = (sum_j e^{s_j} v_j + N_d e^{s_mean} v_mean) / (sum_j e^{s_j} + N_d e^{s_mean}),   s = scale * q . k

that is ordinary attention with one more slot whose logit gets + log N_d after the scaling (RazorAttention, arXiv
2407.15891, section 3.3). The G query heads of a KV head and the queries of a step are rows of one product.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from longloom.kernels.attention.pages import RaggedKV
from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal

#: Tokens a block of the reference's products.
_BLOCK = 4096

#: Logits that the reference holds at a time, at most (or those of one row of each line).
_LOGITS = 1 << 24

#: Keys that it converts at a time, at most (or those of one line): numbers that stay in a processor's cache.
_CONVERTED = 1 << 19


@torch.no_grad()
def decode(
    query: Tensor, cache: RaggedKV, *, scale: float, alibi: Tensor | None = None, implementation: str | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of the last `nq` tokens, whose keys and values the cache already holds. Not differentiable.

    Args:
        query: [B, Hq, nq, D], rotated, of the cache's dtype. Query i of nq sees the slots before kv_len - (nq - 1 - i):
            a cache that folds (`limit`) takes one query a step.
        cache: what each head keeps.
        scale: factor on q . k, usually D ** -0.5.
        alibi: [Hq] float32 slopes or None: slot j gets slope * (j - the query's own slot), which is ALiBi where the
            slots are a row's last tokens.
        implementation: "triton" or "reference"; None: the fastest that can.

    Returns:
        Output [B, Hq, nq, D] of the query's dtype, zeros where nothing is seen, and the logarithm of the softmax's
        denominator [B, Hq, nq] float32 (float64 for float64), -inf there: what `combine` merges parts by.

    Raises:
        ValueError: shapes, types, devices or a scale that do not fit, or an implementation that cannot do this.
    """
    check = Arguments("decode")
    check.tensor("query", query, "B Hq nq D", FLOATS)
    check.tensor("cache.keys", cache.keys, "P page D", query.dtype)
    check.tensor("cache.kv_len", cache.kv_len, "B Hkv", torch.int32)
    check.groups()
    check.require(cache.limit is None or query.shape[2] == 1, "query", "one a step, as the cache folds", query.shape[2])
    check.require(math.isfinite(scale), "scale", "finite", scale)
    if alibi is not None:
        check.tensor("alibi", alibi, "Hq", torch.float32)
    candidates = {
        "triton": triton_refusal(query, asked=implementation == "triton", head_dim=query.shape[-1]),
        "reference": None,
    }
    if choose("decode", candidates, implementation) == "triton":
        from longloom.kernels.attention.triton.decode import decode as run
    else:
        run = reference
    return run(query, cache, scale, alibi)


def reference(query: Tensor, cache: RaggedKV, scale: float, alibi: Tensor | None) -> tuple[Tensor, Tensor]:
    """Lines (a row and a KV head) of equal length together, on views of the pages; float32, or float64 for float64."""
    batch, heads, steps, size = query.shape
    kv_heads = cache.kv_len.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    rows = query.reshape(batch * kv_heads, heads // kv_heads * steps, size).to(exact) * scale  # [lines, G * nq, D]
    output = torch.empty_like(rows)
    lse = torch.empty(rows.shape[:2], dtype=exact, device=query.device)
    later = torch.arange(steps - 1, -1, -1, device=query.device).repeat(heads // kv_heads)  # queries behind a row's
    slopes = None if alibi is None else alibi.to(exact).view(kv_heads, -1).repeat_interleave(steps, 1).repeat(batch, 1)
    for lines, keys, values in _groups(cache, sys.maxsize if query.dtype == exact else _CONVERTED):
        keys, values = keys.to(exact), values.to(exact)
        length = keys.shape[1]
        some = max(1, _LOGITS // (len(keys) * (length + 1)))
        for begin in range(0, rows.shape[1], some):
            part = lines, slice(begin, begin + some)
            logits = _scores(keys, rows[part])  # [n, rows, length + 1]: the last column is the mean's
            if steps > 1 or slopes is not None:
                distance = torch.arange(length, device=query.device) - (length - 1 - later[part[1], None])
                if slopes is not None:
                    logits[..., :length] += slopes[part][..., None] * distance
                logits[..., :length].masked_fill_(distance > 0, -torch.inf)
            if cache.dropped is None:
                logits[..., length] = -torch.inf
            else:
                assert cache.mean_key is not None
                mean = rows[part] @ cache.mean_key.flatten(0, 1)[lines, :, None].to(exact)
                count = cache.dropped.flatten()[lines, None].to(exact)
                logits[..., length] = mean[..., 0] + count.log()  # log 0 = -inf: no such slot
            peak = logits.amax(dim=-1, keepdim=True)
            weights = logits.sub_(peak.clamp(min=torch.finfo(exact).min)).exp_()
            total = weights.sum(dim=-1, keepdim=True)
            seen = _mix(weights, values)
            if cache.mean_value is not None:
                seen += weights[..., length:] * cache.mean_value.flatten(0, 1)[lines, None].to(exact)
            output[part] = seen / total.clamp(min=torch.finfo(exact).tiny)
            lse[part] = (peak + total.log())[..., 0]  # -inf where nothing is seen
    return output.to(query.dtype).reshape(query.shape), lse.reshape(batch, heads, steps)


# A product of a few rows with many keys is as fast as memory only in certain shapes: as a batch, keys first. On two
# cores q @ k.T over 32K keys of 8 heads took 14 ms, a batch with the keys first 4 to 6; weights @ values 10 ms, as a
# batch 5 to 6.


def _scores(keys: Tensor, rows: Tensor) -> Tensor:
    """keys [n, N, D], rows [n, R, D]: rows @ keys.T in [n, R, N + 1], the last column left open."""
    scores = keys.new_empty(*rows.shape[:2], keys.shape[1] + 1)
    if len(keys) > 1:
        scores[..., :-1] = torch.bmm(keys, rows.mT).mT
        return scores
    blocks, whole = _blocks(keys.shape[1])
    pieces = keys[0, :whole].view(blocks, _BLOCK, keys.shape[2])
    scores[0, :, :whole] = torch.bmm(pieces, rows.mT.expand(blocks, -1, -1)).flatten(0, 1).T
    scores[0, :, whole:-1] = torch.mm(keys[0, whole:], rows[0].T).T
    return scores


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """weights [n, R, N + 1] without its last column @ values [n, N, D]: [n, R, D]."""
    if len(values) > 1:
        return torch.bmm(weights[..., :-1], values)
    blocks, whole = _blocks(values.shape[1])
    parts = weights[0, :, :whole].unflatten(1, (blocks, _BLOCK)).transpose(0, 1)
    sums = torch.bmm(parts, values[0, :whole].view(blocks, _BLOCK, values.shape[2])).sum(dim=0)
    return sums.addmm_(weights[0, :, whole:-1], values[0, whole:])[None]


def _blocks(length: int) -> tuple[int, int]:
    """Whole blocks in a length, and what they cover."""
    return length // _BLOCK, length // _BLOCK * _BLOCK


def _groups(cache: RaggedKV, most: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Neighbouring lines of equal length with their keys and values [n, length, D] in order, so many numbers at most.

    Views where each line's pages stand side by side, and the lines equally far apart, as `compress` and `append` lay
    them out; else a line's pages are copied together.
    """
    page, size = cache.page, cache.keys.shape[2]
    table = cache.host_table.flatten(0, 1)
    lengths = cache.host_len.flatten().tolist()
    inside = torch.arange(1, table.shape[1]) * page < cache.host_len.flatten()[:, None]
    straight = ((table.diff() == 1) | ~inside).all(dim=1).tolist()
    first = table[:, 0].clamp(min=0).tolist()
    begin = 0
    while begin < len(lengths):
        end, length = begin + 1, lengths[begin]
        apart = max(0, first[end] - first[begin]) if end < len(lengths) else 0
        while (
            end < len(lengths)
            and lengths[end] == length
            and (end + 1 - begin) * length * size <= most
            and straight[begin]
            and straight[end]
            and first[end] - first[end - 1] == apart > 0
        ):
            end += 1
        if straight[begin]:
            shape, strides = (end - begin, length, size), (apart * page * size, size, 1)
            parts = [pool[first[begin] :].as_strided(shape, strides) for pool in (cache.keys, cache.values)]
        else:
            own = table[begin, : -(-length // page)].to(cache.keys.device)
            parts = [pool[own].flatten(0, 1)[None, :length] for pool in (cache.keys, cache.values)]
        yield slice(begin, end), parts[0], parts[1]
        begin = end
