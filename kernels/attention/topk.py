"""Score and top-k: the keys that each query head and query would see most of, whatever their positions.

    s = q . k  over the un-rotated keys begin <= j < end of the query's own KV head

with no scale, no softmax and no causal mask (LongCache / ReAttention, arXiv 2407.15176). Of equal scores the later
position wins: un-rotated keys of equal tokens are equal in the first layer, so that happens. `block` is the authors'
approximate rule: only the best of each block of so many keys, counted from begin, competes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from longloom.kernels.checks import FLOATS, Arguments
from longloom.kernels.dispatch import choose, triton_refusal

#: Largest k of the Triton kernel, which holds the best k of each row in registers.
TRITON_K = 32

#: The reference compares blocks of so many keys before single ones, and holds so many keys and scores at once: what
#: stays in a processor's cache.
_UNIT = 64
_CHUNK = 4096
_SCORES = 1 << 22


@torch.no_grad()
def topk_indices(
    query: Tensor,
    key: Tensor,
    k: int,
    *,
    begin: Tensor | None = None,
    end: Tensor | None = None,
    block: int | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Positions of the k keys with the highest scores.

    Args:
        query: [B, Hq, Sq, D], not rotated.
        key: [B, Hkv, N, D], not rotated, of the query's dtype; any strides but for the last dimension's.
        k: how many, at least 1.
        begin, end: [B] int32 or None: row b's keys are begin[b] .. end[b] - 1; None: 0, N. On a GPU their values are
            not checked but cut to 0 .. N.
        block: None: exact. A power of two from 32: only the best of each block of so many keys from begin competes.
        implementation: "triton" or "reference" (which waits for begin and end where they lie on a GPU); None: the
            fastest that can.

    Returns:
        [B, Hq, Sq, k] int32, the best first, -1 behind where there are fewer. Scores are float32 (float64 for float64).

    Raises:
        ValueError: shapes, types or devices that do not fit, a value out of range, or an implementation that cannot do
            this.
    """
    if _choose("topk_indices", query, key, k, begin, end, block, implementation) == "triton":
        from longloom.kernels.attention.triton.topk import topk_indices as run
    else:
        run = reference
    return run(query, key, k, begin, end, block)


@torch.no_grad()
def topk_votes(
    query: Tensor,
    key: Tensor,
    k: int,
    *,
    begin: Tensor | None = None,
    end: Tensor | None = None,
    block: int | None = None,
    implementation: str | None = None,
) -> Tensor:
    """How often each key is among the k with the highest scores: `topk_indices` counted, without writing them.

    Args:
        query, key, k, begin, end, block, implementation: see `topk_indices`.

    Returns:
        [B, N] int32, over the query heads and queries of the row.

    Raises:
        ValueError: see `topk_indices`.
    """
    if _choose("topk_votes", query, key, k, begin, end, block, implementation) == "triton":
        from longloom.kernels.attention.triton.topk import topk_votes as run
    else:
        run = reference_votes
    return run(query, key, k, begin, end, block)


def reference(
    query: Tensor, key: Tensor, k: int, begin: Tensor | None, end: Tensor | None, block: int | None
) -> Tensor:
    """`topk_indices`: chunks of keys, each one's best merged with the best so far; never all scores at once."""
    batch, heads, steps, size = query.shape
    kv_heads, tokens = key.shape[1:3]
    exact = torch.promote_types(query.dtype, torch.float32)
    rows = query.reshape(batch, kv_heads, -1, size).to(exact)  # [B, Hkv, M, D], M = G * Sq
    begins = [0] * batch if begin is None else begin.clamp(0, tokens).tolist()
    ends = [tokens] * batch if end is None else end.clamp(0, tokens).tolist()
    unit = block or _UNIT
    chunk = max(unit, _CHUNK)
    tile = max(1, _SCORES // (kv_heads * chunk))
    converted = torch.empty(kv_heads, unit if key.dtype == exact else chunk, size, dtype=exact, device=query.device)
    best = torch.full((*rows.shape[:3], k), -torch.inf, dtype=exact, device=query.device)
    places = torch.full(best.shape, -1, device=query.device)
    for b in range(batch):
        for start, stop in _pieces(begins[b], ends[b], chunk, unit):
            keys = key[b, :, start:stop]
            if key.dtype != exact or (stop - start) % unit:
                # Whole units, whatever is behind: in some products the columns of a remainder are summed in another
                # order, and equal keys get unequal scores.
                converted[:, : stop - start] = keys
                keys = converted[:, : stop - start + -(stop - start) % unit]
            for first in range(0, rows.shape[2], tile):
                now = slice(first, first + tile)
                scores = _products(rows[b, :, now], keys)
                scores[..., stop - start :] = -torch.inf
                found, place = _candidates(scores.unflatten(-1, (-1, unit)), k, one_a_block=block is not None)
                found = torch.cat([best[b, :, now], found], -1)
                place = torch.cat([places[b, :, now], place + start], -1)
                kept = _keep(found, k)
                best[b, :, now], places[b, :, now] = found.gather(-1, kept), place.gather(-1, kept)
    order = k - 1 - best.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    places = places.gather(-1, order).masked_fill(best.gather(-1, order) == -torch.inf, -1)
    return places.to(torch.int32).view(batch, heads, steps, k)


def reference_votes(
    query: Tensor, key: Tensor, k: int, begin: Tensor | None, end: Tensor | None, block: int | None
) -> Tensor:
    """`topk_votes`, by counting the indices."""
    indices = reference(query, key, k, begin, end, block).flatten(1).long()
    votes = torch.zeros(len(query), key.shape[2] + 1, dtype=torch.int32, device=query.device)
    votes.scatter_add_(1, indices.where(indices >= 0, key.shape[2]), torch.ones_like(indices, dtype=torch.int32))
    return votes[:, :-1].contiguous()


def _products(rows: Tensor, keys: Tensor) -> Tensor:
    """rows [Hkv, m, D] by keys [Hkv, n, D]: [Hkv, m, n]. With few rows only keys first is as fast as memory."""
    return (keys @ rows.mT).mT.contiguous() if rows.shape[1] <= 8 else rows @ keys.mT


def _pieces(begin: int, end: int, chunk: int, unit: int) -> list[tuple[int, int]]:
    """begin .. end in chunks; what is left over of the last unit is a piece of its own."""
    whole = begin + max(0, end - begin) // unit * unit
    cuts = [*range(begin, whole, chunk), whole]
    return [*pairwise(cuts), *([(whole, end)] if whole < end else [])]


def _candidates(scores: Tensor, k: int, *, one_a_block: bool) -> tuple[Tensor, Tensor]:
    """Scores [..., n] and places [..., n], ascending, among which the best k of scores [..., blocks, unit] are.

    They are in the k blocks whose highest scores are the highest, the later of equal ones: any other key has k better
    ones. So only one pass looks at all scores, for the maxima.
    """
    unit = scores.shape[-1]
    kept = _keep(scores.amax(-1), k)
    inside = scores.gather(-2, kept[..., None].expand(*kept.shape, unit))
    if one_a_block:
        found, behind = inside.flip(-1).max(-1)  # the first of equal ones
        return found, kept * unit + (unit - 1 - behind)
    place = kept[..., None] * unit + torch.arange(unit, device=scores.device)
    return inside.flatten(-2), place.flatten(-2)


def _keep(scores: Tensor, k: int) -> Tensor:
    """Where the k highest of scores [..., n] are, ascending; of equal ones the last. [..., min(k, n)] int64."""
    size = scores.shape[-1]
    least = scores.topk(min(k, size)).values[..., -1:]
    place = torch.arange(size, dtype=torch.int32, device=scores.device)
    rank = torch.where(scores > least, place + size, torch.where(scores == least, place, -1))
    return rank.topk(min(k, size)).indices.sort().values


def check_middle(check: Arguments, begin: Tensor | None, end: Tensor | None) -> None:
    """Check begin and end [B] int32 against N; their values where no device need be waited for."""
    tokens = check.sizes["N"]
    for name, value in (("begin", begin), ("end", end)):
        if value is not None:
            check.tensor(name, value, "B", torch.int32)
            if value.device.type == "cpu":
                wrong = [bound for bound in value.tolist() if not 0 <= bound <= tokens]
                check.require(not wrong, name, f"0 to N={tokens}", next(iter(wrong), None))
    if begin is not None and end is not None and begin.device.type == "cpu":
        crossed = [f"{low} and {high}" for low, high in zip(begin.tolist(), end.tolist(), strict=True) if low > high]
        check.require(not crossed, "begin", "at most end", next(iter(crossed), None))


def _choose(
    operation: str,
    query: Tensor,
    key: Tensor,
    k: int,
    begin: Tensor | None,
    end: Tensor | None,
    block: int | None,
    implementation: str | None,
) -> str:
    """Check the arguments; the implementation to run."""
    check = Arguments(operation)
    check.tensor("query", query, "B Hq Sq D", FLOATS)
    check.tensor("key", key, "B Hkv N D", query.dtype, strided=True)
    check.groups()
    check.require(k >= 1, "k", "at least 1", k)
    check_middle(check, begin, end)
    power = block is None or (block >= 32 and block & (block - 1) == 0)
    check.require(power, "block", "None or a power of two of at least 32 keys", block)
    refusal = triton_refusal(query, asked=implementation == "triton", head_dim=query.shape[-1])
    if refusal is None and k > TRITON_K:
        refusal = f"it holds the best k of a row in registers, {TRITON_K} at most, found k = {k}"
    return choose(operation, {"triton": refusal, "reference": None}, implementation)
