"""Decode: new queries against a ragged cache, each KV head with a length of its own and a compensation slot.

    o = (sum_j e^{s_j} v_j + N_d e^{s_mean} v_mean) / (sum_j e^{s_j} + N_d e^{s_mean}),   s = scale * q . k

that is ordinary attention with one more slot whose logit gets + log N_d after the scaling (RazorAttention, arXiv
2407.15891, section 3.3). The G query heads of a KV head and the queries of a step are rows of one product.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from longloom.kernels.attention.pages import RaggedKV
from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal

#: Tokens a block of the reference's products.
_BLOCK = 4096


def decode(
    query: Tensor, cache: RaggedKV, *, scale: float, alibi: Tensor | None = None, implementation: str | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of the last `nq` tokens, whose keys and values the cache already holds.

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
        ValueError: shapes, types or devices that do not fit, or an implementation that cannot do this.
    """
    check = Arguments("decode")
    check.tensor("query", query, "B Hq nq D", FLOATS)
    check.tensor("cache.keys", cache.keys, "P page D", query.dtype)
    check.tensor("cache.kv_len", cache.kv_len, "B Hkv", torch.int32)
    check.groups()
    check.require(cache.limit is None or query.shape[2] == 1, "query", "one a step, as the cache folds", query.shape[2])
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
    """One row and KV head after the other, on views of the pages; float32, or float64 for float64."""
    batch, heads, steps, size = query.shape
    kv_heads = cache.kv_len.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    rows = query.reshape(batch, kv_heads, -1, size).to(exact)  # [B, Hkv, G * nq, D]
    output = torch.empty_like(rows)
    lse = torch.empty(rows.shape[:3], dtype=exact, device=query.device)
    ahead = torch.arange(steps - 1, -1, -1, device=query.device).repeat(rows.shape[2] // steps)  # later queries
    for b in range(batch):
        for h in range(kv_heads):
            length = int(cache.host_len[b, h])
            pieces = list(_runs(cache, b, h, length))
            scaled = rows[b, h] * scale
            logits = torch.full((rows.shape[2], length + 1), -torch.inf, dtype=exact, device=query.device)
            begin = 0
            for keys, _ in pieces:
                logits[:, begin : begin + len(keys)] = _scores(keys.to(exact), scaled).T
                begin += len(keys)
            if steps > 1 or alibi is not None:
                distance = torch.arange(length, device=query.device) - (length - 1 - ahead[:, None])  # [G * nq, N]
                if alibi is not None:
                    slopes = alibi.view(kv_heads, -1)[h].repeat_interleave(steps)
                    logits[:, :length] += slopes[:, None].to(exact) * distance
                logits[:, :length].masked_fill_(distance > 0, -torch.inf)
            if cache.dropped is not None:
                assert cache.mean_key is not None
                mean = scaled @ cache.mean_key[b, h].to(exact)
                logits[:, length] = mean + cache.dropped[b, h].to(exact).log()  # log 0 = -inf: no such slot
            peak = logits.amax(dim=-1)
            weights = logits.sub_(peak.clamp(min=torch.finfo(exact).min)[:, None]).exp_()
            total = weights.sum(dim=-1)
            seen = torch.zeros_like(rows[b, h])
            begin = 0
            for _, values in pieces:
                seen += _mix(weights[:, begin : begin + len(values)], values.to(exact))
                begin += len(values)
            if cache.mean_value is not None:
                seen.addr_(weights[:, length], cache.mean_value[b, h].to(exact))
            output[b, h] = seen / total.clamp(min=torch.finfo(exact).tiny)[:, None]
            lse[b, h] = peak + total.log()  # -inf where nothing is seen
    return output.to(query.dtype).reshape(query.shape), lse.reshape(batch, heads, steps)


# A product of a few rows with many keys is as fast as memory only in certain shapes: as a batch of blocks, keys first.
# On two cores q @ k.T over 32K keys of 8 heads took 14 ms, this 4 to 5; weights @ values 10 ms, this 5 to 6.


def _scores(keys: Tensor, rows: Tensor) -> Tensor:
    """keys [n, D] @ rows [R, D].T: [n, R]."""
    blocks, size = len(keys) // _BLOCK, keys.shape[1]
    whole = blocks * _BLOCK
    scores = keys.new_empty(len(keys), len(rows))
    torch.bmm(
        keys[:whole].view(blocks, _BLOCK, size),
        rows.T.expand(blocks, -1, -1),
        out=scores[:whole].view(blocks, _BLOCK, len(rows)),
    )
    torch.mm(keys[whole:], rows.T, out=scores[whole:])
    return scores


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """weights [R, n] @ values [n, D]: [R, D]."""
    blocks, size = len(values) // _BLOCK, values.shape[1]
    whole = blocks * _BLOCK
    parts = torch.bmm(
        weights[:, :whole].unflatten(1, (blocks, _BLOCK)).transpose(0, 1), values[:whole].view(blocks, _BLOCK, size)
    )
    return parts.sum(dim=0).addmm_(weights[:, whole:], values[whole:])


def _runs(cache: RaggedKV, row: int, head: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values [n, D] of one head's slots in order, as views: one for each run of neighbouring pages."""
    page, size = cache.page, cache.keys.shape[2]
    pages = cache.host_table[row, head, : -(-length // page)]
    ends = (torch.nonzero(pages.diff() != 1)[:, 0] + 1).tolist()
    for begin, end in zip([0, *ends], [*ends, len(pages)], strict=True):
        first, tokens = int(pages[begin]) if len(pages) else 0, min(end * page, length) - begin * page
        run = slice(first * page, first * page + tokens)
        yield cache.keys.view(-1, size)[run], cache.values.view(-1, size)[run]
