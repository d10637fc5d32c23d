"""KV policies with a finite attention scope over an unlimited cache: first tokens, chosen ones, last tokens.

    [ sink | what the policy chooses of the middle | local ],   at positions 0, 1, 2, ...

Keys are kept as they come, not rotated; at every step the scope is laid out anew and its keys are rotated to their
places in it, so no position leaves the trained window however long the context is (LongCache / ReAttention, arXiv
2407.15176, section 3). A policy of this family fills one method, `choose`.

Notable choices: a prompt is read in chunks, the queries of a chunk choose together, and a chunk lies within `local`, so
whatever is chosen is older than all of it. Chunks end at whole multiples of their size from the first slot on (and
where the scope is first full): it does not matter how a caller cuts a prompt, as long as it cuts there. Each row of a
batch has a scope of its own; a left-padded row's chunks end at the slots where the batch's do. Nothing waits for the
device.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from longloom.kernels.kvcache.base import Alibi, KVPolicy, LayerState, Rope
from longloom.kernels.kvcache.tokens import DeviceTokens

#: The most that defaults take for `local` and `chunk`: the paper's for models of 128K.
MOST_LOCAL = 8192
MOST_CHUNK = 512


@dataclass(eq=False)
class ScopedState(LayerState):
    """All tokens of one layer."""

    tokens: DeviceTokens = field(default_factory=DeviceTokens)

    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tokens.tensors())


@dataclass(frozen=True)
class ScopedPolicy(KVPolicy[ScopedState]):
    """Attention to the first tokens, to chosen ones and to the last.

    Attributes:
        sink: first tokens of each row, always seen (the paper's "global").
        local: last tokens, always seen, the chunk at hand included; None: half of the model's window, 8,192 at most.
        chunk: queries of a prompt that choose together, `local` at most; None: an eighth of `local`, 512 at most.
    """

    state_type: ClassVar[type[LayerState]] = ScopedState

    sink: int = 32
    local: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        self._check("sink", self.sink, 0)
        for option in ("local", "chunk"):
            if (value := getattr(self, option)) is not None:
                self._check(option, value, 1)
        if self.local is not None and self.chunk is not None and self.chunk > self.local:
            raise ValueError(
                f"KV policy {self.name!r}: chunk must be at most local={self.local}, for a chunk lies within the local "
                f"tokens, found {self.chunk}"
            )

    @property
    @abstractmethod
    def most_chosen(self) -> int:
        """Tokens of the middle that `choose` takes at most, of a policy that is `fitted`."""

    @abstractmethod
    def choose(self, state: Any, query: Tensor, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """What of the middle the newest queries see.

        Args:
            state: the layer's, the newest tokens already in it.
            query: [B, Hq, S, D], not rotated.
            begin, end: [B] int32, row b's middle is begin[b] .. end[b] - 1; it may be empty.

        Returns:
            Slots [B, m] int32, ascending, m = `most_chosen`, -1 behind the last; how many they are [B] int32.
        """

    def fitted(self, rope: Rope | Alibi) -> Self:
        """With the defaults of the model's window.

        Raises:
            ValueError: the window is not known and `local` or `chunk` is not given.
        """
        assert isinstance(rope, Rope)
        local, chunk = self.local, self.chunk
        if local is None:
            if rope.window is None:
                raise ValueError(f"KV policy {self.name!r} needs the option 'local': the model's window is not known")
            local = max(1, min(rope.window // 2, MOST_LOCAL))
        return replace(self, local=local, chunk=min(max(1, local // 8), MOST_CHUNK) if chunk is None else chunk)

    def attend(
        self,
        state: ScopedState,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope,
        *,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        outputs = []
        behind = 0
        while behind < key.shape[2]:
            first, behind = behind, min(key.shape[2], behind + self._until_cut(state.seen))
            now = slice(first, behind)
            state.tokens.append(key[:, :, now], value[:, :, now])
            state.seen = state.tokens.seen
            outputs.append(self._attend_chunk(state, query[:, :, now].contiguous(), rope, start, scaling))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _until_cut(self, seen: int) -> int:
        """Tokens until the next place where a chunk ends."""
        assert self.local is not None
        assert self.chunk is not None
        left = self.chunk - seen % self.chunk
        return min(left, self.sink + self.local - seen) if seen < self.sink + self.local else left

    def _attend_chunk(
        self, state: ScopedState, query: Tensor, rope: Rope, start: Tensor | None, scaling: float
    ) -> Tensor:
        """The newest queries, whose keys and values the state has already."""
        assert self.local is not None
        batch, seen, device = len(query), state.seen, query.device
        first = torch.zeros(batch, dtype=torch.int32, device=device)
        if start is not None:
            first = start.to(torch.int32).clamp(max=seen)  # a row may begin behind this chunk
        begin = (first + self.sink).clamp(max=seen)
        end = begin.clamp(min=seen - self.local)
        if seen > self.sink + self.local and self.most_chosen:
            chosen, count = self.choose(state, query, begin, end)
        else:  # no row has a middle
            chosen, count = first.new_empty(batch, 0), torch.zeros_like(first)
        size = min(seen, self.sink + chosen.shape[1] + self.local)
        positions, used = scope(first, begin, end, seen, chosen, count, size)
        cos, sin = rope.tables(size, device)
        return state.tokens.attend(query, positions, used, cos, sin, scaling)

    def _check(self, option: str, value: Any, least: int) -> None:
        if type(value) is not int or value < least:
            raise ValueError(f"KV policy {self.name!r}: {option} must be a whole number >= {least}, found {value!r}")


def scope(
    first: Tensor, begin: Tensor, end: Tensor, seen: int, chosen: Tensor, count: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """The slots of each row's scope in order: first .. begin - 1, those chosen, end .. seen - 1.

    Args:
        first, begin, end, count: [B] int32, of each row its first slot, the bounds of its middle, how many are chosen.
        seen: slots so far.
        chosen: [B, m] int32.
        size: of the largest scope, or more.

    Returns:
        Slots [B, size] int32 (without meaning behind the last), how many they are [B] int32.
    """
    place = torch.arange(size, dtype=torch.int32, device=first.device).expand(len(first), -1)
    sinks = (begin - first)[:, None]
    local = sinks + count[:, None]
    slots = torch.where(place < sinks, place + first[:, None], place + (end[:, None] - local))
    if chosen.shape[1]:
        inside = chosen.gather(1, (place - sinks).clamp(0, chosen.shape[1] - 1).long())
        slots = torch.where((place >= sinks) & (place < local), inside, slots)
    return slots, local[:, 0] + seen - end
