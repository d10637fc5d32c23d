"""Append new tokens to a ragged cache, in place; where a head is full, its oldest token is folded into its mean.

    mean <- (N_d * mean + k_old) / (N_d + 1),   N_d <- N_d + 1

The mean after folding is the mean of everything dropped, so a cache that folds stays what `compress` makes of the
longer prompt, and does not grow (our extension of RazorAttention, arXiv 2407.15891, section 3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from longloom.kernels.attention.pages import UNLIMITED, RaggedKV
from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal


@torch.no_grad()
def append(cache: RaggedKV, key: Tensor, value: Tensor, *, implementation: str | None = None) -> None:
    """Add the keys and values of S new tokens a row to every KV head. Not differentiable.

    Heads without a limit take them behind their last slot, on new pages when the old ones are full (`RaggedKV.grow`).
    Heads with one do so until they are full; then a new token takes the place of the oldest behind the sinks.

    Args:
        cache: changed in place; its tensors may be replaced by larger ones.
        key: [B, Hkv, S, D], rotated, of the cache's dtype; any strides but for the last dimension's, which is 1.
        value: [B, Hkv, S, D], likewise.
        implementation: "triton" or "reference"; None: the fastest that can.

    Raises:
        ValueError: shapes, types or devices that do not fit, or an implementation that cannot do this.
    """
    check = Arguments("append")
    check.tensor("key", key, "B Hkv S D", FLOATS, strided=True)
    check.tensor("value", value, "B Hkv S D", key.dtype, strided=True)
    check.tensor("cache.keys", cache.keys, "P page D", key.dtype)
    check.tensor("cache.kv_len", cache.kv_len, "B Hkv", torch.int32)
    candidates = {
        "triton": triton_refusal(key, asked=implementation == "triton", head_dim=key.shape[3]),
        "reference": None,
    }
    if choose("append", candidates, implementation) == "triton":
        from longloom.kernels.attention.triton.append import append as run
    else:
        run = reference
    new = key.shape[2]
    if not key.numel():
        return
    cache.grow(new)
    run(cache, key, value)
    cache.advance(new)


def reference(cache: RaggedKV, key: Tensor, value: Tensor) -> None:
    """All rows and heads at once; more tokens than the shortest ring has slots come in pieces of that length."""
    new = key.shape[2]
    piece = new
    if cache.limit is not None and new > 1:
        piece = min(new, int(cache.host_limit.masked_fill(cache.host_limit == 0, UNLIMITED).min()) - cache.sink)
    for begin in range(0, new, piece):
        _append(cache, key[:, :, begin : begin + piece], value[:, :, begin : begin + piece])


def _append(cache: RaggedKV, key: Tensor, value: Tensor) -> None:
    new, size = key.shape[2:]
    slot = cache.kv_len[..., None] + torch.arange(new, device=key.device)  # [B, Hkv, S] int64
    if cache.limit is None:
        target = _flat(cache, slot)
        cache.kv_len += new
    else:
        target = _displace(cache, slot)
    cache.keys.view(-1, size).index_copy_(0, target, key.reshape(-1, size))
    cache.values.view(-1, size).index_copy_(0, target, value.reshape(-1, size))


def _displace(cache: RaggedKV, slot: Tensor) -> Tensor:
    """Fold the tokens whose places are taken by new ones, which would go to `slot` if there were no limit; note it all.

    Returns:
        Where the new ones go, places [B * Hkv * S] in the pool as [P * page, D].
    """
    assert cache.limit is not None
    assert cache.turn is not None
    assert cache.dropped is not None
    over = slot - cache.limit[..., None]
    taken = (over >= 0) & (cache.limit > 0)[..., None]
    ring = (cache.limit - cache.sink).clamp_(min=1)  # slots that are taken by turns; until all are in use turn is 0
    by_turns = (over + cache.turn[..., None]) % ring[..., None] + cache.sink
    target = _flat(cache, torch.where(taken, by_turns, slot))
    folded = taken.sum(dim=-1, dtype=torch.int32)
    cache.dropped += folded
    number = cache.dropped.clamp(min=1).float()[..., None]
    for pool, mean in ((cache.keys, cache.mean_key), (cache.values, cache.mean_value)):
        assert mean is not None
        old = pool.view(-1, pool.shape[2]).index_select(0, target).view(*slot.shape, -1)
        # Equal to (N_d * mean + sum) / (N_d + folded), but only the difference is rounded; float32 by promotion.
        apart = (old - mean[..., None, :]).masked_fill_(~taken[..., None], 0).sum(dim=2)
        mean.addcdiv_(apart, number)
    cache.turn.add_(folded).remainder_(ring)
    cache.kv_len.add_(slot.shape[2]).sub_(folded)
    return target


def _flat(cache: RaggedKV, slot: Tensor) -> Tensor:
    """Places [B * Hkv * S] in the pool as [P * page, D] of slots [B, Hkv, S] int64."""
    page = cache.page
    return torch.add(slot % page, cache.table.gather(2, slot // page), alpha=page).flatten()
