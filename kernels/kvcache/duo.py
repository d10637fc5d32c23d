"""DuoAttention (arXiv 2410.10819): retrieval heads keep everything, streaming heads their sinks and the latest tokens.

Notable choices: the prompt meets the streaming heads with the same mask as the answer does, query by query, as in the
authors' training (github.com/mit-han-lab/duo-attention, duo_attn/patch/streaming_attn.py), so chunks change nothing;
their deployment lets the tokens of a chunk see the whole chunk before them, and the first chunk everything. Keys stay
at their original positions, as in both. The profile decides what this is: with gates that were learned as in the paper,
imported by `longloom heads`, it is DuoAttention; with any other scores it is DuoAttention-style.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longloom.kernels.attention.prefill import prefill
from longloom.kernels.kvcache.base import KVPolicy, LayerState, Rope, positions_of, reserve
from longloom.kernels.kvcache.full import FullPolicy, FullState
from longloom.kernels.kvcache.heads import HeadProfile, check_share, given


@dataclass(eq=False)
class DuoState(FullState):
    """Retrieval heads' keys and values as under full attention, and those of the streaming heads.

    Attributes:
        retrieval, streaming: [heads] int64 on the keys' device, which KV heads are which.
        near_keys, near_values: [B, streaming heads, capacity <= sink + recent, D], keys rotated to their positions. A
            row's token of position p is at place p if it is a sink, else at sink + (p - sink) % recent.
    """

    retrieval: Tensor | None = None
    streaming: Tensor | None = None
    near_keys: Tensor | None = None
    near_values: Tensor | None = None


@dataclass(frozen=True)
class DuoPolicy(KVPolicy[DuoState]):
    """Full attention for some KV heads, sinks and a sliding window for the others, in the prompt and in the answer.

    Attributes:
        heads: the model's head profile; its `induction` scores rank the heads.
        retrieval: share of the model's KV heads that are retrieval heads (the authors' README: 0.5 for models with
            grouped queries, 0.25 for those without).
        sink: first tokens that streaming heads see (the authors' scripts/longbench.sh: 64).
        recent: last tokens that they see, the newest included (likewise: 256).
    """

    name: ClassVar[str] = "duo"
    state_type: ClassVar[type[LayerState]] = DuoState
    profiled: ClassVar[bool] = True

    heads: HeadProfile | None = None
    retrieval: float = 0.5
    sink: int = 64
    recent: int = 256

    def __post_init__(self) -> None:
        check_share("duo", "retrieval", self.retrieval)
        for option, least in (("sink", 0), ("recent", 1)):
            value = getattr(self, option)
            if type(value) is not int or value < least:
                raise ValueError(f"KV policy 'duo': {option} must be a whole number >= {least}, found {value!r}")

    def attend(
        self,
        state: DuoState,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope,
        *,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        kv_heads, length = key.shape[1:3]
        if state.retrieval is None or state.streaming is None:
            profile = given(self.name, self.heads)
            chosen = profile.protected(self.name, state.layer, kv_heads, induction=self.retrieval, echo=0)
            others = [head for head in range(kv_heads) if head not in chosen]
            state.retrieval = torch.tensor(chosen, dtype=torch.int64, device=key.device)
            state.streaming = torch.tensor(others, dtype=torch.int64, device=key.device)
        retrieval, streaming = state.retrieval, state.streaming
        begin = state.seen
        packed = query.unflatten(1, (kv_heads, -1))  # [B, Hkv, G, S, D]
        output = torch.empty_like(packed)
        if len(retrieval):
            full = FullPolicy().attend(
                state,
                packed[:, retrieval].flatten(1, 2),
                key[:, retrieval],
                value[:, retrieval],
                rope,
                start=start,
                scaling=scaling,
            )
            output[:, retrieval] = full.unflatten(1, (len(retrieval), -1))
        if len(streaming):
            positions = positions_of(begin, length, start, key.device)
            queries = rope.rotate(packed[:, streaming].flatten(1, 2), positions)
            keys, values = rope.rotate(key[:, streaming], positions), value[:, streaming]
            capacity = min(begin + length, self.sink + self.recent)
            state.near_keys = reserve(state.near_keys, capacity, keys, limit=self.sink + self.recent)
            state.near_values = reserve(state.near_values, capacity, values, limit=self.sink + self.recent)
            run = self._step if length == 1 else self._chunk
            near = run(state.near_keys, state.near_values, queries, keys, values, begin, start, scaling)
            output[:, streaming] = near.unflatten(1, (len(streaming), -1))
        state.seen = begin + length
        return output.flatten(1, 2)

    def _step(
        self,
        near_keys: Tensor,
        near_values: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        begin: int,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """One token a row of the streaming heads: it takes the place of the one that leaves the window."""
        # Filled on the device: a tensor made of a list is copied there, and the host waits for that in every layer.
        position = torch.full((1,), begin, device=key.device) if start is None else begin - start
        # Padding goes to place 0, where the row's first token will follow, and sees itself: nothing would be NaN.
        position = position.clamp(min=0)
        index = self._places(position)[:, None, None, None].expand_as(key)
        near_keys.scatter_(2, index, key)
        near_values.scatter_(2, index, value)
        held = min(begin + 1, self.sink + self.recent)
        mask = None
        if start is not None:
            mask = (torch.arange(held, device=key.device) <= position[:, None])[:, None, None]
        packed = query.reshape(*key.shape[:2], -1, key.shape[3])  # [B, streaming heads, G, D]
        keys, values = near_keys[:, :, :held], near_values[:, :, :held]
        return scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=scaling).reshape(query.shape)

    def _chunk(
        self,
        near_keys: Tensor,
        near_values: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        begin: int,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Several tokens a row of the streaming heads, each row by itself and without its padding, where 0 is answered.

        What is kept of the tokens before stands in order before the chunk, so that differences of positions within the
        window are differences of places, and sinks come first: all that `prefill` asks for.
        """
        length, device = key.shape[2], key.device
        window = torch.full(key.shape[1:2], self.recent, dtype=torch.int32, device=device)
        sink = torch.full_like(window, self.sink)
        output = torch.zeros_like(query)
        for row, padding in enumerate([0] * len(query) if start is None else start.tolist()):
            skipped = max(0, padding - begin)
            before, new = max(0, begin - padding), length - skipped
            if not new:
                continue
            earlier = self._places(self._seen(0, before, by=before).to(device))
            fresh_keys, fresh_values = key[row, :, skipped:], value[row, :, skipped:]
            keys = torch.cat((near_keys[row].index_select(1, earlier), fresh_keys), dim=1)
            values = torch.cat((near_values[row].index_select(1, earlier), fresh_values), dim=1)
            output[row, :, skipped:] = prefill(
                query[row, :, skipped:].transpose(0, 1),
                keys.transpose(0, 1),
                values.transpose(0, 1),
                torch.tensor([0, new], dtype=torch.int32),
                torch.tensor([0, keys.shape[1]], dtype=torch.int32),
                scale=scaling,
                window=window,
                sink=sink,
            ).transpose(0, 1)
            stays = self._seen(before, before + new, by=before + new).to(device)
            places, fresh = self._places(stays), stays - before
            near_keys[row].index_copy_(1, places, fresh_keys.index_select(1, fresh))
            near_values[row].index_copy_(1, places, fresh_values.index_select(1, fresh))
        return output

    def _seen(self, begin: int, end: int, *, by: int) -> Tensor:
        """Which of the positions begin .. end - 1 a query at position `by` sees, in order."""
        window = range(max(begin, self.sink, by - self.recent + 1), end)
        return torch.tensor([*range(begin, min(self.sink, end)), *window], dtype=torch.int64)

    def _places(self, positions: Tensor) -> Tensor:
        """Where the tokens of these positions are kept; those beyond the sinks by turns."""
        return torch.where(positions < self.sink, positions, self.sink + (positions - self.sink) % self.recent)
