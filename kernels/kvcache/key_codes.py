"""A copy of the keys in 8 bits, for LongCache to search: a half of the bytes of 16-bit keys, a quarter of float32's."""

from __future__ import annotations

import torch
from torch import Tensor

from longloom.kernels.attention.quantise import quantise
from longloom.kernels.attention.topk import topk_votes
from longloom.kernels.kvcache.base import reserve


class KeyCodes:
    """Every key as 8-bit codes and one scale.

    Attributes:
        seen: keys held.
        codes: [B, Hkv, capacity, D] of int8 or float8_e4m3fn; None before the first.
        scales: [B, Hkv, capacity, 1] float32.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.seen = 0
        self.codes: Tensor | None = None
        self.scales: Tensor | None = None

    def append(self, key: Tensor) -> None:
        """Take in [B, Hkv, S, D]."""
        end = self.seen + key.shape[2]
        codes, scales = quantise(key, self.dtype)
        scales = scales[..., None]
        self.codes, self.scales = reserve(self.codes, end, codes), reserve(self.scales, end, scales)
        self.codes[:, :, self.seen : end] = codes
        self.scales[:, :, self.seen : end] = scales
        self.seen = end

    def votes(self, query: Tensor, k: int, begin: Tensor, end: Tensor) -> Tensor:
        """See `topk_votes`."""
        assert self.codes is not None
        assert self.scales is not None
        codes, scales = self.codes[:, :, : self.seen], self.scales[:, :, : self.seen, 0]
        return topk_votes(query, codes, k, begin=begin, end=end, scales=scales)

    def tensors(self) -> list[Tensor]:
        """Whatever is held."""
        return [part for part in (self.codes, self.scales) if part is not None]
