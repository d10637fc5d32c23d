"""StreamingLLM (arXiv 2309.17453): keep the first `sink` tokens and the last `window`, at positions inside the cache.

Rotary scores depend on differences of positions only, and inside the cache the window's differences are the original
ones. So the window's keys are stored rotated to their original positions, once; only the distance to the sinks
shrinks, by the tokens evicted between. A query therefore meets the window rotated to its own position, and the sinks
rotated to min(position, sink + window - 1): exact, without re-rotating what is stored. Each query of a prompt's chunk
has a shift of its own, so a prompt gives what token-by-token decoding gives, for any chunking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longloom.kernels.kvcache.base import KVPolicy, LayerState, Rope, positions_of, reserve

#: Queries attended at a time: bounds the scores at B * Hq * BLOCK * (sink + window + BLOCK).
BLOCK = 128


@dataclass(eq=False)
class StreamingState(LayerState):
    """The sinks, and a ring with slot t at index t % window. Keys are rotated to their positions.

    Attributes:
        sink_keys, sink_values: [B, Hkv, sink, D]; entry i is the row's token of position i, zeros until it has come.
        sinks_complete: no sink is still to come.
        keys, values: [B, Hkv, capacity <= window, D].
    """

    sink_keys: Tensor | None = None
    sink_values: Tensor | None = None
    sinks_complete: bool = False
    keys: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class StreamingPolicy(KVPolicy[StreamingState]):
    """Attention sinks and a sliding window.

    Attributes:
        sink: tokens kept from each row's beginning (the paper: 4).
        window: last tokens kept, the newest included. Together with `sink` the budget in tokens.
    """

    name: ClassVar[str] = "streaming"
    state_type: ClassVar[type[LayerState]] = StreamingState

    sink: int
    window: int

    def __post_init__(self) -> None:
        for option, least in (("sink", 0), ("window", 1)):
            value = getattr(self, option)
            if type(value) is not int or value < least:
                raise ValueError(f"KV policy 'streaming': {option} must be a whole number >= {least}, found {value!r}")

    def attend(
        self,
        state: StreamingState,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope,
        *,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        blocks = zip(query.split(BLOCK, dim=2), key.split(BLOCK, dim=2), value.split(BLOCK, dim=2), strict=True)
        outputs = [self._attend_block(state, q, k, v, rope, start, scaling) for q, k, v in blocks]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _attend_block(
        self,
        state: StreamingState,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        batch, kv_heads, length, size = key.shape
        begin, end = state.seen, state.seen + length
        positions = positions_of(begin, length, start, key.device)
        near = rope.rotate(query, positions)
        far = near  # the queries that the sinks meet
        if end > self.sink + self.window:
            far = rope.rotate(query, positions.clamp(max=self.sink + self.window - 1))
        key = rope.rotate(key, positions)
        if not state.sinks_complete:
            self._keep_sinks(state, key, value, start)

        # A single token takes the place of the one that leaves its window, so it may be written first and a decode
        # step reads the ring alone. Several must wait: they overwrite what the first of them still sees.
        if length == 1:
            self._keep_window(state, key, value)
        assert state.sink_keys is not None
        assert state.sink_values is not None
        keys, values = [state.sink_keys], [state.sink_values]
        slots = []
        if state.keys is not None and state.values is not None:
            keys.append(state.keys)
            values.append(state.values)
            slots.append(self._ring_slots(state.keys, last=begin if length == 1 else begin - 1))
        if length > 1:
            keys.append(key)
            values.append(value)
            slots.append(torch.arange(begin, end, device=key.device))

        # Query heads of one KV head as rows of one product, so that no key is copied: [B, Hkv, G * S, D]. And products
        # in float32 at least: half types would round every score before the softmax.
        exact = torch.promote_types(key.dtype, torch.float32)
        near = near.reshape(batch, kv_heads, -1, size).to(exact)
        far = far.reshape(batch, kv_heads, -1, size).to(exact)
        scores = [(far if part is state.sink_keys else near) @ part.to(exact).transpose(2, 3) for part in keys]
        logits = (torch.cat(scores, dim=-1) * scaling).unflatten(2, (-1, length))  # [B, Hkv, G, S, K]
        visible = self._visible(torch.cat(slots), positions, begin, start)
        # The lowest finite number, not -inf: padding may see nothing, and must not become NaN.
        logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
        weights = logits.softmax(dim=-1).flatten(2, 3)
        shares = weights.split([part.shape[2] for part in values], dim=-1)
        output: Tensor = shares[0] @ values[0].to(exact)
        for share, part in zip(shares[1:], values[1:], strict=True):
            output = output + share @ part.to(exact)
        if length > 1:
            self._keep_window(state, key, value)
        state.seen = end
        return output.reshape(query.shape).to(query.dtype)

    def _visible(self, slots: Tensor, positions: Tensor, begin: int, start: Tensor | None) -> Tensor:
        """Which of the sinks and the `slots` [K'] each query sees: bool [S, K], or [B, 1, 1, S, K] where padded."""
        # A sink within the window is met there, not twice.
        sinks = torch.arange(self.sink, device=slots.device) <= positions[..., None] - self.window
        queries = torch.arange(begin, begin + positions.shape[-1], device=slots.device)[:, None]
        window = (slots <= queries) & (slots > queries - self.window)
        if start is None:
            return torch.cat((sinks, window & (slots >= 0)), dim=-1)
        return torch.cat((sinks, window & (slots >= start[:, None, None])), dim=-1)[:, None, None]

    def _ring_slots(self, ring: Tensor, *, last: int) -> Tensor:
        """The slot that each place of the ring holds when `last` was the last one written; negative: none yet."""
        places = torch.arange(ring.shape[2], device=ring.device)
        return last - (last - places) % self.window

    def _keep_sinks(self, state: StreamingState, key: Tensor, value: Tensor, start: Tensor | None) -> None:
        """Copy each row's tokens of positions 0..sink-1 that are in this block."""
        batch, kv_heads, length, size = key.shape
        if state.sink_keys is None or state.sink_values is None:
            state.sink_keys = key.new_zeros(batch, kv_heads, self.sink, size)
            state.sink_values = torch.zeros_like(state.sink_keys)
        column = torch.arange(self.sink, device=key.device) - state.seen  # of the block
        column = column.expand(batch, -1) if start is None else column + start[:, None]
        here = ((column >= 0) & (column < length))[:, None, :, None]
        index = column.clamp(0, length - 1)[:, None, :, None].expand(-1, kv_heads, -1, size)
        state.sink_keys = torch.where(here, key.gather(2, index), state.sink_keys)
        state.sink_values = torch.where(here, value.gather(2, index), state.sink_values)
        # start.max() waits for the device, but only until the prompt's first tokens are in.
        latest = 0 if start is None else int(start.max())
        state.sinks_complete = state.seen + length >= latest + self.sink

    def _keep_window(self, state: StreamingState, key: Tensor, value: Tensor) -> None:
        """Write the block's last tokens into the ring."""
        end = state.seen + key.shape[2]
        kept = min(key.shape[2], self.window)
        capacity = min(end, self.window)
        state.keys = reserve(state.keys, capacity, key, limit=self.window)
        state.values = reserve(state.values, capacity, value, limit=self.window)
        places = torch.arange(end - kept, end, device=key.device) % self.window
        state.keys.index_copy_(2, places, key[:, :, -kept:])
        state.values.index_copy_(2, places, value[:, :, -kept:])
