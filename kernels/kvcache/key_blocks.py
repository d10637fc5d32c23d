"""The extremes of each block of keys, kept up as tokens come, for LongCache to search: 2 / size of the keys' bytes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longloom.kernels.attention.summaries import summarise, topk_votes_by_blocks
from longloom.kernels.kvcache.base import reserve


class KeyBlocks:
    """Element-wise maxima and minima of the keys of each block; blocks count from the first slot of the batch.

    Attributes:
        size: keys a block.
        seen: keys held.
        table: [B, Hkv, capacity, 2 D], maxima before minima, the last block's of the keys that it has; None before the
            first.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 0
        self.table: Tensor | None = None

    def append(self, key: Tensor) -> None:
        """Take in [B, Hkv, S, D]."""
        end, width = self.seen + key.shape[2], key.shape[3]
        begin, filling = self.seen // self.size, -self.seen % self.size  # the latter many keys the last block takes
        self.table = reserve(self.table, -(-end // self.size), key[:, :, :1].repeat(1, 1, 1, 2))
        if filling:
            block = self.table[:, :, begin : begin + 1]
            more = summarise(key[:, :, :filling], self.size)
            block[..., :width] = block[..., :width].maximum(more[..., :width])
            block[..., width:] = block[..., width:].minimum(more[..., width:])
            begin, key = begin + 1, key[:, :, filling:]
        if key.shape[2]:
            self.table[:, :, begin : -(-end // self.size)] = summarise(key, self.size)
        self.seen = end

    def votes(self, query: Tensor, pieces: Sequence[Tensor], k: int, blocks: int, begin: Tensor, end: Tensor) -> Tensor:
        """See `topk_votes_by_blocks`; `pieces` of the keys may hold more than have come, without meaning."""
        assert self.table is not None
        keys, held = [], 0
        for piece in pieces:
            keys.append(piece[:, :, : self.seen - held])
            held += keys[-1].shape[2]
        table = self.table[:, :, : -(-held // self.size)]
        return topk_votes_by_blocks(query, keys, table, k, size=self.size, blocks=blocks, begin=begin, end=end)

    def tensors(self) -> list[Tensor]:
        """Whatever is held."""
        return [] if self.table is None else [self.table]
