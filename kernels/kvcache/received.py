"""The attention that each key receives: column sums of a causal attention matrix that is never held as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

#: Weights in memory at once: numbers over all heads of a row (or those of one query). On a CPU about what its cache
#: holds; a GPU, which wants much to do at a time, gets 32 times as many.
_WEIGHTS = 1 << 21


@torch.no_grad()
def received(queries: Tensor, keys: Tensor, start: Tensor | None, scaling: float) -> Tensor:
    """What the last S slots' queries pay to each key, summed over them and over the query heads of a KV head.

    Sums over chunks of a prompt add up to those of the whole. Rows do not meet.

    Args:
        queries: [B, Hq, S, D], rotated; each sees the slots up to its own.
        keys: [B, Hkv, N, D], rotated, N >= S.
        start: [B] int64 left padding, which neither pays nor receives; None: there is none.
        scaling: factor on the scores.

    Returns:
        [B, Hkv, N] float32 (float64 for float64).
    """
    batch, kv_heads, length, _ = keys.shape
    new = queries.shape[2]
    exact = torch.promote_types(keys.dtype, torch.float32)
    sums = torch.zeros(batch, kv_heads, length, dtype=exact, device=keys.device)
    most = _WEIGHTS if keys.device.type == "cpu" else 32 * _WEIGHTS
    block = max(1, most // max(1, queries.shape[1] * length))
    later = torch.ones(2 * [min(block, new)], dtype=torch.bool, device=keys.device).triu(1)
    for row, padding in enumerate([0] * batch if start is None else start.tolist()):
        packed = queries[row].unflatten(0, (kv_heads, -1)).to(exact)  # [Hkv, G, S, D]
        wide = keys[row, :, padding:].to(exact)  # once, for every block reads them: half types would round the scores
        for begin in range(max(length - new, padding), length, block):
            end = min(begin + block, length)
            asked = packed[:, :, begin - length + new : end - length + new]  # [Hkv, G, n, D]
            logits = (asked.flatten(1, 2) @ wide[:, : end - padding].mT).mul_(scaling)  # [Hkv, G * n, keys]
            own = logits.unflatten(1, asked.shape[1:3])[..., begin - end :]
            own.masked_fill_(later[: end - begin, : end - begin], -torch.inf)
            weights = logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
            # Each query's sum is 1: dividing and adding up are one product.
            shares = weights.sum(dim=-1, keepdim=True).reciprocal_()
            sums[row, :, padding:end] += (shares.mT @ weights)[:, 0]
    return sums
