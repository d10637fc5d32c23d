"""A finite scope held from one step of an answer to the next, rotated: between two selections only the new token comes.

Rows of a batch see different numbers of tokens. They are laid out so that the newest token of all rows stands in the
same column, and nobody needs to know those numbers: a mask hides the columns before a row's first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longloom.kernels.kvcache.base import Rope
from longloom.kernels.kvcache.tokens import DeviceTokens, HostTokens


@dataclass(eq=False)
class HeldScope:
    """The keys and values of a scope, and of the tokens since.

    Attributes:
        keys, values: [B, Hkv, C, D], the first `used` columns in use; None before the first step.
        used: columns in use.
        ahead: by how much the slot of a token that came since is ahead of its column.
        first: [B] int64, each row's first column.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    used: int = 0
    ahead: int = 0
    first: Tensor | None = None

    @property
    def full(self) -> bool:
        """Whether there is no room for another token."""
        return self.keys is None or self.used == self.keys.shape[2]

    def fill(
        self, tokens: DeviceTokens | HostTokens, positions: Tensor, count: Tensor, rope: Rope, *, spare: int
    ) -> None:
        """Take in a scope.

        Args:
            tokens: that hold it.
            positions: [B, M] int32, the slots in order, the newest token's the last; without meaning from `count` on.
            count: [B] int32.
            rope: turns slot j of the scope to position j.
            spare: tokens for which to have room.
        """
        batch, size = positions.shape
        place = torch.arange(size, device=positions.device)
        # A row that is padding throughout sees nothing: the newest slot is there, whatever it is.
        keys, values, slots = tokens.holding(positions.where(place < count[:, None], tokens.seen - 1))
        self.first = size - count.long()
        place = (place - self.first[:, None]).clamp(min=0)  # [B, M]
        slots = slots.gather(1, place)
        if self.keys is None or self.values is None or self.keys.shape[2] != size + spare:
            shape = batch, keys.shape[1], size + spare, keys.shape[3]
            self.keys, self.values = keys.new_empty(shape), keys.new_empty(shape)
        for row, own in enumerate(slots):
            torch.index_select(keys[row], 1, own, out=self.keys[row, :, :size])
            torch.index_select(values[row], 1, own, out=self.values[row, :, :size])
        cos, sin = (table.to(keys.dtype)[place] for table in rope.tables(size, keys.device))  # [B, M, D/2]
        for head in self.keys[:, :, :size].unbind(1):  # one at a time stays in a processor's cache
            left, right = head.chunk(2, dim=-1)
            turned = left * sin
            left.mul_(cos).addcmul_(right, sin, value=-1)
            right.mul_(cos).add_(turned)
        self.used, self.ahead = size, tokens.seen - size

    def append(self, key: Tensor, value: Tensor, rope: Rope, start: Tensor | None) -> None:
        """Take in the next token [B, Hkv, 1, D]; `start` as of `KVPolicy.attend`."""
        assert self.keys is not None
        assert self.values is not None
        now = slice(self.used, self.used + 1)
        self.used += 1
        self.keys[:, :, now] = rope.rotate(key, self._newest(start))
        self.values[:, :, now] = value

    def attend(self, query: Tensor, rope: Rope, start: Tensor | None, scaling: float) -> Tensor:
        """Attention [B, Hq, 1, D] of the newest token; its output without meaning at padding."""
        assert self.keys is not None
        assert self.values is not None
        batch, heads, _, size = self.keys.shape
        query = rope.rotate(query, self._newest(start))
        column = torch.arange(self.used, device=query.device)
        # Padding sees itself: a query that sees nothing is NaN in some implementations of the product.
        mask = (column >= self._begin(start)) | (column == self.used - 1)
        # All query heads of a KV head read the same keys: as rows of one product.
        return scaled_dot_product_attention(
            query.reshape(batch, heads, -1, size),
            self.keys[:, :, : self.used],
            self.values[:, :, : self.used],
            attn_mask=mask[:, None, None],
            scale=scaling,
        ).reshape(query.shape)

    def tensors(self) -> list[Tensor]:
        """Whatever is held."""
        return [part for part in (self.keys, self.values, self.first) if part is not None]

    def _begin(self, start: Tensor | None) -> Tensor:
        """Each row's first column that is no padding, [B, 1]: a row may begin behind the scope that was taken in."""
        assert self.first is not None
        return (self.first if start is None else self.first.maximum(start - self.ahead))[:, None]

    def _newest(self, start: Tensor | None) -> Tensor:
        """The newest token's position in each row, [B, 1]."""
        return self.used - 1 - self._begin(start)
