"""KV policies with a finite attention scope over an unlimited cache: first tokens, chosen ones, last tokens.

    [ sink | what the policy chooses of the middle | local ],   at positions 0, 1, 2, ...

Keys are kept as they come, not rotated; at every step the scope is laid out anew and its keys are rotated to their
places in it, so no position leaves the trained window however long the context is (LongCache / ReAttention, arXiv
2407.15176, section 3). A policy of this family fills one method, `choose`.

Notable choices: a prompt is read in chunks, the queries of a chunk choose together, and a chunk lies within `local`, so
whatever is chosen is older than all of it. As long as the scope has room for all of a row's tokens it sees them all:
this is full attention then. Chunks end at whole multiples of their size from the first slot on (and where the scope is
first full): it does not matter how a caller cuts a prompt, as long as it cuts there. Each row of a batch has a scope of
its own; a left-padded row's chunks end at the slots where the batch's do. Nothing waits for the device, unless the
tokens are in host memory (`host`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from longloom.kernels.kvcache.base import Alibi, KVPolicy, LayerState, Rope
from longloom.kernels.kvcache.tokens import DeviceTokens, HostTokens, Tokens

#: The most that defaults take for `local` and `chunk`: the paper's for models of 128K.
MOST_LOCAL = 8192
MOST_CHUNK = 512


@dataclass(eq=False)
class ScopedState(LayerState):
    """All tokens of one layer. A policy that keeps more of them than that adds it as a field.

    Attributes:
        tokens: keys and values.
        reading: whether the call at hand chooses nothing.
    """

    tokens: Tokens = field(default_factory=DeviceTokens)
    reading: bool = False

    def bytes(self) -> int:
        """Memory held on the model's device: what is in host memory is not counted."""
        return super().bytes() + sum(tensor.untyped_storage().nbytes() for tensor in self.tokens.tensors())


@dataclass(frozen=True)
class ScopedPolicy(KVPolicy[ScopedState]):
    """Attention to the first tokens, to chosen ones and to the last.

    Attributes:
        sink: first tokens of each row, always seen (the paper's "global").
        local: last tokens, always seen, the chunk at hand included; None: half of the model's window, 8,192 at most.
        chunk: queries of a prompt that choose together, `local` at most; None: an eighth of `local`, 512 at most.
        host: whether the tokens are in host memory, so that the device holds the last ones alone and each step brings
            the others that it sees. What a policy keeps on the device to choose by grows with the context all the same.
    """

    state_type: ClassVar[type[LayerState]] = ScopedState

    sink: int = 32
    local: int | None = None
    chunk: int | None = None
    host: bool = False

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

    @property
    def recent(self) -> int:
        """Last tokens whose keys `choose` may read by `tokens.last`, `local` at least, of a policy that is `fitted`."""
        assert self.local is not None
        return self.local

    @property
    def scope_size(self) -> int:
        """Tokens that a query sees at most, of a policy that is `fitted`."""
        assert self.local is not None
        return self.sink + self.most_chosen + self.local

    @property
    def joint_from(self) -> int | None:
        """Where the scope is full."""
        return self.scope_size

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
            ValueError: the window is not known and `local` is not given, or a `chunk` that was given is longer than it.
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
        state.reading = self.reads(key.shape[2])
        outputs = []
        behind = 0
        while behind < key.shape[2]:
            first, behind = behind, min(key.shape[2], behind + self._until_cut(state.seen))
            now = slice(first, behind)
            self._take_in(state, key[:, :, now], value[:, :, now])
            outputs.append(self._attend_chunk(state, query[:, :, now].contiguous(), rope, start, scaling))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def reads(self, tokens: int) -> bool:
        """Whether a call with so many tokens is text that is read: its queries see the first and last tokens alone."""
        return False

    def _until_cut(self, seen: int) -> int:
        """Tokens until the next place where a chunk ends."""
        assert self.chunk is not None
        left, full = self.chunk - seen % self.chunk, self.scope_size
        return min(left, full - seen) if seen < full else left

    def _take_in(self, state: Any, key: Tensor, value: Tensor) -> None:
        """Add tokens [B, Hkv, S, D] to the state, none behind the next cut."""
        if self.host and not state.seen:
            assert self.local is not None
            assert self.chunk is not None
            state.tokens = HostTokens(self.local, self.chunk, self.recent)
        state.tokens.append(key, value)
        state.seen = state.tokens.seen

    def _attend_chunk(
        self, state: ScopedState, query: Tensor, rope: Rope, start: Tensor | None, scaling: float
    ) -> Tensor:
        """The newest queries, whose keys and values the state has already."""
        positions, count = self._lay_out(state, query, start)
        cos, sin = rope.tables(positions.shape[1], query.device)
        return state.tokens.attend(query, positions, count, cos, sin, scaling)

    def _lay_out(self, state: ScopedState, query: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """The slots that the newest queries see, in order [B, size] int32, and how many they are [B] int32."""
        assert self.local is not None
        seen, device = state.seen, query.device
        size = min(seen, self.scope_size)
        first = torch.zeros(len(query), dtype=torch.int32, device=device)
        if start is not None:
            first = start.to(torch.int32).clamp(max=seen)  # a row may begin behind this chunk
        shift, chosen = first, first.new_empty(len(query), 0)
        if seen > size:
            end = seen - self.local
            begin, shift = first + self.sink, torch.full_like(first, end - self.sink)
            if start is not None:  # a row that fits is seen whole: nothing is chosen
                fits = first >= seen - size
                begin, shift = begin.masked_fill(fits, end), torch.where(fits, first, shift)
            if state.reading and start is None:
                size = self.sink + self.local  # of rows with padding some may be seen whole
            if self.most_chosen and not state.reading:
                chosen, count = self.choose(state, query, begin, torch.full_like(first, end))
                shift = shift - count
        return scope(first, self.sink, chosen, shift, size), seen - shift

    def _check(self, option: str, value: Any, least: int) -> None:
        if type(value) is not int or value < least:
            raise ValueError(f"KV policy {self.name!r}: {option} must be a whole number >= {least}, found {value!r}")


def scope(first: Tensor, sink: int, chosen: Tensor, shift: Tensor, size: int) -> Tensor:
    """The slots of each row's scope in order: the first `sink`, those chosen, and the last ones.

    Args:
        first: [B] int32, each row's first slot.
        chosen: [B, m] int32, -1 behind the last.
        shift: [B] int32, by how much the last ones' slots are ahead of their places in the scope.
        size: of the largest scope.

    Returns:
        [B, size] int32, ascending; what is behind a row's last slot goes on counting.
    """
    place = torch.arange(size, dtype=torch.int32, device=first.device)
    slots = place + shift[:, None]
    slots[:, :sink] = place[:sink] + first[:, None]
    middle = slots[:, sink : sink + chosen.shape[1]]
    torch.where(chosen < 0, middle, chosen, out=middle)
    return slots
