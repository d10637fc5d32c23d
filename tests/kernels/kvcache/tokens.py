"""Random tokens of one layer, and the rotation of their queries and keys, for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from longloom.kernels.kvcache.base import Alibi, Rope

HEADS, SIZE = 2, 6  # KV heads, head size
SCALING = 0.4
ROPE = Rope(10000.0 ** -(torch.arange(SIZE // 2) / (SIZE // 2)), attention_scaling=1.1)


@dataclass(frozen=True)
class Tokens:
    """Un-rotated queries [B, G * HEADS, N, SIZE], keys and values [B, HEADS, N, SIZE]."""

    query: Tensor
    key: Tensor
    value: Tensor

    def __getitem__(self, part: tuple[slice, slice]) -> Tokens:
        rows, slots = part
        return Tokens(*(getattr(self, field.name)[rows, :, slots] for field in fields(self)))


def alibi(heads: int) -> Alibi:
    """Slopes and bounds that differ from head to head, of two layers."""
    numbers = torch.arange(heads)
    return Alibi(0.4 * 0.7**numbers, torch.stack((1 + 0.3 * numbers, 2 + 0.1 * numbers)).double())


def random_tokens(length: int, *, batch: int = 1, groups: int = 3, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    heads = (groups * HEADS, HEADS, HEADS)
    return Tokens(*(torch.randn(batch, count, length, SIZE, generator=generator) for count in heads))


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """Rotation in float64, as multiplication of complex numbers: x [..., n, SIZE], positions [n]."""
    numbers = torch.complex(*x.double().chunk(2, dim=-1))
    angles = positions[:, None] * ROPE.inv_freq.double()
    turned = numbers * torch.polar(torch.full_like(angles, ROPE.attention_scaling), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)
