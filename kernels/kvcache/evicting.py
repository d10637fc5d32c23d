"""KV policies that read a prompt with full attention and then evict all but the best of each head's tokens.

A policy of this family is its scores, and nothing else. Kept keys stay rotated to their original positions. All heads
of a layer keep equally many tokens; tokens of the answer are kept all.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longloom.kernels.kvcache.base import LayerState, Rope, SharedPrefillPolicy, positions_of, reserve
from longloom.kernels.kvcache.prompt import PromptPolicy, PromptState


@dataclass(eq=False)
class EvictedState(LayerState):
    """What is left of a prompt, and the answer behind it.

    Attributes:
        prompt: while the prompt comes in.
        keys, values: [B, Hkv, capacity, D], keys rotated; the first `used` columns are in use, tokens in order.
        used: columns in use.
        padding: [B] columns at the left that hold padding; None: none do.
    """

    prompt: PromptState | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    used: int = 0
    padding: Tensor | None = None


@dataclass(frozen=True)
class EvictingPolicy(SharedPrefillPolicy[EvictedState]):
    """Keep the `budget` tokens of the prompt that `scores` rates highest, of each KV head.

    Attributes:
        budget: tokens kept of the prompt.
    """

    state_type: ClassVar[type[LayerState]] = EvictedState

    budget: int

    def __post_init__(self) -> None:
        if type(self.budget) is not int or self.budget < 1:
            raise ValueError(f"KV policy {self.name!r}: budget must be a whole number >= 1, found {self.budget!r}")

    @abstractmethod
    def scores(self, prompt: PromptState, rope: Rope) -> Tensor:
        """How much each token is worth keeping: [B, Hkv, N], of any finite scale; `inf`: keep it whatever the others'.

        Padding may score anything.
        """

    def keep(self, prompt: PromptState, rope: Rope) -> EvictedState:
        assert prompt.keys is not None
        assert prompt.values is not None
        length = prompt.seen
        scores = self.scores(prompt, rope)
        if prompt.start is not None:
            slots = torch.arange(length, device=scores.device)
            scores = scores.masked_fill(slots < prompt.start[:, None, None], -torch.inf)
        kept = min(self.budget, length)
        # Stable, for equal scores are common (pooled ones): the earlier token wins, on every device.
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :kept]
        chosen = best.sort(dim=-1).values  # [B, Hkv, kept], in order: padding comes first
        index = chosen[..., None].expand(-1, -1, -1, prompt.keys.shape[3])
        padding = None
        if prompt.start is not None:
            padding = (kept - (length - prompt.start)).clamp(min=0)
        return EvictedState(
            prompt.layer,
            length,
            keys=prompt.keys.gather(2, index),
            values=prompt.values.gather(2, index),
            used=kept,
            padding=padding,
        )

    def attend(
        self,
        state: EvictedState,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rope: Rope,
        *,
        start: Tensor | None,
        scaling: float,
    ) -> Tensor:
        length = key.shape[2]
        if state.keys is None and (state.prompt is None or length > 1):
            # Called piece by piece, without being told where the prompt ends: it ends before the first single token. A
            # caller that cuts prompts must leave no single token over (transformers' `prefill_chunk_size` may).
            state.prompt = state.prompt or PromptState(state.layer)
            whole = PromptPolicy(observed=self.observed)
            output = whole.attend(state.prompt, query, key, value, rope, start=start, scaling=scaling)
            state.seen = state.prompt.seen
            return output
        if state.prompt is not None:
            kept = self.keep(state.prompt, rope)
            state.keys, state.values, state.used, state.padding = kept.keys, kept.values, kept.used, kept.padding
            state.prompt = None
        positions = positions_of(state.seen, length, start, key.device)
        query = rope.rotate(query, positions)
        begin, end = state.used, state.used + length
        state.keys = reserve(state.keys, end, key)
        state.values = reserve(state.values, end, value)
        state.keys[:, :, begin:end] = rope.rotate(key, positions)
        state.values[:, :, begin:end] = value
        state.used, state.seen = end, state.seen + length
        # Query heads of one KV head as rows of one product: [B, Hkv, G * S, D].
        packed = query.reshape(key.shape[0], key.shape[1], -1, key.shape[3])
        output = scaled_dot_product_attention(
            packed,
            state.keys[:, :, :end],
            state.values[:, :, :end],
            attn_mask=_visible(begin, end, packed.shape[2] // length, state.padding, key.device),
            scale=scaling,
        )
        return output.reshape(query.shape)


def _visible(begin: int, end: int, group: int, padding: Tensor | None, device: torch.device) -> Tensor | None:
    """Which columns the queries of columns begin..end-1 see: bool [G * S, N], [B, 1, G * S, N] where padded, or all."""
    if padding is None and end - begin == 1:
        return None
    columns = torch.arange(end, device=device)
    visible = (columns <= columns[begin:, None]).repeat(group, 1)
    if padding is None:
        return visible
    return (visible & (columns >= padding[:, None, None]))[:, None]
