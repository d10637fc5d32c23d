"""Where a policy with a finite scope keeps the keys and values of all tokens: un-rotated, for positions change.

Two questions are asked of them: what a search reads (`pieces`), and the attention of the newest queries over chosen
ones (`attend`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longloom.kernels.attention.gather import gather_attention
from longloom.kernels.kvcache.base import reserve


class DeviceTokens:
    """All tokens side by side on the model's device.

    Attributes:
        seen: tokens held.
        keys, values: [B, Hkv, capacity, D], the first `seen` in use; None before the first.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> None:
        """Take in [B, Hkv, S, D] each."""
        end = self.seen + key.shape[2]
        self.keys, self.values = reserve(self.keys, end, key), reserve(self.values, end, value)
        self.keys[:, :, self.seen : end] = key
        self.values[:, :, self.seen : end] = value
        self.seen = end

    def pieces(self) -> Sequence[Tensor]:
        """The keys [B, Hkv, n, D], in order, in pieces that together are [B, Hkv, seen, D]."""
        assert self.keys is not None
        return [self.keys[:, :, : self.seen]]

    def attend(self, query: Tensor, positions: Tensor, count: Tensor, cos: Tensor, sin: Tensor, scale: float) -> Tensor:
        """Attention [B, Hq, S, D] of the newest S tokens over chosen ones: see `gather_attention`."""
        assert self.keys is not None
        assert self.values is not None
        keys, values = self.keys[:, :, : self.seen], self.values[:, :, : self.seen]
        return gather_attention(query, keys, values, positions, count, cos, sin, scale=scale)[0]

    def tensors(self) -> list[Tensor]:
        """Whatever is held on the model's device."""
        return [part for part in (self.keys, self.values) if part is not None]
