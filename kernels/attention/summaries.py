"""Top-k by block summaries: a bound for every block of keys first, exact scores in the most promising blocks alone.

Of `size` keys side by side only the element-wise maximum and minimum are read. They bound each of the block's scores
from above, as in Quest (arXiv 2406.10774, figure 5):

    q . k <= sum_d max(q_d max_d, q_d min_d) = relu(q) . max - relu(-q) . min

Each query head and query scores the keys of its `blocks` blocks of the highest bounds, un-rotated, and takes its top k
of them. Quest attends to whole blocks; here they are candidates. What is read: 2 / size of the keys, and blocks * size
keys for each query head and query. The answer is the exact one where the k-th best score is above the bounds of all
blocks that were not looked at.

Plain torch on any device, in float32 (float64 for float64), without waiting for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longloom.kernels.attention.topk import check_middle
from longloom.kernels.checks import FLOATS, Arguments

#: Numbers in memory at once, of bounds, of candidates' keys, or of a part of the table in float32. A GPU's memory is
#: larger, and it would rather be asked less often.
_NUMBERS = {"cpu": 1 << 22, "cuda": 1 << 26}


def summarise(key: Tensor, size: int) -> Tensor:
    """Maxima and minima of blocks of keys.

    Args:
        key: [B, Hkv, N, D], N at least 1.
        size: keys a block; the last has what is left.

    Returns:
        [B, Hkv, ceil(N / size), 2 D], a block's maxima before its minima.
    """
    whole = key.shape[2] // size * size
    parts = [key[:, :, :whole].unflatten(2, (-1, size))] if whole else []
    if whole < key.shape[2]:
        parts.append(key[:, :, None, whole:])
    return torch.cat([torch.cat((part.amax(3), part.amin(3)), dim=3) for part in parts], dim=2)


@torch.no_grad()
def topk_votes_by_blocks(
    query: Tensor,
    keys: Sequence[Tensor],
    table: Tensor,
    k: int,
    *,
    size: int,
    blocks: int,
    begin: Tensor | None = None,
    end: Tensor | None = None,
) -> Tensor:
    """How often each key is among the k with the highest scores in the blocks with the highest bounds.

    Args:
        query: [B, Hq, Sq, D], not rotated.
        keys: in order, in pieces [B, Hkv, n, D] that together are [B, Hkv, N, D], not rotated, of the query's dtype;
            any strides but for the last dimension's. They may be in host memory: the host then waits for the device to
            know which keys to bring, as it does for several pieces.
        table: [B, Hkv, ceil(N / size), 2 D], `summarise` of the keys; strides as the keys'.
        k: how many, at least 1. Of equal scores the later position wins.
        size: keys a block.
        blocks: that each query head and query looks into, at least k. With all of them, this is `topk_votes`.
        begin, end: [B] int32 or None: row b's keys are begin[b] .. end[b] - 1, others are never counted (in a block of
            both kinds they loosen the bound); None: 0, N.

    Returns:
        [B, N] int32, over the query heads and queries of the row.

    Raises:
        ValueError: shapes, types or devices that do not fit, or a value out of range.
    """
    check = Arguments("topk_votes_by_blocks")
    check.tensor("query", query, "B Hq Sq D", FLOATS)
    near = len(keys) == 1 and isinstance(keys[0], Tensor) and keys[0].device == query.device
    tokens = 0
    for piece in keys:
        own = check if near else Arguments(check.operation, dict(check.sizes))  # of a size and on a device of its own
        own.tensor("keys", piece, "B Hkv n D", query.dtype, strided=True)
        tokens += own.sizes["n"]
    check.require(tokens >= 1, "keys", "at least one", tokens)
    check.require(size >= 1, "size", "at least 1", size)
    check.sizes |= {"N": tokens, "N/size": -(-tokens // size), "2D": 2 * check.sizes["D"]}
    check.tensor("table", table, "B Hkv N/size 2D", query.dtype, strided=True)
    check.groups()
    check.require(k >= 1, "k", "at least 1", k)
    check.require(blocks >= k, "blocks", f"at least k={k}", blocks)
    check_middle(check, begin, end)
    low = torch.zeros(len(query), dtype=torch.int32, device=query.device) if begin is None else begin
    high = torch.full_like(low, tokens) if end is None else end
    low, high = low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1)
    number = torch.arange(table.shape[2], device=query.device)
    closed = ((number + 1) * size <= low) | (number * size >= high)  # [B, 1, 1, n]
    blocks, width = min(blocks, table.shape[2]), min(size, tokens)
    inside = torch.arange(width, device=query.device)
    exact = torch.promote_types(query.dtype, torch.float32)
    rows = query.reshape(len(table), table.shape[1], -1, query.shape[3]).to(exact)  # [B, Hkv, M, D], M = G * Sq
    most = rows[:, :, 0, 0].numel() * max(table.shape[2], blocks * width * query.shape[3])
    votes = torch.zeros(len(query), tokens + 1, dtype=torch.int32, device=query.device)
    for asked in rows.split(max(1, _most(query) // most), dim=2):
        chosen = _bounds(asked, table).masked_fill_(closed, -torch.inf).topk(blocks, sorted=False).indices
        chosen = chosen.sort().values[..., None] * size  # [B, Hkv, m, blocks, 1], of each its first slot
        first = chosen.clamp(max=tokens - width)  # a last, partial block reaches back
        slots = first + inside
        found = _windows(keys[0], width, first[..., 0]) if near else _collected(keys, slots)
        # With the single row first, for with the keys first this takes nine times as long on a CPU.
        scores = (asked[..., None, :] @ found.flatten(3, 4).to(exact).mT)[..., 0, :]
        # What it reaches back to stands in a block of its own.
        outside = (slots < chosen) | (slots < low[..., None]) | (slots >= high[..., None])
        scores = scores.masked_fill_(outside.flatten(3), -torch.inf)
        kept = _best(scores, min(k, scores.shape[3]))
        won = slots.flatten(3).gather(3, kept).where(scores.gather(3, kept) > -torch.inf, tokens).flatten(1)
        votes.scatter_add_(1, won, torch.ones_like(won, dtype=torch.int32))
    return votes[:, :-1].contiguous()


def _most(tensor: Tensor) -> int:
    """Numbers to hold at once on the tensor's device."""
    return _NUMBERS.get(tensor.device.type, _NUMBERS["cpu"])


def _bounds(rows: Tensor, table: Tensor) -> Tensor:
    """What no score of rows [B, Hkv, m, D] in a block of table [B, Hkv, n, 2 D] is above: [B, Hkv, m, n]."""
    signed = torch.cat((rows.clamp(min=0), rows.clamp(max=0)), dim=3)
    few = rows.shape[2] <= 8  # only a product that begins with the table is as fast as memory then
    parts = []
    for part in table.split(max(1, _most(table) // table[:, :, 0].numel()), dim=2):
        part = part.to(rows.dtype)
        parts.append((part @ signed.mT).mT if few else signed @ part.mT)
    return torch.cat(parts, dim=3)


def _windows(key: Tensor, width: int, first: Tensor) -> Tensor:
    """The keys first .. first + width - 1 of key [B, Hkv, N, D], for first [B, Hkv, m, n]: [B, Hkv, m, n, width, D]."""
    rows = torch.arange(len(key), device=key.device).view(-1, 1, 1, 1)
    heads = torch.arange(key.shape[1], device=key.device).view(-1, 1, 1)
    return key.unfold(2, width, 1).transpose(3, 4)[rows, heads, first]


def _collected(keys: Sequence[Tensor], slots: Tensor) -> Tensor:
    """The keys at slots [B, Hkv, ...] of pieces that may be elsewhere, one piece after the other: [B, Hkv, ..., D]."""
    device = keys[0].device
    wanted = slots.flatten().to(device)
    line = torch.arange(slots.shape[0] * slots.shape[1], device=device)  # rows and heads
    line = line.repeat_interleave(len(wanted) // len(line))
    found = keys[0].new_empty(len(wanted), keys[0].shape[3], pin_memory=slots.is_cuda and device.type == "cpu")
    ends = torch.tensor([piece.shape[2] for piece in keys], device=device).cumsum(0)
    which = torch.bucketize(wanted, ends, right=True)
    counts = which.bincount(minlength=len(keys)).tolist()
    for piece, end, here in zip(keys, ends.tolist(), which.argsort().split(counts), strict=True):
        own, place = line[here], wanted[here] - (end - piece.shape[2])
        found[here] = piece[own // piece.shape[1], own % piece.shape[1], place]
    return found.view(*slots.shape, -1).to(slots.device, non_blocking=True)


def _best(scores: Tensor, k: int) -> Tensor:
    """Where the k highest of scores [..., n] are, of equal ones the last; [..., k] int64."""
    size = scores.shape[-1]
    least = scores.topk(k).values[..., -1:]
    place = torch.arange(size, dtype=torch.int32, device=scores.device)
    rank = torch.where(scores > least, place + size, torch.where(scores == least, place, -1))
    return rank.topk(k, sorted=False).indices
