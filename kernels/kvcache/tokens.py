"""Where a policy with a finite scope keeps the keys and values of all tokens: un-rotated, for positions change.

Two questions are asked of them: what a search reads (`pieces`), and the attention of the newest queries over chosen
ones (`attend`). `DeviceTokens` holds everything on the model's device, `HostTokens` the last ones alone: for a
finite scope a finite memory will do.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from longloom.kernels.attention.gather import gather_attention
from longloom.kernels.kvcache.base import reserve

#: Tokens of a page of `HostTokens`, or a few less: at 8 KV heads of 128 numbers in 16 bits, 8 MiB of keys.
PAGE = 4096


class Tokens(ABC):
    """The keys and values of all tokens of one layer.

    Attributes:
        seen: tokens held.
    """

    seen: int = 0

    @abstractmethod
    def append(self, key: Tensor, value: Tensor) -> None:
        """Take in [B, Hkv, S, D] each."""

    @abstractmethod
    def pieces(self) -> Sequence[Tensor]:
        """The keys in order, in pieces [B, Hkv, n, D], wherever they are: at least all that are no longer local.

        There may be more, without meaning: a search says itself where it ends.
        """

    @abstractmethod
    def last(self, count: int) -> Tensor:
        """The keys of the last so many tokens, [B, Hkv, count, D]."""

    @abstractmethod
    def holding(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [B, Hkv, n, D] on the device, and where in them `positions`, as of `attend`, are."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """Whatever is held on the model's device."""

    def attend(self, query: Tensor, positions: Tensor, count: Tensor, cos: Tensor, sin: Tensor, scale: float) -> Tensor:
        """Attention [B, Hq, S, D] of the newest S tokens over chosen ones: see `gather_attention`.

        Each row's positions ascend, and none behind `count` is older than those before.
        """
        keys, values, positions = self.holding(positions)
        return gather_attention(query, keys, values, positions, count, cos, sin, scale=scale)[0]


class DeviceTokens(Tokens):
    """All tokens side by side on the model's device.

    Attributes:
        keys, values: [B, Hkv, capacity, D], the first `seen` in use; None before the first.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> None:
        end = self.seen + key.shape[2]
        self.keys, self.values = reserve(self.keys, end, key), reserve(self.values, end, value)
        self.keys[:, :, self.seen : end] = key
        self.values[:, :, self.seen : end] = value
        self.seen = end

    def pieces(self) -> Sequence[Tensor]:
        assert self.keys is not None
        return [self.keys[:, :, : self.seen]]

    def last(self, count: int) -> Tensor:
        assert self.keys is not None
        return self.keys[:, :, self.seen - count : self.seen]

    def holding(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys[:, :, : self.seen], self.values[:, :, : self.seen], positions

    def tensors(self) -> list[Tensor]:
        return [part for part in (self.keys, self.values) if part is not None]


class HostTokens(Tokens):
    """Whatever is older than the local tokens in host memory, the last ones on the model's device.

    Tokens come to the device's ring and move on to host pages once they are no longer local, `chunk` of them at a time.
    Pages are pinned where there is a GPU, and stay where they are: appending takes constant time a token. `holding`
    brings what it is asked for from the pages (the first tokens too: rows of a padded batch have them at different
    slots, and they are few beside the chosen ones). To know what that is the host waits for the device, once a call.
    A search of `pieces` has two pages' keys on the device at most, and 4 bytes a token of votes while it lasts.

    Host memory is that of the tokens, of a page that fills, and of what torch adds: it rounds a page up to a power of
    two of bytes.

    Attributes:
        moved: how many of them the pages have, whole chunks.
        ring: [2, B, Hkv, capacity, D], keys and values of the last tokens on the device, slot s at s % capacity; None
            before the first.
        pages: [2, B, Hkv, page, D] each, on the host.
    """

    def __init__(self, local: int, chunk: int, recent: int) -> None:
        """Empty.

        Args:
            local: tokens that are never searched for.
            chunk: `append` never goes past a whole multiple of so many, `local` at most.
            recent: tokens that the ring has at least, `local` or more: `last` tells no more.
        """
        assert 1 <= chunk <= local <= recent, (chunk, local, recent)
        self.moved = 0
        self.local, self.chunk = local, chunk
        self.capacity = (-(-recent // chunk) + 1) * chunk  # whole chunks, of the first of which some may be missing
        self.page = max(1, PAGE // chunk) * chunk
        self.ring: Tensor | None = None
        self.pages: list[Tensor] = []

    def append(self, key: Tensor, value: Tensor) -> None:
        if self.ring is None:
            batch, heads, _, size = key.shape
            self.ring = key.new_empty(2, batch, heads, self.capacity, size)
        begin = self.seen % self.capacity
        end = begin + key.shape[2]
        assert self.seen % self.chunk + key.shape[2] <= self.chunk, (self.seen, key.shape, self.chunk)
        self.ring[0, :, :, begin:end] = key
        self.ring[1, :, :, begin:end] = value
        self.seen += key.shape[2]
        while self.moved < self.seen - self.local:
            self._move(self.ring)

    def _move(self, ring: Tensor) -> None:
        """Copy the oldest chunk that the pages do not have."""
        at, place = self.moved % self.capacity, self.moved % self.page
        if not place:
            self.pages.append(_on_host(ring, self.page))
        # Line by line, for only what is contiguous on both sides goes at once and without waiting.
        for source, target in zip(ring.flatten(0, 2), self.pages[-1].flatten(0, 2), strict=True):
            target[place : place + self.chunk].copy_(source[at : at + self.chunk], non_blocking=True)
        self.moved += self.chunk

    def pieces(self) -> Sequence[Tensor]:
        return [page[0] for page in self.pages]

    def last(self, count: int) -> Tensor:
        assert self.ring is not None
        assert count <= min(self.seen, self.capacity), (count, self.seen, self.capacity)
        end = (self.seen - 1) % self.capacity + 1
        parts = self.ring[0, :, :, max(0, end - count) : end], self.ring[0, :, :, self.capacity + end - count :]
        return parts[0] if count <= end else torch.cat(parts[::-1], dim=2)

    def holding(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.ring is not None
        held, oldest = self.ring, self.seen - self.capacity  # on the device
        if oldest > 0:
            older = self._fetch(held, positions.cpu(), oldest)
            place = torch.arange(positions.shape[1], dtype=torch.int32, device=positions.device)
            positions = torch.where(positions < oldest, place, positions % self.capacity + older.shape[3])
            held = torch.cat((older, held), dim=3)
        return held[0], held[1], positions

    def _fetch(self, ring: Tensor, positions: Tensor, oldest: int) -> Tensor:
        """Keys and values [2, B, Hkv, n, D] on the device, of each row's positions before `oldest`, in order."""
        lengths = (positions < oldest).sum(dim=1).tolist()
        found = _on_host(ring, max(lengths, default=0))
        for row, length in enumerate(lengths):
            target = found[:, row]
            for first, begin, end in _runs(positions[row, :length], self.page):
                number, place = divmod(first, self.page)
                source = self.pages[number][:, row, :, place : place + end - begin]
                target[:, :, begin:end] = source
        return found.to(ring.device, non_blocking=True)

    def tensors(self) -> list[Tensor]:
        return [] if self.ring is None else [self.ring]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that goes on by itself. Full pages never change again: both have them."""
        other = copy.copy(self)
        other.pages = [*self.pages]
        if self.ring is not None:
            other.ring = self.ring.clone()
            if self.moved % self.page:
                if self.ring.is_cuda:
                    torch.cuda.current_stream(self.ring.device).synchronize()  # the page may be being written
                other.pages[-1] = _on_host(self.ring, self.page).copy_(self.pages[-1])
        return other


def _on_host(ring: Tensor, tokens: int) -> Tensor:
    """Room for so many tokens of such a ring, from where a GPU copies without waiting."""
    shape = *ring.shape[:3], tokens, ring.shape[4]
    return torch.empty(shape, dtype=ring.dtype, pin_memory=ring.is_cuda)


def _runs(slots: Tensor, page: int) -> list[tuple[int, int, int]]:
    """Ascending slots [n] on the host, in runs of neighbours on one page: the first slot, where it stands, its end."""
    cuts = (slots[1:] != slots[:-1] + 1) | (slots[1:] % page == 0)
    begins = [0, *(cuts.nonzero()[:, 0] + 1).tolist()] if len(slots) else []
    return list(zip(slots[begins].tolist(), begins, [*begins[1:], len(slots)], strict=True)) if begins else []
