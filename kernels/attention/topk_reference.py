"""`topk` without Triton: the CPU's way, and the oracle of the tests.

A chunk of keys at a time, in three steps: all scores, the highest of each unit of 64, and then only the k units with
the highest are looked into. So what is as large as the scores is written once and read once, and all sorting is of
little. Equal keys must get equal scores, so every product has whole units of columns (those of a remainder are summed
in another order in some), and whatever stands behind the last key is masked.

Up to 8 rows of a KV head (a token of an answer), all heads' scores come from one product with the keys first, as fast
as memory; more rows are taken by heads and by tiles that fit into a processor's cache. There oneDNN's product is about
twice as fast as torch.matmul's MKL where that does not use AVX-512 (AMD); torch has no public name for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

#: Keys are compared by units of so many before single ones.
_UNIT = 64

#: Rows of a KV head that are few.
_FEW = 8

#: Scores held at once, and the keys of a chunk where rows are many.
_SCORES = 1 << 21
_CHUNK = 1 << 15

#: Numbers copied at a time where rows are few and keys not of the sums' type or in several pieces.
_COPIED = 1 << 20

_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def reference(
    query: Tensor,
    key: Sequence[Tensor],
    scales: Sequence[Tensor] | None,
    k: int,
    begin: Tensor | None,
    end: Tensor | None,
    block: int | None,
) -> Tensor:
    """See `attention.topk.topk_indices`, which checks."""
    batch, heads, steps, size = query.shape
    kv_heads, tokens = key[0].shape[1], sum(piece.shape[2] for piece in key)
    if not query.numel():
        return query.new_full((*query.shape[:3], k), -1, dtype=torch.int32)
    rows = query.view(batch, kv_heads, heads // kv_heads * steps, size)
    rows = rows.to(torch.promote_types(query.dtype, torch.float32))
    begins = [0] * batch if begin is None else begin.clamp(0, tokens).tolist()
    ends = [tokens] * batch if end is None else end.clamp(0, tokens).tolist()
    indices = torch.empty(batch, kv_heads, rows.shape[2], k, dtype=torch.int32, device=query.device)
    for b in range(batch):
        weights = None if scales is None else [piece[b] for piece in scales]
        keys = _Keys([piece[b] for piece in key], weights, rows, block or _UNIT)
        indices[b] = _search(rows[b], keys, k, begins[b], ends[b], one_a_block=block is not None)
    return indices.view(batch, heads, steps, k)


def reference_votes(
    query: Tensor,
    key: Sequence[Tensor],
    scales: Sequence[Tensor] | None,
    k: int,
    begin: Tensor | None,
    end: Tensor | None,
    block: int | None,
) -> Tensor:
    """See `attention.topk.topk_votes`; by counting the indices."""
    tokens = sum(piece.shape[2] for piece in key)
    indices = reference(query, key, scales, k, begin, end, block).flatten(1).long()
    votes = torch.zeros(len(query), tokens + 1, dtype=torch.int32, device=query.device)
    votes.scatter_add_(1, indices.where(indices >= 0, tokens), torch.ones_like(indices, dtype=torch.int32))
    return votes[:, :-1].contiguous()


class _Keys:
    """The keys of one row of the batch, read by chunks in the type of the sums, whatever they are stored as.

    Attributes:
        few: whether there are few rows.
        direct: whether chunks are read where they lie; else they are copied.
        chunk: keys of a chunk, whole grains.
        grain, fine: chunks that are read where they lie, and copies, are whole multiples of these, and of the unit.
    """

    def __init__(self, pieces: list[Tensor], scales: list[Tensor] | None, rows: Tensor, unit: int) -> None:
        """Read pieces [Hkv, n, D] and scales [Hkv, n] for rows [B, Hkv, M, D]."""
        self.pieces, self.scales, self.unit = pieces, scales, unit
        self.tokens = sum(piece.shape[1] for piece in pieces)
        first, few = pieces[0], rows.shape[2] <= _FEW
        self.few = few
        self.direct = len(pieces) == 1 and (first.dtype, first.device) == (rows.dtype, rows.device)
        self.direct &= few or first.stride(1) == first.shape[2]  # of keys that lie apart oneDNN is 1000 times slower
        if few:
            self.grain = self.fine = unit
            self.chunk = _whole(max(1, _SCORES // rows.shape[1:3].numel()), unit)
        else:
            # oneDNN compiles for every shape that it meets (0.6 ms and 0.6 MB each): let there be few.
            chunk = max(_CHUNK // 4, min(_CHUNK, _SCORES // rows.shape[2])) if self.direct else _CHUNK // 4
            self.grain, self.fine = _whole(-(-chunk // 8), unit), _whole(-(-chunk // 64), unit)
            self.chunk = _whole(chunk, self.grain)
        self.copy = rows.new_empty(0)

    def cuts(self, begin: int, end: int) -> list[tuple[int, int]]:
        """begin .. end in chunks; what is left over of the last is one of its own, unless enough stands behind it."""
        left = max(0, end - begin) % self.grain
        behind = -left % self.grain
        whole = end if not self.direct or (behind < self.fine and end + behind <= self.tokens) else end - left
        ends = [*range(begin, whole, self.chunk), whole, end]
        return [(start, stop) for start, stop in pairwise(ends) if start < stop]

    def read(self, heads: slice, start: int, stop: int) -> Tensor:
        """Keys start .. stop - 1 and some without meaning: [H, n, D], n a multiple of the unit."""
        width = _whole(stop - start, self.grain)
        if self.direct and start + width <= self.tokens:
            return self.pieces[0][heads, start : start + width]
        width = _whole(stop - start, self.fine)
        count, size = len(range(*heads.indices(len(self.pieces[0])))), self.pieces[0].shape[2]
        if self.copy.numel() < count * width * size:
            self.copy = self.copy.new_empty(count * width * size)
        copy = self.copy[: count * width * size].view(count, width, size)
        for piece, first, last, place in _parts(self.pieces, start, stop):
            copy[:, place : place + last - first] = _number(piece[heads, first:last])
        return copy

    def weigh(self, scores: Tensor, heads: slice, start: int, stop: int) -> None:
        """Multiply scores [H, m, n] by the scales of keys start .. stop - 1, in place."""
        for piece, first, last, place in _parts(self.scales or [], start, stop):
            scores[..., place : place + last - first] *= piece[heads, None, first:last].to(scores)


def _number(keys: Tensor) -> Tensor:
    """Keys as something that torch converts fast: float8_e4m3fn as float16, in whose places its bits are 2^-8 of it.

    All of a call's keys are of one type: to be smaller by the same factor changes no order.
    """
    if keys.dtype != torch.float8_e4m3fn:
        return keys
    bits = keys.view(torch.int8).to(torch.int16)
    return bits.bitwise_left_shift_(7).bitwise_and_(~(1 << 14)).view(torch.float16)  # but for the sign's copy


def _parts(pieces: list[Tensor], start: int, stop: int) -> Iterator[tuple[Tensor, int, int, int]]:
    """Where positions start .. stop - 1 are: a piece [Hkv, n, ...], the first and last + 1 in it, its place in them."""
    origin = 0
    for piece in pieces:
        first, last = max(0, start - origin), min(piece.shape[1], stop - origin)
        if first < last:
            yield piece, first, last, origin + first - start
        origin += piece.shape[1]


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _search(rows: Tensor, keys: _Keys, k: int, begin: int, end: int, *, one_a_block: bool) -> Tensor:
    """Positions [Hkv, M, k] of the best, the best first, -1 behind; rows [Hkv, M, D]."""
    cuts = keys.cuts(begin, end)
    best = rows.new_full((*rows.shape[:2], max(1, len(cuts)), k), -torch.inf)
    places = torch.full(best.shape, -1, device=rows.device)
    for i, (start, stop) in enumerate(cuts):
        for heads, now, scores in _scores(rows, keys, start, stop):
            keys.weigh(scores, heads, start, stop)
            scores[..., stop - start :] = -torch.inf
            found, place = _best(scores, k, keys.unit, one_a_block=one_a_block)
            best[heads, now, i, : found.shape[-1]], places[heads, now, i, : found.shape[-1]] = found, place + start
            del scores  # before the next are made
    best, places = best.flatten(2), places.flatten(2)
    kept = _keep(best, k)
    best, places = best.gather(-1, kept), places.gather(-1, kept)
    order = k - 1 - best.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    return places.gather(-1, order).masked_fill_(best.gather(-1, order) == -torch.inf, -1)


def _scores(rows: Tensor, keys: _Keys, start: int, stop: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Heads, rows of them and their scores [H, m, n] of keys start .. stop - 1, tile by tile."""
    everything = slice(None)
    if keys.few:
        step = stop - start if keys.direct else _whole(max(1, _COPIED // (len(rows) * rows.shape[2])), keys.unit)
        cuts = [(first, min(first + step, stop)) for first in range(start, stop, step)]
        parts = [keys.read(everything, first, last) @ rows.mT for first, last in cuts]
        scores = (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).mT
        yield everything, everything, scores if keys.scales is None else scores.contiguous()
        return
    tile = max(1, _SCORES // keys.chunk)
    for head in range(len(rows)):
        heads = slice(head, head + 1)
        here = keys.read(heads, start, stop)[0]
        for first in range(0, rows.shape[1], tile):
            now = slice(first, first + tile)
            yield heads, now, _product(rows[head, now], here)[None]


def _product(rows: Tensor, keys: Tensor) -> Tensor:
    """rows [m, D] by keys [n, D]: [m, n]."""
    if _linear is not None and rows.dtype == torch.float32 and rows.device.type == "cpu":
        product: Tensor = _linear(rows, keys, None, "none", [], "")
        return product
    return rows @ keys.mT


def _best(scores: Tensor, k: int, unit: int, *, one_a_block: bool) -> tuple[Tensor, Tensor]:
    """The k best of scores [..., n] and their places, ascending; n is whole units. Fewer than k where there are fewer.

    They are in the k units whose highest scores are the highest, the later of equal ones: any other key has k better
    ones. So only one pass looks at all scores, for the maxima.
    """
    units = _keep(_peaks(scores, unit), k)  # [..., k]
    inside = scores.unflatten(-1, (-1, unit)).gather(-2, units[..., None].expand(*units.shape, unit))
    if one_a_block:
        found, behind = inside.flip(-1).max(-1)  # the first of equal ones
        return found, units * unit + (unit - 1 - behind)
    inside = inside.flatten(-2)
    kept = _keep(inside, k)
    return inside.gather(-1, kept), units.gather(-1, kept // unit) * unit + kept % unit


def _peaks(scores: Tensor, unit: int) -> Tensor:
    """The highest of each unit of scores [..., m, n], a power of two: [..., m, n / unit]."""
    peaks: Tensor
    if scores.stride(-1) == 1:
        peaks = scores.unflatten(-1, (-1, unit)).amax(-1)
        return peaks
    # The keys come first: a unit's halves lie one behind the other, all rows side by side.
    peaks = scores.mT.unflatten(-2, (-1, unit)).flatten(-2)
    while (half := peaks.shape[-1] // 2) >= scores.shape[-2]:
        peaks = torch.maximum(peaks[..., :half], peaks[..., half:])
    return peaks.mT.contiguous()


def _keep(scores: Tensor, k: int) -> Tensor:
    """Where the k highest of scores [..., n] are, ascending; of equal ones the last. [..., min(k, n)] int64."""
    size = scores.shape[-1]
    if size <= k:
        return torch.arange(size, device=scores.device).expand(scores.shape)
    values, places = scores.topk(k + 1)
    if not bool((values[..., k - 1] > values[..., k]).all()):  # which of equal ones torch takes is not said
        least = values[..., k - 1 : k]
        place = torch.arange(size, dtype=torch.int32, device=scores.device)
        rank = torch.where(scores > least, place + size, torch.where(scores == least, place, -1))
        places = rank.topk(k).indices
    return places[..., :k].sort().values
